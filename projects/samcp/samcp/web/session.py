"""Session of a visitor of the page, and what each event makes of it; needs no browser."""

import copy
import os
import zipfile
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from PIL import Image

from proposal_cache import Patches
from proposal_cache.generation.sources import image_size, read_image
from proposal_cache.visualize import draw_patches
from samcp.errors import DataError, UsageError
from samcp.predictor import Predictor
from samcp.result import Group, Result
from samcp.scene import Scene
from samcp.vocabulary import Vocabulary
from samcp.web.pictures import (
    Picture,
    draw_legend,
    draw_segments,
    find_segments,
    highlight,
    outline_box,
    segment_colors,
)

MAX_BYTES = 20 * 2**20  # of a file
MAX_PIXELS = 50_000_000  # of a file's image
MAX_SIDE = 1024  # pixels; larger images are reduced to it
MAX_WORDS = 200  # classes of a question
BARS = 5  # classes of Prompt I

_NEAR = 0.02  # of the image's longer side, between clicks at the same place
_MIN_BOX = 0.02  # of the image's longer side
_CARRIED = ("score_threshold", "semantic_threshold", "member_threshold")  # settings that outlast a question


@dataclass(frozen=True)
class Choice:
    """Patch that was clicked.

    Attributes:
        point: x and y in pixels.
        patch: index of the patch.
        group: patches of the same instance by Prompt II, or None if no instance has the patch.
        name: class of the group, or "".
    """

    point: tuple[int, int]
    patch: int
    group: Group | None
    name: str


@dataclass(frozen=True)
class Session:
    """Photograph, words and view of one visitor; immutable, so that two visitors may share a scene.

    Attributes:
        name: of the photograph, without suffix.
        scene: its patches and features.
        result: predictions for the words.
        view: "panoptic", "instance", "semantic" or "patches".
        choice: the patch that was clicked, or None.
        corner: first corner (x, y) of a box to look closer at, or None.
        box: the last box that was looked at, or None.
        note: one sentence about the last event.
    """

    name: str
    scene: Scene
    result: Result
    view: str
    choice: Choice | None = None
    corner: tuple[int, int] | None = None
    box: tuple[int, int, int, int] | None = None
    note: str = ""


def read_photograph(path: str | os.PathLike[str]) -> Picture:
    """Return the pixels of an uploaded file, reduced to a longest side of MAX_SIDE.

    Raises:
        DataError: the file or the image is too large, or it is not an image.
    """
    name, size = Path(path).name, os.path.getsize(path)
    if size > MAX_BYTES:
        raise DataError(f"{name} has {size / 2**20:.0f} MB; at most {MAX_BYTES >> 20} MB are allowed")
    shape = image_size(path)  # from the header, before anything is decoded
    if shape is None:
        raise DataError(f"{name} is not a photograph that can be read; use JPEG, PNG, WebP, TIFF or BMP")
    if shape[0] * shape[1] > MAX_PIXELS:
        raise DataError(
            f"{name} has {shape[0]} x {shape[1]} pixels, which is {shape[0] * shape[1] / 1e6:.0f} million; at most "
            f"{MAX_PIXELS / 1e6:.0f} million are allowed"
        )
    image = Image.fromarray(read_image(name, Path(path).read_bytes()))  # errors contain the name, not the path
    image.thumbnail((MAX_SIDE, MAX_SIDE), Image.Resampling.LANCZOS)
    return np.asarray(image)


def start(predictor: Predictor, image: Picture, name: str, words: str = "") -> Session:
    """Return the session of a new photograph; the view is panoptic, or semantic if the model has no instances."""
    vocabulary = _read_words(predictor, words)
    scene = predictor(image)
    result = scene.segment(vocabulary)
    return Session(name, scene, result, result.task, note=f"The photograph has {len(scene.patches)} patches.")


def ask(session: Session, words: str) -> Session:
    """Return the session with the result for other words; empty for the default ones of the model.

    Raises:
        ValueError: the words cannot be parsed, are too many, or are unknown to the model.
    """
    return _ask(session, session.scene, _read_words(session.scene.predictor, words))


def show(session: Session, view: str) -> Session:
    """Return the session with another view."""
    return replace(session, view=view, choice=None, note="")


def confidence(session: Session) -> float | None:
    """Return the threshold that the slider "confidence" sets in the view, or None if the view has none."""
    key = _confidence_key(session)
    return None if key is None else getattr(session.result.inference, key)


def merge_again(session: Session, *, confidence: float, merging: float) -> Session:
    """Return the session with other thresholds; the network does not run.

    Args:
        confidence: minimum score of a segment.
        merging: minimum affinity of the patches that are merged.
    """
    key = _confidence_key(session)
    thresholds = {"member_threshold": merging} if key is None else {"member_threshold": merging, key: confidence}
    result = _with_thresholds(session.result, **thresholds)
    choice = None if session.choice is None else _choose(result, session.choice.patch, session.choice.point)
    return replace(session, result=result, choice=choice)


def click(session: Session, x: int, y: int) -> Session:
    """Return the session with the smallest patch at a point chosen; another click there chooses the next larger one."""
    here = _patches_at(session.result.patches, x, y)
    if not here:
        return replace(session, choice=None, corner=None, note="There is no patch at this point.")
    index, last = 0, session.choice
    if last is not None and last.patch in here and _near(session, last.point, (x, y)):
        index = (here.index(last.patch) + 1) % len(here)
    following = "; click again for the next larger one." if index + 1 < len(here) else "."
    note = f"Patch {index + 1} of {len(here)} at this point{following}"
    return replace(session, choice=_choose(session.result, here[index], (x, y)), corner=None, note=note)


def mark_corner(session: Session, x: int, y: int) -> Session:
    """Return the session with the first corner of a box, or with finer patches in the box if this is the second one.

    Raises:
        UsageError: the box is very small.
    """
    if session.corner is None:
        return replace(session, corner=(x, y), choice=None, note="Now click the opposite corner.")
    (x0, x1), (y0, y1) = sorted((session.corner[0], x)), sorted((session.corner[1], y))
    if min(x1 - x0, y1 - y0) < _MIN_BOX * max(session.result.image.shape):
        raise UsageError("the box is too small; click two opposite corners of a larger one")
    box = (x0, y0, x1, y1)
    scene = session.scene.denser([box])
    added = len(scene.patches) - len(session.scene.patches)
    note = f"{added} finer patches were added inside the box."
    return replace(_ask(session, scene, session.result.vocabulary), corner=None, box=box, note=note)


def picture(session: Session) -> Picture:
    """Draw the group of the chosen patch, or without a choice the view; with the corner and the box."""
    result, choice = session.result, session.choice
    if choice is not None:
        [patch] = result.patches.decode([choice.patch])
        canvas = highlight(result.image, patch if choice.group is None else choice.group.mask, patch)
    elif session.view == "patches":
        canvas = draw_patches(result.patches, result.image)
    else:
        segments = find_segments(result, session.view)
        canvas = draw_segments(result.image, segments, segment_colors(segments))
    if session.corner is not None:
        x, y = session.corner
        canvas = outline_box(canvas, (max(0, x - 3), max(0, y - 3), x + 3, y + 3))
    return canvas if session.box is None else outline_box(canvas, session.box)


def legend(session: Session) -> str:
    """Return the legend of the view as HTML."""
    if session.view == "patches":
        return f"<ul><li>{len(session.result.patches)} patches, which overlap</li></ul>"
    segments = find_segments(session.result, session.view)
    return draw_legend(segments, segment_colors(segments), session.result.vocabulary.names)


def bars(session: Session) -> dict[str, float]:
    """Return Prompt I of the chosen patch: its best classes and their scores; empty without a choice."""
    if session.choice is None:
        return {}
    scores = session.result.labels.scores[session.choice.patch]
    best = scores.topk(min(BARS, len(scores)))
    names = session.result.vocabulary.names
    return {names[c]: float(score) for score, c in zip(best.values, best.indices.tolist(), strict=True)}


def group_text(session: Session) -> str:
    """Return Prompt II of the chosen patch as a sentence."""
    choice = session.choice
    if choice is None:
        return ""
    if choice.group is None:
        return "Prompt II: no object of these words contains this patch."
    others, score = len(choice.group.patches) - 1, choice.group.score
    return f"Prompt II: this patch and {others} others are one {choice.name} (score {score:.2f})."


def write_files(session: Session, folder: Path) -> Path:
    """Write a zip file of the picture, the map (PNG) and the json in COCO's formats, and return its path."""
    path = folder / f"{session.name}.zip"
    task = session.result.task if session.view == "patches" else session.view
    with TemporaryDirectory() as temporary, zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for file in session.result.save(temporary, session.name, task):
            archive.write(file, file.relative_to(temporary))
        view = Path(temporary) / "view.png"
        Image.fromarray(picture(session)).save(view)
        archive.write(view, view.name)
    return path


def _read_words(predictor: Predictor, text: str) -> Vocabulary:
    """Return the classes of a text, which is never read as the name of a file; see :func:`ask` for the errors."""
    if not text.strip():
        return predictor.vocabulary
    vocabulary = Vocabulary.parse(text)
    if len(vocabulary.names) > MAX_WORDS:
        raise UsageError(f"these are {len(vocabulary.names)} words; at most {MAX_WORDS} are allowed")
    predictor.check_words(vocabulary)
    return vocabulary


def _ask(session: Session, scene: Scene, vocabulary: Vocabulary) -> Session:
    kept = {name: getattr(session.result.inference, name) for name in _CARRIED}
    result = _with_thresholds(scene.segment(vocabulary), **kept)
    return replace(session, scene=scene, result=result, choice=None, note="")


def _confidence_key(session: Session) -> str | None:
    """Return the attribute of :class:`Inference` with the minimum score of a segment in the view."""
    if session.view == "semantic":  # by the rule "paper", a pixel has the best class, whatever its score
        return "semantic_threshold" if session.result.inference.merge != "paper" else None
    return None if session.view == "patches" else "score_threshold"


def _with_thresholds(result: Result, **thresholds: float) -> Result:
    inference = copy.copy(result.inference)
    for name, value in thresholds.items():
        setattr(inference, name, value)
    return replace(result, inference=inference)


def _patches_at(patches: Patches, x: int, y: int) -> list[int]:
    """Return the patches that cover a pixel, in ascending order of their areas, one per area."""
    covering = patches.covering(min(x, patches.width - 1), min(y, patches.height - 1))  # a browser rounds up
    return covering[np.unique(patches.areas[covering], return_index=True)[1]].tolist()


def _near(session: Session, a: tuple[int, int], b: tuple[int, int]) -> bool:
    return max(abs(a[0] - b[0]), abs(a[1] - b[1])) <= _NEAR * max(session.result.image.shape)


def _choose(result: Result, patch: int, point: tuple[int, int]) -> Choice:
    """Return a patch with its group of the thing class that has its highest score."""
    things = [c for c, is_thing in enumerate(result.vocabulary.is_thing) if is_thing]
    if not things or not result.has_instances:
        return Choice(point, patch, None, "")
    name = result.vocabulary.names[things[int(result.labels.scores[patch, things].argmax())]]
    group = result.group(patch, name)
    return Choice(point, patch, group, name) if group.score > 0 else Choice(point, patch, None, "")
