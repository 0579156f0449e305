"""Filters for warnings of dependencies about their own code."""

import logging
import subprocess
import sys
import warnings

import pytest

from samcp.upstream_warnings import ignore_upstream_warnings


def warn_of_meshgrid():
    """Emit the warning of torch.meshgrid without `indexing`, which torch emits once per process."""
    warnings.warn_explicit(
        "torch.meshgrid: in an upcoming release", UserWarning, "functional.py", 1, "torch.functional"
    )


def test_importing_everything_prints_nothing():
    command = [sys.executable, "-c", "import samcp; samcp.SAMCP"]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stderr == ""


def test_filters_of_the_application_take_precedence():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ignore_upstream_warnings()
        with pytest.raises(UserWarning, match="meshgrid"):
            warn_of_meshgrid()


def test_warnings_about_own_code_are_shown():
    with warnings.catch_warnings(record=True) as caught:
        warnings.resetwarnings()
        ignore_upstream_warnings()
        warnings.warn("torch.meshgrid: called by a user", UserWarning, stacklevel=1)
        warn_of_meshgrid()
    assert [str(warning.message) for warning in caught] == ["torch.meshgrid: called by a user"]


def test_only_one_message_of_torch_fx_is_dropped(caplog):
    ignore_upstream_warnings()
    log = logging.getLogger("torch.fx._symbolic_trace")
    log.warning("is_fx_tracing will return true for both fx.symbolic_trace and torch.export.")
    log.warning("another message")
    assert "is_fx_tracing" not in caplog.text
