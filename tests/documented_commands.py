"""Commands and Python examples of Markdown pages: found, run, or recorded as a shell passes them."""

import os
import re
import subprocess
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
_LISTING = re.compile(r"\S+/\s|[@#]|  ")  # first line of a tree of files, BibTeX, yaml, or an indented line
_FENCED = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
_INDENTED = re.compile(r"(?<=\n\n)(?: {4}.*\n|\n(?= {4}))+")

# Shell functions that write the words of each command to a file, end it with an empty line, and run it if it can run.
_FUNCTIONS = r"""
set -eu
call() {
    printf '%s\0' "$@" >> "$RECORD"
    printf '\n\0' >> "$RECORD"
    if [ "$RUN" = no ]; then return; fi
    while IFS= read -r name; do
        case "$*" in "$name"*) return;; esac
    done < "$NOT_RUN"
    case "$1" in
        samcp) shift; command python -m samcp.cli "$@" < /dev/null;;
        proposal-cache) shift; command python -m proposal_cache "$@" < /dev/null;;
        *) command "$@" < /dev/null;;
    esac
}
for program in make pip proposal-cache python samcp sbatch torchrun; do
    eval "$program() { call $program \"\$@\"; }"
done
"""


@dataclass(frozen=True)
class Block:
    """Code block of a page; `kind` is "shell", "python" or "listing"."""

    kind: str
    text: str


def blocks(page: str) -> list[Block]:
    """Return the code blocks of a page, indented or fenced, in order; blank lines divide those that are not Python.

    Blocks that are fenced as "text" are outputs.
    """
    text = (ROOT / page).read_text()
    found = [(match.start(), match[2]) for match in _FENCED.finditer(text) if match[1] != "text"]
    found += [(match.start(), re.sub("^ {4}", "", match[0], flags=re.MULTILINE)) for match in _INDENTED.finditer(text)]
    parts: list[str] = []
    for _, code in sorted(found):
        parts += [code] if _kind(code) == "python" else code.split("\n\n")
    return [Block(_kind(part), part) for part in parts]


def _kind(code: str) -> str:
    if code.startswith(("import ", "from ")):
        return "python"
    return "listing" if _LISTING.match(code) else "shell"


def recorded(code: Iterable[Block], folder: Path) -> list[list[str]]:
    """Return the commands of shell blocks, each as its words, with variables and loops expanded; nothing runs."""
    return _shell("\n".join(block.text for block in code if block.kind == "shell"), folder, (), run=False)


def run(code: Sequence[Block], folder: Path, not_run: Iterable[str]) -> list[list[str]]:
    """Run shell and Python blocks one after the other in a folder, as a user would paste them into one shell.

    Args:
        code: the blocks.
        folder: the working directory.
        not_run: first words of commands that are skipped.

    Returns:
        all commands, also those skipped.

    Raises:
        AssertionError: a command failed; the message is the end of its output.
    """
    lines = []
    for i, block in enumerate(code):
        if block.kind == "python":
            (folder / f"example_{i}.py").write_text(block.text)
        if block.kind != "listing":
            lines.append(block.text if block.kind == "shell" else f"python example_{i}.py")
    return _shell("\n".join(lines), folder, not_run, run=True)


def _shell(script: str, folder: Path, not_run: Iterable[str], *, run: bool) -> list[list[str]]:
    record, names = folder / "commands.txt", folder / "not_run.txt"
    record.write_text("")
    names.write_text("".join(f"{name}\n" for name in not_run))
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "PYTHONPATH": f"{ROOT}:{ROOT / 'projects' / 'samcp'}",
        "DETECTRON2_DATASETS": str(folder / "datasets"),
        "RECORD": str(record),
        "NOT_RUN": str(names),
        "RUN": "yes" if run else "no",
    }
    done = subprocess.run(
        ["bash", "-c", f"{_FUNCTIONS}\n{script}"], cwd=folder, env=environment, capture_output=True, text=True
    )
    commands = [part.rstrip("\0").split("\0") for part in record.read_text().split("\n\0") if part]
    last = " ".join(commands[-1]) if commands else script
    assert done.returncode == 0, f"{last}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}"
    return commands
