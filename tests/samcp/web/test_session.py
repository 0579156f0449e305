"""Sessions of the page: what each event makes of a session, without a browser."""

import copy
import json
import zipfile
from dataclasses import replace
from html import unescape

import numpy as np
import pytest
import skimage.data
from PIL import Image

from proposal_cache import ContourGenerator
from samcp import Predictor
from samcp.errors import DataError, UsageError
from samcp.web import session as events
from samcp.web.pictures import find_segments


@pytest.fixture(scope="module")
def photo():
    """Return a photograph of a cat, (100, 150, 3)."""
    return np.asarray(Image.fromarray(skimage.data.chelsea()).resize((150, 100)))


@pytest.fixture(scope="module")
def predictor():
    """Return the shipped model without its enlargement of images, which takes a second per image."""
    model = Predictor.from_pretrained(device="cpu").model
    model.inference.score_threshold = 0.0  # so that something is found in a very small photograph
    return Predictor(model, augmentations=[], image_format="RGB", generator=ContourGenerator(parts=30, patches=50))


@pytest.fixture(scope="module")
def cat(predictor, photo):
    return events.start(predictor, photo, "cat", "cat, sky~")


@pytest.fixture
def network_is_off(predictor, monkeypatch):
    """Make each run of the network an error."""
    for name in ("predict", "encode", "encode_patches"):
        monkeypatch.setattr(predictor.model, name, None)


class TestPhotograph:
    def test_large_photograph_is_reduced(self, tmp_path):
        Image.new("RGB", (2048, 1000)).save(tmp_path / "large.png")
        assert events.read_photograph(tmp_path / "large.png").shape == (500, 1024, 3)

    def test_small_photograph_keeps_its_pixels(self, photo, tmp_path):
        Image.fromarray(photo).save(tmp_path / "cat.png")
        assert np.array_equal(events.read_photograph(tmp_path / "cat.png"), photo)

    def test_too_many_pixels_are_rejected_before_decoding(self, tmp_path, monkeypatch):
        Image.new("1", (9000, 8000)).save(tmp_path / "huge.png")
        monkeypatch.setattr(events, "read_image", None)
        with pytest.raises(DataError, match=r"^huge.png has 9000 x 8000 pixels, .* 72 million; at most 50 million"):
            events.read_photograph(tmp_path / "huge.png")

    def test_too_many_bytes_are_rejected(self, tmp_path, monkeypatch):
        (tmp_path / "heavy.jpg").write_bytes(bytes(22 * 2**20))
        with pytest.raises(DataError, match=r"^heavy.jpg has 22 MB; at most 20 MB are allowed$"):
            events.read_photograph(tmp_path / "heavy.jpg")

    def test_damaged_photograph_is_named_without_its_path(self, photo, tmp_path):
        Image.fromarray(photo).save(tmp_path / "cut.png")
        (tmp_path / "cut.png").write_bytes((tmp_path / "cut.png").read_bytes()[:2000])
        with pytest.raises(ValueError, match=r"^cut.png is not a photograph that can be read"):
            events.read_photograph(tmp_path / "cut.png")

    def test_text_is_rejected(self, tmp_path):
        (tmp_path / "notes.jpg").write_text("no image")
        with pytest.raises(DataError, match=r"^notes.jpg is not a photograph that can be read; use JPEG, PNG"):
            events.read_photograph(tmp_path / "notes.jpg")


class TestWords:
    def test_legend_names_the_words(self, cat):
        assert "</i>cat" in events.legend(cat)
        assert "not found: cat, sky" in events.legend(events.merge_again(cat, confidence=1, merging=0.5))

    def test_markup_in_words_is_escaped(self, cat):
        vocabulary = replace(cat.result.vocabulary, names=("<b>", "sky"))
        session = replace(cat, result=replace(cat.result, vocabulary=vocabulary))
        assert "<b>" not in events.legend(session)
        assert "<b>" in unescape(events.legend(session))

    def test_empty_text_asks_for_the_default_words(self, cat, predictor):
        assert events.ask(cat, " ").result.vocabulary == predictor.vocabulary

    def test_names_of_files_are_words(self, cat, tmp_path):
        """A visitor cannot read files of the server."""
        (tmp_path / "words.txt").write_text("cat")
        with pytest.raises(ValueError, match="unknown without a text encoder"):
            events.ask(cat, str(tmp_path / "words.txt"))

    def test_too_many_words_are_rejected(self, cat):
        with pytest.raises(UsageError, match="these are 201 words; at most 200 are allowed"):
            events.ask(cat, ",".join(map(str, range(201))))

    def test_thresholds_outlast_other_words(self, cat):
        changed = events.merge_again(cat, confidence=0.2, merging=0.7)
        inference = events.ask(changed, "cat, dog").result.inference
        assert (inference.score_threshold, inference.member_threshold) == (0.2, 0.7)


class TestThresholds:
    @pytest.mark.usefixtures("network_is_off")
    @pytest.mark.parametrize("view", ["panoptic", "instance"])
    def test_confidence_of_1_leaves_no_segments(self, cat, view):
        session = events.show(cat, view)
        assert find_segments(session.result, view).classes
        changed = events.merge_again(session, confidence=1.0, merging=0.5)
        assert not find_segments(changed.result, view).classes
        assert not np.array_equal(events.picture(session), events.picture(changed))

    @pytest.mark.parametrize("rule", ["mean", "nested"])
    def test_semantic_view_has_a_confidence_except_by_the_rule_paper(self, cat, rule):
        semantic = events.show(cat, "semantic")
        inference = copy.copy(cat.result.inference)
        inference.merge = "paper"
        assert events.confidence(replace(semantic, result=replace(cat.result, inference=inference))) is None
        inference.merge = rule
        semantic = replace(semantic, result=replace(cat.result, inference=inference))
        assert events.confidence(semantic) == inference.semantic_threshold
        assert not find_segments(events.merge_again(semantic, confidence=1, merging=0.5).result, "semantic").classes

    @pytest.mark.usefixtures("network_is_off")
    def test_merging_threshold_changes_the_group(self, cat):
        session = events.click(cat, 75, 60)
        sizes = [len(events.merge_again(session, confidence=0, merging=m).choice.group.patches) for m in (0.1, 0.9)]
        assert sizes[0] > sizes[1]

    def test_sessions_of_others_do_not_change(self, cat, predictor):
        events.merge_again(cat, confidence=0.9, merging=0.9)
        assert cat.result.inference.score_threshold == predictor.model.inference.score_threshold == 0


class TestClick:
    @pytest.mark.usefixtures("network_is_off")
    def test_clicks_at_one_place_choose_larger_and_larger_patches(self, cat):
        first = events.click(cat, 75, 60)
        second = events.click(first, 76, 60)
        areas = cat.result.patches.areas
        assert areas[first.choice.patch] < areas[second.choice.patch]
        assert first.note.startswith("Patch 1 of")
        assert second.note.startswith("Patch 2 of")

    def test_bars_are_prompt_1_of_the_patch(self, cat):
        session = events.click(cat, 75, 60)
        labels = session.result.labels
        assert events.bars(session) == pytest.approx(
            dict(zip(labels.names, labels.scores[session.choice.patch].tolist(), strict=True))
        )
        assert events.bars(cat) == {}

    def test_group_is_prompt_2_of_the_patch(self, cat):
        session = events.click(cat, 75, 60)
        assert session.choice.patch in session.choice.group.patches
        assert events.group_text(session).endswith(f"are one cat (score {session.choice.group.score:.2f}).")

    def test_pixels_outside_the_group_are_dimmed(self, cat):
        session = events.click(cat, 75, 60)
        patch = session.choice.patch
        session = replace(session, choice=replace(session.choice, group=None))  # of the patch alone
        dimmed = events.picture(session).sum(2) < cat.result.image.sum(2)
        [inside] = cat.result.patches.decode([patch])
        assert dimmed[~inside].mean() > 0.9
        assert dimmed[inside].mean() < 0.3

    def test_border_belongs_to_the_picture(self, cat):
        assert events.click(cat, 150, 100).choice.patch == events.click(cat, 149, 99).choice.patch

    def test_stuff_has_no_group(self, cat):
        session = events.click(events.ask(cat, "sky~"), 75, 60)
        assert session.choice.group is None
        assert list(events.bars(session)) == ["sky"]

    def test_point_without_patch_is_a_note(self, cat):
        nowhere = replace(cat, result=replace(cat.result, patches=cat.result.patches.select(slice(0))))
        assert events.click(nowhere, 75, 60).note == "There is no patch at this point."


class TestLookCloser:
    def test_second_corner_adds_patches(self, cat):
        first = events.mark_corner(cat, 100, 80)
        assert first.note == "Now click the opposite corner."
        closer = events.mark_corner(first, 20, 10)
        added = len(closer.result.patches) - len(cat.result.patches)
        assert added > 0
        assert closer.note == f"{added} finer patches were added inside the box."
        assert (closer.box, closer.corner) == ((20, 10, 100, 80), None)

    def test_small_box_is_rejected(self, cat):
        with pytest.raises(UsageError, match="the box is too small"):
            events.mark_corner(events.mark_corner(cat, 20, 10), 90, 10)

    def test_first_corner_can_be_forgotten(self, cat):
        assert events.click(events.mark_corner(cat, 20, 10), 20, 10).corner is None


@pytest.mark.parametrize(
    ("view", "files"),
    [
        ("panoptic", {"cat.jpg", "panoptic/cat.png", "cat.json", "view.png"}),
        ("instance", {"cat.jpg", "cat.json", "classes.json", "view.png"}),
        ("patches", {"cat.jpg", "panoptic/cat.png", "cat.json", "view.png"}),
    ],
)
def test_zip_file_has_the_view_and_the_files_of_samcp_segment(cat, tmp_path, view, files):
    session = events.show(cat, view)
    with zipfile.ZipFile(events.write_files(session, tmp_path)) as archive:
        assert set(archive.namelist()) == files
        json.loads(archive.read("cat.json"))
        assert np.array_equal(Image.open(archive.open("view.png")), events.picture(session))
