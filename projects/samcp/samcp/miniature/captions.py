"""Captions of the things, parts and stuff of drawn scenes, for the small CLIP.

Whether a caption is true of a region is known from facts, so another dog's "a photo of a dog" is no negative. Facts are
strings, such as "dog", "red" and "on grass".
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import combinations

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from samcp.errors import UsageError
from samcp.miniature.objects import Mask
from samcp.miniature.scenes import DrawnObject, DrawnScene
from samcp.miniature.world import CLASSES, COLORS, PARTS, STUFF
from samcp.model_zoo import SMALL_CLIP
from samcp.vocabulary import nearest_words

# Further words for the classes, which no dataset of drawn scenes uses.
SYNONYMS: Mapping[str, tuple[str, ...]] = {
    "house": ("building", "home", "cottage"),
    "tree": ("plant", "conifer"),
    "person": ("man", "woman", "human", "pedestrian"),
    "car": ("automobile", "vehicle"),
    "boat": ("sailboat", "ship"),
    "dog": ("puppy", "hound"),
    "cat": ("kitten", "kitty"),
    "kite": ("flying kite",),
    "umbrella": ("parasol",),
    "sky": ("clouds", "air"),
    "sea": ("water", "ocean"),
    "grass": ("lawn", "meadow"),
    "sand": ("beach", "desert"),
    "road": ("street", "asphalt"),
    "brick": ("brick wall", "bricks"),
}
SIZES = ("tiny", "small", "medium", "large")

# The first ones are those of MODEL.SAMCP.TEXT.PROMPTS, whose embeddings are averaged.
_TEMPLATES = (
    "a photo of a {}.",
    "This is a photo of a {}",
    "There is a {} in the scene",
    "There is the {} in the scene",
    "a photo of a {} in the scene",
    "This is a photo of a {}.",
    "There is a {} in the scene.",
    "a {}",
    "the {}",
    "{}",
    "a drawing of a {}",
)
_NAME_ONLY = 0.6  # share of the captions that name only the class
_SYNONYM = 0.3  # share of the names of classes that are replaced
_NEAR = 0.15  # of a thing's sides, by which its box is enlarged to find what it is in front of
_MIN_PIXELS = 40  # of a part that is described


@dataclass(frozen=True)
class Caption:
    """Text, and the facts that it states."""

    text: str
    facts: frozenset[str]


@dataclass(frozen=True)
class Region:
    """Thing, part or stuff of a scene.

    Attributes:
        mask: (H, W) its pixels.
        name: class, or class and part, as in "house roof".
        facts: that hold.
        phrases: noun phrases with the facts that they state, as captions.
        possible: facts of which nothing is said; captions that state them are neither true nor false.
    """

    mask: Mask
    name: str
    facts: frozenset[str]
    phrases: tuple[Caption, ...]
    possible: frozenset[str] = frozenset()

    @property
    def size(self) -> str | None:
        """The fact that says its size, None if none does."""
        return next((size for size in SIZES if size in self.facts), None)

    def without_size(self) -> "Region":
        """Return the region without the fact of its size, which a crop does not show."""
        return replace(self, facts=self.facts - {*SIZES}, possible=self.possible | {*SIZES})


def regions_of(scene: DrawnScene) -> list[Region]:
    """Return the stuff and things of a scene, in its order, the parts that are large enough, and the whole scene."""
    stuff = {drawn.name: drawn.mask for drawn in scene.objects if drawn.name in STUFF}
    objects = [_stuff(drawn) if drawn.name in STUFF else _thing(drawn, stuff) for drawn in scene.objects]
    parts = [
        _part(drawn, part) for drawn in scene.objects for part, mask in drawn.parts.items() if mask.sum() >= _MIN_PIXELS
    ]
    return [*objects, *parts, _whole(scene)]


def caption(random: Generator, region: Region) -> Caption:
    """Return a random caption that is true of a region."""
    phrase = region.phrases[0]
    if random.random() > _NAME_ONLY:
        phrase = region.phrases[random.integers(len(region.phrases))]
    text, facts = phrase.text, phrase.facts
    if random.random() < _SYNONYM:
        for name in CLASSES:
            if name in text.split():
                text = text.replace(name, str(random.choice(SYNONYMS[name])), 1)
    if region.size and random.random() < _SYNONYM:
        text, facts = f"{region.size} {text}", facts | {region.size}
    return Caption(_TEMPLATES[random.integers(len(_TEMPLATES))].format(text), facts)


def truth(captions: Sequence[Caption], regions: Sequence[Region]) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Return which captions are true, and which ones are false, (R, C) each; others are neither."""
    facts = sorted({fact for caption in captions for fact in caption.facts})
    stated = _table(facts, (caption.facts for caption in captions))
    holds = _table(facts, (region.facts for region in regions))
    possible = _table(facts, (region.facts | region.possible for region in regions))
    return (1 - holds) @ stated.T == 0, (1 - possible) @ stated.T > 0


def agreement(captions: Sequence[Caption]) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Return which captions follow from another one, and which have nothing in common with it, (C, C) each."""
    facts = sorted({fact for caption in captions for fact in caption.facts})
    stated = _table(facts, (caption.facts for caption in captions))
    return (1 - stated) @ stated.T == 0, stated @ stated.T == 0


@lru_cache(maxsize=1)
def known_words() -> frozenset[str]:
    """Return all words of captions, in lower case."""
    parts = {form for names in PARTS.values() for part in names for form in _forms(part)}
    names = {*CLASSES, *(word for words in SYNONYMS.values() for word in words), *parts}
    texts = [*names, *SIZES, *COLORS, *_TEMPLATES, "scene with and on in front of"]
    return frozenset(word for text in texts for word in _words_of(text))


def unknown_words(texts: Iterable[str]) -> list[str]:
    """Return the words of texts that no caption has.

    >>> unknown_words(["house roof", "green elephant"])
    ['elephant']
    """
    return sorted({word for text in texts for word in _words_of(text)} - known_words())


def check_words(texts: Iterable[str]) -> None:
    """Raise UsageError if texts have words that no caption has, naming known words that are written similarly."""
    known = sorted(known_words())
    near = [f"{word!r} (near: {', '.join(nearest_words(word, known)) or 'nothing'})" for word in unknown_words(texts)]
    if near:
        raise UsageError(
            f"{SMALL_CLIP} knows only the words of drawn scenes, not {'; '.join(near)}; for other words use another "
            "CLIP"
        )


def _words_of(text: str) -> list[str]:
    """Return the words of a text in lower case, without punctuation."""
    return re.findall(r"[^\W_]+", text.lower())


def _stuff(drawn: DrawnObject) -> Region:
    # Templates of prompts say "a small sky", and no size of stuff is wrong.
    facts = frozenset({drawn.name})
    return Region(drawn.mask, drawn.name, facts, (Caption(drawn.name, facts),), frozenset(SIZES))


def _thing(drawn: DrawnObject, stuff: Mapping[str, Mask]) -> Region:
    name = frozenset({drawn.name})
    colors = list(dict.fromkeys(drawn.colors.values()))
    ground = _ground(drawn, stuff)
    phrases = [Caption(drawn.name, name)]
    phrases += [Caption(f"{color} {drawn.name}", name | {color}) for color in colors]
    phrases += [
        Caption(f"{one} and {other} {drawn.name}", name | {one, other}) for one, other in combinations(colors, 2)
    ]
    phrases += [
        Caption(f"{drawn.name} with a {color} {form}", name | {f"{color} {part}"})
        for part, color in drawn.colors.items()
        for form in _forms(part)
    ]
    if ground:
        phrases += [Caption(f"{drawn.name} {on} {ground}", name | {f"on {ground}"}) for on in ("on", "in front of")]
    facts = {fact for phrase in phrases for fact in phrase.facts}
    return Region(drawn.mask, drawn.name, frozenset(facts | {drawn.size}), tuple(phrases))


def _part(drawn: DrawnObject, part: str) -> Region:
    own, whole = f"part {part}", f"of {drawn.name}"
    phrases = []
    for form in _forms(part):
        phrases += [
            Caption(f"{drawn.name} {form}", frozenset({own, whole})),
            Caption(f"{form} of a {drawn.name}", frozenset({own, whole})),
            Caption(form, frozenset({own})),
        ]
        color = drawn.colors.get(part)
        if color:
            phrases.append(Caption(f"{color} {form}", frozenset({own, color})))
            phrases.append(Caption(f"{color} {drawn.name} {form}", frozenset({own, whole, color})))
    facts = {fact for phrase in phrases for fact in phrase.facts}
    # A part is neither an example of its thing nor a counterexample.
    possible = frozenset({drawn.name, *SIZES})
    return Region(drawn.parts[part], f"{drawn.name} {part}", frozenset(facts), tuple(phrases), possible)


def _whole(scene: DrawnScene) -> Region:
    names = list(dict.fromkeys(drawn.name for drawn in scene.objects))
    phrases = [
        Caption(f"scene with {one} and {other}", frozenset({f"with {one}", f"with {other}"}))
        for one, other in combinations(names, 2)
    ] or [Caption(f"scene with {names[0]}", frozenset({f"with {names[0]}"}))]
    facts = frozenset(f"with {name}" for name in names)
    return Region(np.ones(scene.image.shape[:2], bool), "scene", facts, tuple(phrases), frozenset(SIZES))


def _ground(drawn: DrawnObject, stuff: Mapping[str, Mask]) -> str | None:
    """Return the stuff that surrounds a thing."""
    left, top, right, bottom = drawn.box
    x, y = (max(2, round(_NEAR * side)) for side in (right - left, bottom - top))
    window = slice(max(0, top - y), bottom + y), slice(max(0, left - x), right + x)
    pixels = {name: int(mask[window].sum()) for name, mask in stuff.items()}
    best = max(pixels, key=lambda name: pixels[name], default=None)
    return best if best and pixels[best] else None


def _forms(part: str) -> tuple[str, ...]:
    """Return a part's name, and its singular if it is a plural."""
    return (part, part.removesuffix("s")) if part.endswith("s") else (part,)


def _table(facts: Sequence[str], sets: Iterable[frozenset[str]]) -> NDArray[np.float32]:
    """Return (N, F), 1 where a set has a fact."""
    return np.array([[fact in one for fact in facts] for one in sets], np.float32).reshape(-1, len(facts))
