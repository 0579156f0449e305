"""Static HTML pages."""

import base64
import io
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from samcp.visualization.pages import Row, Section, write_page


class Images(HTMLParser):
    """Parser that collects the attributes of images and the addresses of links."""

    def __init__(self):
        super().__init__()
        self.images, self.addresses = [], []

    def handle_starttag(self, tag, attrs):
        attributes = dict(attrs)
        if tag == "img":
            self.images.append(attributes)
        self.addresses += [attributes[name] for name in ("src", "href") if name in attributes]


@pytest.fixture
def page(tmp_path):
    picture = np.zeros((30, 40, 3), np.uint8)
    row = Row("A <b>bold</b> title", {"image": picture, "patches": picture + 100}, note="Two pictures")
    sections = [
        Section("Figures", ["Made & measured here."], header=["", "PQ"], table=[["model", "12.3"], ["oracle", "45.6"]]),
        Section("Pictures", rows=[row], commands=["make demo"]),
    ]
    return write_page(tmp_path / "page" / "index.html", "The page", sections)


def test_page_has_title_paragraphs_table_and_commands(page):
    text = page.read_text()
    assert "<title>The page</title>" in text
    assert "Made &amp; measured here." in text
    assert re.search(r"<th scope=\"row\">model</th><td>12.3</td>", text)
    assert "<code>make demo</code>" in text


def test_pictures_are_inside_the_page_with_descriptions_and_sizes(page):
    reader = Images()
    reader.feed(page.read_text())
    assert [image["alt"] for image in reader.images] == ["A <b>bold</b> title: image", "A <b>bold</b> title: patches"]
    for image in reader.images:
        kind, _, content = image["src"].partition(",")
        assert kind == "data:image/webp;base64"
        with Image.open(io.BytesIO(base64.b64decode(content))) as picture:
            assert picture.size == (int(image["width"]), int(image["height"])) == (40, 30)


def test_page_is_one_file_and_refers_to_no_other(page):
    reader = Images()
    reader.feed(page.read_text())
    assert list(page.parent.iterdir()) == [page]
    assert len(reader.addresses) == 2
    assert all(address.startswith("data:") for address in reader.addresses)


def test_long_text_is_folded(tmp_path):
    page = write_page(tmp_path / "page.html", "", [Section("Config", commands=["SEED: 1"], folded="all keys")])
    assert re.search(
        r"<details><summary>all keys</summary>\s*<pre><code>SEED: 1</code></pre></details>", page.read_text()
    )


def test_markup_is_escaped(page):
    assert "<b>" not in page.read_text()
