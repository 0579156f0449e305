"""Shipped weights: the table in weights/README.md lists every file with its checksum, and the files are small."""

import hashlib
import re
from pathlib import Path

WEIGHTS = Path(__file__).parent.parent / "weights"


def test_table_lists_every_file_with_its_checksum() -> None:
    table = dict(
        re.findall(r"^\| `(\S+\.safetensors)` .*\| `([0-9a-f]{64})` \|$", (WEIGHTS / "README.md").read_text(), re.M)
    )
    files = {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in WEIGHTS.glob("*.safetensors")}
    assert table == files


def test_sizes() -> None:
    sizes = {file.name: file.stat().st_size for file in WEIGHTS.glob("*.safetensors")}
    assert sizes["contours.safetensors"] <= 10e6
    assert sum(sizes.values()) <= 40e6
