"""samcp segment --task parts: parts inside the objects of an image."""

import json
from pathlib import Path

import numpy as np
import pytest

from proposal_cache import PatchCache
from samcp import cli
from samcp.data.ground_truth import read_panoptic_ids
from samcp.errors import DataError
from samcp.parts import PartWords, segment_parts
from samcp.predictor import Predictor
from tests.conftest import Synthetic
from tests.samcp.test_segment import save_model


def run(*arguments: object) -> None:
    cli.main(["segment", *map(str, arguments)])


def test_parts_are_inside_their_objects(synthetic: Synthetic, tmp_path: Path) -> None:
    picture, weights = synthetic.folder / "val" / "val_00000.jpg", save_model(tmp_path)
    where = (picture, "--patches", synthetic.val_patches, "--weights", weights)
    run(*where, "--words", "disc, sky~", "--output", tmp_path / "wholes")
    run(*where, "--task", "parts", "--parts", "disc > ring, square; sky~ > disc", "--output", tmp_path / "parts")
    wholes = read_panoptic_ids(str(tmp_path / "wholes" / "panoptic" / "val_00000.png"))
    ids = read_panoptic_ids(str(tmp_path / "parts" / "panoptic" / "val_00000.png"))
    content = json.loads((tmp_path / "parts" / "panoptic.json").read_text())
    names = {category["id"]: category["name"] for category in content["categories"]}
    assert list(names.values()) == ["disc", "sky", "disc ring", "disc square", "sky disc"]
    segments = content["annotations"][0]["segments_info"]
    parts = [segment for segment in segments if "part_of" in segment]
    assert parts
    class_of = {s["id"]: names[s["category_id"]] for s in json_segments(tmp_path / "wholes")}
    for segment in segments:
        mask = ids == segment["id"]
        assert mask.sum() == segment["area"] > 0
        assert set(np.unique(wholes[mask])) == {segment.get("part_of", segment["id"])}
    for part in parts:
        assert names[part["category_id"]].startswith(f"{class_of[part['part_of']]} ")
    assert ((ids > 0) == (wholes > 0)).all()


def json_segments(folder: Path) -> list[dict]:
    return json.loads((folder / "panoptic.json").read_text())["annotations"][0]["segments_info"]


def test_both_prompts_are_of_the_wholes(synthetic: Synthetic, tmp_path: Path) -> None:
    picture = synthetic.folder / "val" / "val_00000.jpg"
    scene = Predictor.from_pretrained(save_model(tmp_path))(picture, PatchCache(synthetic.val_patches)["val_00000"])
    result = segment_parts(scene, PartWords.parse("disc > ring, square; sky~ > disc"))
    assert result.vocabulary.names == ("disc", "sky", "disc ring", "disc square", "sky disc")
    assert result.labels.names == ("disc", "sky")
    assert result.labels.scores.shape == (len(scene.patches), 2)
    assert result.group(0).patches == result.group(0, "disc").patches
    for call in (lambda: result.group(0, "disc ring"), lambda: result.affinities("disc ring")):
        with pytest.raises(ValueError, match="'disc ring' is not one of the 2 classes of this result"):
            call()


@pytest.mark.parametrize("text", ["person", "person >", "person > head > nose", "person, dog > head", "> head"])
def test_invalid_parts(text: str) -> None:
    with pytest.raises(DataError):
        PartWords.parse(text)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--task", "parts"), "--task parts and --parts need each other"),
        (("--parts", "cat > head"), "--task parts and --parts need each other"),
        (("--task", "parts", "--parts", "cat > head", "--words", "cat"), "omit --words"),
        (("--task", "parts", "--parts", "cat > snoot"), "snoot"),
    ],
)
def test_errors_before_patches_are_made(synthetic: Synthetic, options: tuple[str, ...], message: str) -> None:
    with pytest.raises(SystemExit, match=f"error: .*{message}"):
        run(synthetic.folder / "val" / "val_00000.jpg", *options)
