"""Parts of objects: each object that was found is segmented again, by the words of its parts (paper Fig. 5-7)."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from torch import Tensor

from samcp.errors import DataError
from samcp.result import Result
from samcp.scene import Scene
from samcp.vocabulary import Vocabulary


@dataclass(frozen=True)
class PartWords:
    """Words of W classes and of the parts of each.

    Attributes:
        wholes: the W classes.
        parts: W vocabularies.
    """

    wholes: Vocabulary
    parts: tuple[Vocabulary, ...]

    @classmethod
    def parse(cls, text: str) -> "PartWords":
        """Parse classes and parts of a command line.

        >>> words = PartWords.parse("person: man | woman > head, torso; dog > head, tail")
        >>> words.wholes.names, words.parts[1].names
        (('person', 'dog'), ('head', 'tail'))

        Raises:
            DataError: a class has no parts, or see :meth:`Vocabulary.parse`.
        """
        entries = [entry.split(">") for entry in text.split(";")]
        for entry in entries:
            if len(entry) != 2:
                raise DataError(f"parts {'>'.join(entry)!r}: write a class and its parts as in: person > head, torso")
        wholes = Vocabulary.parse(",".join(whole for whole, _ in entries))
        if len(wholes.names) != len(entries):
            raise DataError(f"parts {text!r}: one class is before each >; separate classes by semicolons")
        return cls(wholes, tuple(Vocabulary.parse(parts) for _, parts in entries))

    @cached_property
    def all(self) -> Vocabulary:
        """The wholes, then the parts of each in order, named by whole and part.

        >>> PartWords.parse("person > head; dog > head, tail").all.names
        ('person', 'dog', 'person head', 'dog head', 'dog tail')
        """
        pairs = [(name, parts) for name, parts in zip(self.wholes.names, self.parts, strict=True)]
        return Vocabulary(
            (*self.wholes.names, *(f"{name} {part}" for name, parts in pairs for part in parts.names)),
            (*self.wholes.is_thing, *(is_thing for parts in self.parts for is_thing in parts.is_thing)),
        )

    def first_part(self, whole: int) -> int:
        """Return the index in :attr:`all` of the first part of a whole."""
        return len(self.wholes.names) + sum(len(parts.names) for parts in self.parts[:whole])


@dataclass(frozen=True, repr=False)
class PartsResult(Result):
    """Result whose panoptic segmentation has parts; its vocabulary is :attr:`PartWords.all`.

    A segment of a part has "part_of", the id of its object. The pixels of an object that no part covers are a segment
    of the object; there is none if all are covered. Both prompts, instances and the semantic segmentation are of the
    wholes.

    Attributes:
        segmentation: the panoptic segmentation.
        wholes: the classes of the predictions, the first ones of the vocabulary.
    """

    segmentation: tuple[Tensor, list[dict[str, Any]]]
    wholes: Vocabulary

    @property
    def panoptic(self) -> tuple[Tensor, list[dict[str, Any]]]:
        return self.segmentation

    @property
    def _predicted(self) -> Vocabulary:
        return self.wholes


def segment_parts(scene: Scene, words: PartWords) -> PartsResult:
    """Segment the wholes, then the parts inside each object with finer patches; parts are cut at its outline.

    Raises:
        ValueError: see :meth:`Scene.segment`.
    """
    result = scene.segment(words.wholes)
    wholes, objects = result.panoptic
    ids = wholes.clone()
    segments: list[dict[str, Any]] = []
    for whole in objects:
        mask = wholes == whole["id"]
        inside = scene.inside(np.asarray(mask), finer=True).segment(words.parts[whole["category_id"]])
        part_ids, parts = inside.panoptic
        for part in parts:
            region = (part_ids == part["id"]) & mask
            part_id = len(objects) + len(segments) + 1
            ids[region] = part_id
            category = words.first_part(whole["category_id"]) + part["category_id"]
            segments.append({**part, "id": part_id, "category_id": category, "part_of": whole["id"]})
    listed = [{**segment, "area": int((ids == segment["id"]).sum())} for segment in [*objects, *segments]]
    fields = {name: getattr(result, name) for name in Result.__dataclass_fields__}
    return PartsResult(
        **{**fields, "vocabulary": words.all},
        segmentation=(ids, [one for one in listed if one["area"]]),
        wholes=words.wholes,
    )
