"""`--help` of every command answers at once: it imports neither PyTorch nor Detectron2, and prints no warning."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SAMCP = ("segment", "web", "models", "train", "eval", "check", "export")
PROPOSAL_CACHE = ("generate", "finalize", "info", "show", "verify", "merge", "import", "export")
COMMANDS = [
    *([str(path)] for path in (*sorted(ROOT.glob("scripts/*.py")), *sorted(ROOT.glob("projects/samcp/*.py")))),
    *([str(ROOT / "projects" / "samcp" / "samcp" / "cli.py"), *name] for name in ([], *([n] for n in SAMCP))),
    *([str(ROOT / "proposal_cache" / "__main__.py"), *name] for name in ([], *([n] for n in PROPOSAL_CACHE))),
]

PRINT_HELP_OF_EACH = """
import json, runpy, sys
for command in json.loads(sys.argv[1]):
    sys.argv = [*command, "--help"]
    try:
        runpy.run_path(command[0], run_name="__main__")
    except SystemExit as end:
        assert end.code == 0, command
    heavy = {"torch", "detectron2", "scipy", "matplotlib"} & sys.modules.keys()
    assert not heavy, f"{command} --help imports {heavy}"
"""


def test_help_imports_neither_torch_nor_detectron2_and_prints_no_warning():
    command = [sys.executable, "-W", "always", "-c", PRINT_HELP_OF_EACH, json.dumps(COMMANDS)]
    result = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert result.returncode == 0, result.stderr
    assert result.stderr == "", "a warning"
    assert result.stdout.count("usage: ") == len(COMMANDS)


@pytest.mark.parametrize(("module", "names"), [("samcp.cli", SAMCP), ("proposal_cache", PROPOSAL_CACHE)])
def test_all_commands_are_tested(module, names):
    """The lists above have every command that the console commands name."""
    command = [sys.executable, "-m", module, "--help"]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    listed = printed.partition("COMMAND\n")[2]
    assert set(re.findall(r"^    (\w+)", listed, re.MULTILINE)) == set(names)
