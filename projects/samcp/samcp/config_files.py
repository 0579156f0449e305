"""Config files of this project, which the package carries in its folder ``configs``."""

import difflib
import os
from pathlib import Path

# In a checkout a link to the folder at the top level; in an installed package a copy of it.
CONFIGS = Path(__file__).resolve().parent / "configs"


def find_config(name: str | os.PathLike[str]) -> str:
    """Return the path of a config file: `name` itself if that file exists, else the packaged file of that name.

    Example::

        find_config("my.yaml")                              # ./my.yaml
        find_config("coco/panoptic/samcp_R50_12ep.yaml")    # the same packaged file,
        find_config("configs/coco/panoptic/samcp_R50_12ep") # also outside a checkout

    Args:
        name: path of a file, or path under `configs`; a packaged file needs no suffix.

    Raises:
        FileNotFoundError: neither exists; the message suggests similar names.
    """
    if os.path.isfile(name):
        return os.fspath(name)
    packaged = f"{Path(name).as_posix().removeprefix('configs/').removesuffix('.yaml')}.yaml"
    known = [path.relative_to(CONFIGS).as_posix() for path in CONFIGS.rglob("*.yaml")]
    if packaged in known:
        return str(CONFIGS / packaged)
    similar = difflib.get_close_matches(packaged, known, n=3) or sorted(known)[:3]
    raise FileNotFoundError(f"{os.fspath(name)!r}: no such file or packaged config; similar: {', '.join(similar)}")
