"""Static HTML pages of tables and pictures, each a single file that needs no server and no network."""

import base64
import io
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import jinja2
from PIL import Image

from samcp.data.files import write_bytes
from samcp.visualization.drawing import Picture

_QUALITY = 88  # of the pictures, in WebP, which keeps text and lines sharper than JPEG


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
        folded: text to click on, if the code block is closed at first.
    """

    heading: str
    paragraphs: Sequence[str] = ()
    header: Sequence[str] = ()
    table: Sequence[Sequence[str]] = ()
    rows: Sequence[Row] = field(default_factory=list)
    commands: Sequence[str] = ()
    folded: str = ""


def write_page(path: str | os.PathLike[str], title: str, sections: Sequence[Section]) -> Path:
    """Write a page as one file with its pictures inside; replace an existing file.

    Args:
        path: of the html file; its folder is created if missing.
        title: of the page.
        sections: its content.

    Returns:
        The path.
    """
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("samcp.visualization", "."), autoescape=True, trim_blocks=True
    )
    rows = [[_inline(row) for row in section.rows] for section in sections]
    page = environment.get_template("page.html").render(title=title, sections=list(zip(sections, rows, strict=True)))
    path = Path(path)
    write_bytes(path, page.encode())
    return path


def _inline(row: Row) -> dict[str, object]:
    """Return a row as the template takes it, with its pictures as data URLs."""
    figures = []
    for caption, picture in row.pictures.items():
        encoded = io.BytesIO()
        Image.fromarray(picture).save(encoded, "WEBP", quality=_QUALITY, method=1)
        source = f"data:image/webp;base64,{base64.b64encode(encoded.getvalue()).decode()}"
        height, width = picture.shape[:2]
        figures.append({"source": source, "caption": caption, "height": height, "width": width})
    return {"title": row.title, "note": row.note, "figures": figures}
