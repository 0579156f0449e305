"""Paired test of a claim over seeds."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

_SIGNIFICANT = 0.05
_SMALLEST = 0.001  # that is printed

HOLDS, FAILS, UNDECIDED = "holds", "does not hold", "undecided"
DECISIONS = (FAILS, UNDECIDED, HOLDS)  # worst first
DIRECTION_ONLY = " (direction only)"


@dataclass(frozen=True)
class Verdict:
    """Verdict on a claim.

    Attributes:
        decision: HOLDS, FAILS or UNDECIDED; of one pair, the direction only.
        difference: mean of the paired differences.
        p: of the one-sided paired t-test in the direction of the difference; None for one pair.
    """

    decision: str
    difference: float
    p: float | None

    def __str__(self) -> str:
        if self.p is None:
            return f"{self.decision}{DIRECTION_ONLY}"
        return f"{self.decision} ({f'p = {self.p:.3f}' if self.p >= _SMALLEST else f'p < {_SMALLEST}'})"


def paired_test(higher: Sequence[float], lower: Sequence[float], factor: float = 1.0) -> Verdict:
    """Test whether ``higher > factor * lower`` by a one-sided paired t-test over seeds.

    Args:
        higher, lower: one value per seed, in the same order; one value if it does not depend on the seed.
    """
    differences = np.subtract(higher, factor * np.asarray(lower))
    mean = float(differences.mean())
    decision = HOLDS if mean > 0 else FAILS
    if len(differences) == 1:
        return Verdict(decision if mean else UNDECIDED, mean, None)
    if np.ptp(differences) == 0:  # of which the t-statistic is not defined
        return Verdict(decision if mean else UNDECIDED, mean, 0.0 if mean else 1.0)
    direction = "greater" if mean > 0 else "less"
    p = float(stats.ttest_1samp(differences, 0, alternative=direction).pvalue)
    return Verdict(decision if p < _SIGNIFICANT else UNDECIDED, mean, p)
