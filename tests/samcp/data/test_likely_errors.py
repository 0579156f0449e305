"""check_dataset on label maps and images with errors that sizes and ids do not show."""

import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from samcp.data.datasets.catalog import unregister
from samcp.data.datasets.custom.register import register_file
from samcp.data.validation.dataset import check_dataset
from samcp.errors import DataError
from tests.proposal_cache.turned_images import write_turned
from tests.samcp.data.datasets.test_custom import SIZE, beach  # noqa: F401

DOCS = Path(__file__).parents[3] / "docs" / "datasets.md"


@pytest.fixture
def folder(beach):  # noqa: F811
    """Return the folder of a valid dataset of two images, own_labels: label 0 is a kite, 1 the sea, 255 void."""
    return beach.parent


def rewrite_labels(folder, change):
    """Replace all label maps by `change` of them."""
    for path in (folder / "labels").rglob("*.png"):
        Image.fromarray(change(np.asarray(Image.open(path)).copy())).save(path)


class TestLabelsFromOne:
    """Labels count from 1, and the last class never occurs, so that all of them are valid."""

    @pytest.fixture
    def with_third_class(self, folder):
        text = "{classes: 'kite, sea, boat', splits: {three_classes: {images: images, labels: labels}}}"
        (folder / "three.yaml").write_text(text)
        yield register_file(folder / "three.yaml")[0]
        unregister("three_classes")

    def test_without_background(self, folder, with_third_class):
        rewrite_labels(folder, lambda labels: np.where(labels == 255, 255, labels + 1).astype(np.uint8))
        assert note("label 0 ('kite') never occurs; if the labels count the classes from 1", with_third_class)

    def test_with_background_as_label_0(self, folder, with_third_class):
        rewrite_labels(folder, lambda labels: np.where(labels == 255, 0, 1).astype(np.uint8))
        assert note("label 2, the last class ('boat'), never occurs; if label 0 is the background", with_third_class)

    def test_no_note_if_first_and_last_class_occur(self, folder):
        assert not [remark for remark in check_dataset("own_labels").remarks if "label" in remark]


def test_invalid_labels_that_count_from_1(folder):
    rewrite_labels(folder, lambda labels: np.where(labels == 255, 255, labels + 1).astype(np.uint8))
    problems = check_dataset("own_labels").problems
    assert problems
    assert all("if they count the classes from 1, subtract 1 from each of them" in problem for problem in problems)
    rewrite_labels(folder, lambda labels: np.where(labels == 255, 255, labels + 1).astype(np.uint8))
    assert not any("subtract" in problem for problem in check_dataset("own_labels").problems), "they are 2 and 3"


class TestTurnedImages:
    """EXIF turns an image, but its annotations were made without that."""

    def test_size_shows_it(self, folder):
        write_turned(folder / "images" / "one.jpg", np.zeros((SIZE[1], SIZE[0], 3), np.uint8), 6)
        [problem] = check_dataset("own_labels").problems
        assert re.search(r"one\.png: is \(40, 60\) .* EXIF turns this image by 90 degrees \(orientation 6\)", problem)

    @pytest.mark.parametrize("orientation", [2, 3, 4])
    def test_size_does_not_show_it(self, folder, orientation):
        write_turned(folder / "images" / "one.jpg", np.zeros((*SIZE, 3), np.uint8), orientation)
        assert note(f"turned by their EXIF orientation: {folder}/images/one.jpg; their annotations must be")

    def test_square_image(self, folder):
        write_turned(folder / "images" / "one.jpg", np.zeros((40, 40, 3), np.uint8), 8)
        Image.new("L", (40, 40)).save(folder / "labels" / "one.png")
        assert note("1 images are turned by their EXIF orientation")


def note(message, dataset="own_labels"):
    """Return whether check_dataset finds no problem, and one note contains a message."""
    report = check_dataset(dataset)
    return not report.problems and sum(message in remark for remark in report.remarks) == 1


def test_colours_as_labels_and_their_conversion(folder, monkeypatch):
    monkeypatch.chdir(folder)
    (folder / "train_colours").mkdir()
    (folder / "train_labels").mkdir()
    colours = np.zeros((*SIZE, 3), np.uint8)
    colours[8:20, 10:30], colours[20:] = (250, 230, 30), (30, 90, 200)
    for path in ("train_colours/0001.png", "labels/one.png"):
        Image.fromarray(colours).save(path)
    [problem] = check_dataset("own_labels").problems
    assert re.search(r"one\.png: .* one channel of class ids, but this one has 3; .* with a palette", problem)
    section = DOCS.read_text().split("**Colours as labels.**")[1]
    exec("\n".join(line[4:] for line in re.search(r"(    .*\n|\n)+", section.partition(":\n")[2])[0].splitlines()))
    labels = np.asarray(Image.open("train_labels/0001.png"))
    assert (np.unique(labels[8:20, 10:30]), np.unique(labels[20:]), labels[0, 0]) == ([0], [2], 255)


def test_images_with_equal_stems_are_both_named(folder):
    Image.new("RGB", SIZE[::-1]).save(folder / "images" / "one.png")
    images = folder / "images"
    both = f"two images with the key 'one': {images / 'one.jpg'} and {images / 'one.png'}; rename one"
    with pytest.raises(DataError, match=re.escape(both)):
        check_dataset("own_labels")
