"""Static HTML pages of tables and pictures, which need no server and no network."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import jinja2
from PIL import Image

from samcp.visualization.drawing import Picture


@dataclass
class Row:
    """Row of pictures.

    Attributes:
        title: heading of the row.
        pictures: caption -> picture.
        note: a sentence below the pictures.
    """

    title: str
    pictures: Mapping[str, Picture]
    note: str = ""


@dataclass
class Section:
    """Section of a page: paragraphs, a table, rows of pictures and commands, in this order and each optional.

    Attributes:
        heading: of the section.
        paragraphs: one string per paragraph.
        header, table: cells of the table's first row, and of its other rows.
        rows: rows of pictures.
        commands: lines of a code block.
    """

    heading: str
    paragraphs: Sequence[str] = ()
    header: Sequence[str] = ()
    table: Sequence[Sequence[str]] = ()
    rows: Sequence[Row] = field(default_factory=list)
    commands: Sequence[str] = ()


def write_page(folder: str | os.PathLike[str], title: str, sections: Sequence[Section]) -> Path:
    """Write index.html, and its pictures into the subfolder pictures/; existing files are replaced.

    Args:
        folder: created if missing.
        title: of the page.
        sections: its content.

    Returns:
        The path of index.html.
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
    """Write the pictures of a row as JPEG; return the row as the template takes it."""
    figures = []
    for number, (caption, picture) in enumerate(row.pictures.items()):
        name = f"pictures/{prefix}_{number}.jpg"
        Image.fromarray(picture).save(folder / name, quality=88)
        height, width = picture.shape[:2]
        figures.append({"file": name, "caption": caption, "height": height, "width": width})
    return {"title": row.title, "note": row.note, "figures": figures}
