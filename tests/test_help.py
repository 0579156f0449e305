"""`--help` of every command works without importing PyTorch and Detectron2, which take seconds to import."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
COMMANDS = [
    *sorted(ROOT.glob("scripts/*.py")),
    ROOT / "projects" / "samcp" / "samcp" / "cli.py",
    *sorted(ROOT.glob("projects/samcp/*.py")),
]

PRINT_HELP_OF_EACH = """
import runpy, sys
for command in sys.argv[1:]:
    sys.argv = [command, "--help"]
    try:
        runpy.run_path(command, run_name="__main__")
    except SystemExit as end:
        assert end.code == 0, command
    heavy = {"torch", "detectron2"} & sys.modules.keys()
    assert not heavy, f"{command} --help imports {heavy}"
"""


def test_help_imports_neither_torch_nor_detectron2():
    command = [sys.executable, "-c", PRINT_HELP_OF_EACH, *map(str, COMMANDS)]
    result = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("usage: ") == len(COMMANDS)
