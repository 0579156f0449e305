"""Parallel map over images."""

import signal

import pytest

from proposal_cache import CacheError
from samcp.data.parallel import parallel_map


def test_killed_worker_is_reported() -> None:
    with pytest.raises(CacheError, match="a worker process died, probably out of memory; .* with fewer workers"):
        parallel_map([signal.SIGKILL], signal.raise_signal, workers=2, title="images")
