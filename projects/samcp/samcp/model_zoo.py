"""Models that are shipped with the package, by name; weights/README.md has their cards."""

import json
import re
from pathlib import Path

FOLDER = Path(__file__).with_name("weights")
WORDS = FOLDER / "imagenet_words.safetensors"  # learned words of samcp.modeling.naming
DEFAULT = "samcp-everyday-lite"
# CLIP of the drawn scenes (samcp.miniature.small_clip): its name in MODEL.CLIP.NAME, and its weights by PRETRAINED.
SMALL_CLIP = "samcp-clip-lite"
SMALL_CLIP_WEIGHTS = {"scenes": FOLDER / "clip_lite.safetensors"}

_PREFIX = "samcp-"
_ROW = re.compile(r"^\| `(samcp-\S+)\.safetensors` \| \[(.+?)\].*? \| (.+?) \| (.+?) \| `([0-9a-f]{64})` \|$", re.M)


def names() -> list[str]:
    """Return the names of all models."""
    return sorted(file.stem for file in FOLDER.glob(f"{_PREFIX}*.safetensors"))


def find(name: str) -> str:
    """Return the file of a model; a text that is not the name of one, such as a path, is returned unchanged."""
    return str(FOLDER / f"{name}.safetensors") if name in names() else name


def table() -> str:
    """Return a description of all models: name, purpose, size, licence, SHA-256 and classes, from weights/README.md."""
    rows = _ROW.findall((FOLDER / "README.md").read_text(encoding="utf-8"))
    lines = [
        f"{name}: {purpose}\n    {size}, {licence}\n    sha256 {digest}\n    {_classes(name)}"
        for name, purpose, size, licence, digest in rows
    ]
    return "\n".join(lines)


def _classes(name: str) -> str:
    from safetensors import safe_open

    with safe_open(find(name), "np") as file:
        classes = json.loads(file.metadata()["samcp.vocabulary"])["names"]
    return f"classes: {', '.join(classes)}" if len(classes) > 1 else "classes: your words"
