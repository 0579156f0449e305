"""One static page of tables and pictures, which opens from the disk without a server and without a network."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import jinja2
from PIL import Image

from samcp.visualization.panels import Picture


@dataclass
class Row:
    """Pictures that belong together, side by side where there is room.

    Attributes:
        title: what they show.
        pictures: caption -> picture.
        note: a sentence below them.
    """

    title: str
    pictures: Mapping[str, Picture]
    note: str = ""


@dataclass
class Section:
    """A heading with, in this order and each optional: paragraphs, a table, rows of pictures, commands to type.

    Attributes:
        header, table: of the table; its cells are text.
    """

    heading: str
    paragraphs: Sequence[str] = ()
    header: Sequence[str] = ()
    table: Sequence[Sequence[str]] = ()
    rows: Sequence[Row] = field(default_factory=list)
    commands: Sequence[str] = ()


def write_page(folder: str | os.PathLike[str], title: str, sections: Sequence[Section]) -> Path:
    """Write index.html, and its pictures beside it under pictures/; what was there is replaced.

    Returns:
        the path of index.html.
    """
    folder = Path(folder)
    (folder / "pictures").mkdir(parents=True, exist_ok=True)
    saved = [[_save_row(folder, row, f"{i}_{j}") for j, row in enumerate(s.rows)] for i, s in enumerate(sections)]
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("samcp.visualization", "."), autoescape=True, trim_blocks=True
    )
    page = environment.get_template("page.html").render(title=title, sections=list(zip(sections, saved, strict=True)))
    path = folder / "index.html"
    path.write_text(page, encoding="utf-8")
    return path


def _save_row(folder: Path, row: Row, prefix: str) -> dict[str, object]:
    """The row as the template takes it, its pictures written as JPEG."""
    figures = []
    for number, (caption, picture) in enumerate(row.pictures.items()):
        name = f"pictures/{prefix}_{number}.jpg"
        Image.fromarray(picture).save(folder / name, quality=88)
        height, width = picture.shape[:2]
        figures.append({"file": name, "caption": caption, "height": height, "width": width})
    return {"title": row.title, "note": row.note, "figures": figures}
