"""Models that are shipped with the package, by name; weights/README.md describes them."""

from pathlib import Path

FOLDER = Path(__file__).with_name("weights")
WORDS = FOLDER / "imagenet_words.safetensors"  # learned words of samcp.modeling.naming

_PREFIX = "samcp-"


def names() -> list[str]:
    """Return the names of all models."""
    return sorted(file.stem for file in FOLDER.glob(f"{_PREFIX}*.safetensors"))


def find(name: str) -> str:
    """Return the file of a model; a text that is not the name of one, such as a path, is returned unchanged."""
    return str(FOLDER / f"{name}.safetensors") if name in names() else name
