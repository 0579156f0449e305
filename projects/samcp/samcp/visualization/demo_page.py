"""Page of `make demo`."""

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import skimage.data
from PIL import Image

from proposal_cache import PatchCache
from proposal_cache.generation.pipeline import coverage
from proposal_cache.visualize import draw_patches
from samcp.data.image_io import read_image
from samcp.predictor import Predictor
from samcp.visualization.pages import Row, Section, write_page

# Photographs that the scikit-image package contains (its others would be downloaded), and what to look for in them.
PHOTOGRAPHS = {
    "astronaut": "person, helmet, flag~, space shuttle",
    "chelsea": "cat, blanket~",
    "coffee": "cup, spoon, plate, table~",
    "rocket": "rocket: missile, tower, sky~",
}


def write_photographs(folder: str | os.PathLike[str]) -> None:
    """Write PHOTOGRAPHS into a folder as JPEG; skip existing files."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    for name in PHOTOGRAPHS:
        path = folder / f"{name}.jpg"
        if not path.exists():
            Image.fromarray(getattr(skimage.data, name)()).save(path, quality=95)


def write_demo_page(
    folder: str | os.PathLike[str], sections: Sequence[Section], photographs: Sequence[Row], commands: Sequence[str]
) -> Path:
    """Write the page into a folder.

    Args:
        folder: created if missing.
        sections: of :mod:`samcp.visualization.report`, on the training.
        photographs: from :func:`photograph_rows`.
        commands: commands that repeat the demo step by step.

    Returns:
        The path of index.html.
    """
    about_photographs = (
        "Patches by the generator that needs no download (patches of several scales overlap; the smallest is drawn on "
        "top), and what samcp-everyday-lite, a small model that is part of the package, finds when it is asked for the "
        "words in the title. It was trained on 680 photographs, none of them these."
    )
    last = [Section("Photographs", [about_photographs], rows=photographs), Section("Step by step", commands=commands)]
    return write_page(Path(folder) / "index.html", "SAM-CP demo", [*sections, *last])


def photograph_rows(folder: str | os.PathLike[str], cache: PatchCache, predictor: Predictor) -> list[Row]:
    """Draw one row per photograph of PHOTOGRAPHS, with its patches from the cache and its segmentation."""
    rows = []
    for name, words in PHOTOGRAPHS.items():
        image = read_image(os.path.join(folder, f"{name}.jpg"), "RGB")
        patches = cache[name]
        result = predictor(image, patches).segment(words)
        cover = "patch covers" if len(patches) == 1 else "patches cover"
        pictures = {
            "image": image,
            "patches": draw_patches(patches, image),
            "segmentation": np.asarray(result.draw()),
        }
        note = f"{len(patches)} {cover} {coverage(patches):.0%} of the picture"
        rows.append(Row(f"{name}: {', '.join(result.vocabulary.names)}", pictures, note=note))
    return rows
