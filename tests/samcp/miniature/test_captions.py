"""Captions of drawn scenes, and the facts that make them true or false of a region."""

import numpy as np
import pytest
from detectron2.config import get_cfg

from samcp import add_samcp_config
from samcp.errors import UsageError
from samcp.miniature.captions import (
    SIZES,
    SYNONYMS,
    Caption,
    Region,
    agreement,
    caption,
    check_words,
    regions_of,
    truth,
    unknown_words,
)
from samcp.miniature.scenes import STYLES, DrawnObject, DrawnScene, draw_scene
from samcp.miniature.world import CLASSES, PART_CLASSES


def small_scene() -> DrawnScene:
    """Return a house with white walls and a red roof on grass under the sky."""
    image = np.zeros((64, 64, 3), np.uint8)
    y, x = np.mgrid[:64, :64]
    wall, roof = ((x >= 20) & (x < 44) & (y >= top) & (y < bottom) for top, bottom in ((30, 50), (20, 30)))
    house = DrawnObject("house", wall | roof, {"wall": wall, "roof": roof}, {"wall": "white", "roof": "red"})
    sky, grass = (y < 32) & ~house.mask, (y >= 32) & ~house.mask
    return DrawnScene(image, (DrawnObject("sky", sky), DrawnObject("grass", grass), house))


def region(name: str) -> Region:
    return next(found for found in regions_of(small_scene()) if found.name == name)


def captions_of(found: Region, count: int = 300) -> list[Caption]:
    random = np.random.default_rng(0)
    return [caption(random, found) for _ in range(count)]


def test_regions_are_stuff_things_parts_and_the_whole_scene() -> None:
    names = [found.name for found in regions_of(small_scene())]
    assert names == ["sky", "grass", "house", "house wall", "house roof", "scene"]


def test_captions_say_color_size_part_and_place() -> None:
    texts = " | ".join(found.text for found in captions_of(region("house")))
    for words in ("red house", "white and red house", "house with a red roof", "house on grass", "small house"):
        assert words in texts
    assert "roof of a house" in " | ".join(found.text for found in captions_of(region("house roof")))
    assert "sky" in {found.text for found in captions_of(region("sky"))}


def test_captions_are_true_of_their_region_only() -> None:
    house, roof, sky, scene = (region(name) for name in ("house", "house roof", "sky", "scene"))
    for own, others in ((house, [sky, scene]), (roof, [house, sky, scene]), (sky, [house, roof, scene])):
        true, false = truth(captions_of(own), [own, *others])
        assert true[0].all()
        assert not false[0].any()
        assert not true[1:].any()
        assert false[1:].all()


def test_a_general_caption_is_true_of_a_special_region() -> None:
    stated = [
        Caption("a house", frozenset({"house"})),
        Caption("a white house", frozenset({"house", "white"})),
        Caption("a blue house", frozenset({"house", "blue"})),
    ]
    true, false = truth(stated, [region("house")])
    assert true[0].tolist() == [True, True, False]
    assert false[0].tolist() == [False, False, True]


def test_unsaid_facts_are_neither_true_nor_false() -> None:
    """A crop does not show the size of its thing, and a roof is no counterexample of a house."""
    large = [Caption("a large house", frozenset({"house", "large"}))]
    true, false = truth(large, [region("house"), region("house").without_size(), region("house roof")])
    assert not true.any()
    assert false[:, 0].tolist() == [True, False, False]


def test_all_words_of_captions_and_prompts_are_known() -> None:
    cfg = get_cfg()
    add_samcp_config(cfg)
    for seed, style in enumerate(STYLES.values()):
        random = np.random.default_rng(seed)
        found = regions_of(draw_scene(random, style))
        check_words(caption(random, one).text for one in found for _ in range(20))
    words = [*CLASSES, *PART_CLASSES, *SIZES, *(word for words in SYNONYMS.values() for word in words)]
    check_words(prompt.format(word) for prompt in cfg.MODEL.SAMCP.TEXT.PROMPTS for word in words)
    assert set(SYNONYMS) == {*CLASSES}


def test_unknown_words_are_named_with_similar_ones() -> None:
    assert unknown_words(["house", "Zebra crossing"]) == ["crossing", "zebra"]
    with pytest.raises(UsageError, match=r"not 'elephant' \(near: plant\); 'umbrela' \(near: umbrella\)"):
        check_words(["umbrela", "elephant", "house"])


def test_captions_agree_if_one_states_no_more_than_the_other() -> None:
    dog, red_dog, cat = (Caption("", frozenset(facts)) for facts in ({"dog"}, {"dog", "red"}, {"cat"}))
    follows, unlike = agreement([dog, red_dog, cat])
    assert follows.tolist() == [[True, False, False], [True, True, False], [False, False, True]]
    assert unlike.tolist() == [[False, False, True], [False, False, True], [True, True, False]]
