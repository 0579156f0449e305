"""requirements.txt: the tested versions, with the hashes of their files."""

import re
from pathlib import Path

DETECTRON2 = "sal-detectron2"  # its hash is in scripts/build_detectron2_wheel.sh


def pins(path):
    """Return name -> version and marker."""
    lines = Path(path).read_text().splitlines()
    found = (re.match(r"([a-z0-9-]+)==(\S+)(?: ; (.+?))?(?: \\)?$", line) for line in lines if "==" in line)
    return {match[1]: (match[2], (match[3] or "").replace("'", '"')) for match in found}


def test_requirements_have_the_versions_of_the_constraints():
    expected = pins("constraints.txt")
    assert DETECTRON2 in expected
    del expected[DETECTRON2]
    assert pins("requirements.txt") == expected


def test_every_requirement_has_hashes():
    blocks = re.split(r"\n(?=[a-z0-9])", Path("requirements.txt").read_text())[1:]
    assert len(blocks) == len(pins("requirements.txt"))
    for block in blocks:
        assert re.search(r"--hash=sha256:[0-9a-f]{64}", block), block


def test_licences_of_all_requirements_are_listed():
    rows = re.findall(r"^\| (\S+) \| (\S+) \|", Path("docs/licenses.md").read_text(), re.MULTILINE)
    listed = {re.sub(r"[._]", "-", name).lower(): version for name, version in rows}
    for name, (version, _) in pins("requirements.txt").items():
        assert listed.get(name) == version, f"{name}: run `make hashes`"
