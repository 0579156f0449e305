"""Random inputs of the property-based tests."""

import numpy as np
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

# The same inputs in every run, so that a failure is not of one machine or day; no limit on time.
settings.register_profile("repeatable", derandomize=True, database=None, deadline=None, max_examples=40)
settings.load_profile("repeatable")

MAX_SIDE = 12


@st.composite
def image_sizes(draw: st.DrawFn) -> tuple[int, int]:
    """Draw (height, width) in pixels."""
    return draw(st.integers(1, MAX_SIDE)), draw(st.integers(1, MAX_SIDE))


@st.composite
def mask_stacks(draw: st.DrawFn, size: tuple[int, int] | None = None, min_count: int = 0) -> np.ndarray:
    """Draw masks (N, H, W): noise, rectangles, full and empty ones."""
    height, width = size or draw(image_sizes())
    count = draw(st.integers(min_count, 5))
    return np.array([draw(_masks(height, width)) for _ in range(count)], bool).reshape(count, height, width)


@st.composite
def _masks(draw: st.DrawFn, height: int, width: int) -> np.ndarray:
    if draw(st.booleans()):
        return draw(npst.arrays(np.bool_, (height, width)))
    rows = sorted(draw(st.tuples(st.integers(0, height), st.integers(0, height))))
    columns = sorted(draw(st.tuples(st.integers(0, width), st.integers(0, width))))
    mask = np.zeros((height, width), bool)
    mask[rows[0] : rows[1], columns[0] : columns[1]] = True
    return mask
