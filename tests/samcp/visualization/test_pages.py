"""Static HTML pages."""

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
    return write_page(tmp_path / "page", "The page", sections)


def test_page_has_title_paragraphs_table_and_commands(page):
    text = page.read_text()
    assert "<title>The page</title>" in text
    assert "Made &amp; measured here." in text
    assert re.search(r"<th scope=\"row\">model</th><td>12.3</td>", text)
    assert "<code>make demo</code>" in text


def test_pictures_have_files_descriptions_and_sizes(page):
    reader = Images()
    reader.feed(page.read_text())
    assert [image["alt"] for image in reader.images] == ["A <b>bold</b> title: image", "A <b>bold</b> title: patches"]
    for image in reader.images:
        with Image.open(page.parent / image["src"]) as picture:
            assert picture.size == (int(image["width"]), int(image["height"])) == (40, 30)


def test_page_refers_to_no_network_address(page):
    reader = Images()
    reader.feed(page.read_text())
    assert reader.addresses
    assert not [address for address in reader.addresses if "//" in address]


def test_markup_is_escaped(page):
    assert "<b>" not in page.read_text()
