"""The classes of a dataset or of a user, each with its synonyms, things and stuff in one numbering."""

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog

from .errors import DataError

STUFF = "~"  # after the name of a class: it has no instances

_FOLDER = Path(__file__).parent / "vocabularies"
# Detectron2's own datasets; others name their vocabulary in their metadata.
_OF_DETECTRON2 = {
    "coco_2017_train_panoptic": "coco",
    "coco_2017_val_panoptic": "coco",
    "ade20k_sem_seg_train": "ade20k",
    "ade20k_sem_seg_val": "ade20k",
    "cityscapes_fine_panoptic_train": "cityscapes",
    "cityscapes_fine_panoptic_val": "cityscapes",
    "cityscapes_fine_sem_seg_train": "cityscapes",
    "cityscapes_fine_sem_seg_val": "cityscapes",
}


@dataclass(frozen=True)
class Vocabulary:
    """C classes with contiguous ids 0..C-1.

    Attributes:
        names: one a class.
        is_thing: one a class; a class that is no thing is stuff.
        synonyms: for each class other words for it; it is scored as the best of its words (paper B.3). Default: none.
    """

    names: tuple[str, ...]
    is_thing: tuple[bool, ...]
    synonyms: tuple[tuple[str, ...], ...] = ()

    def __post_init__(self) -> None:
        if not self.synonyms:
            object.__setattr__(self, "synonyms", ((),) * len(self.names))

    @property
    def words(self) -> tuple[tuple[str, ...], ...]:
        """All words of each class, its name first."""
        return tuple((name, *others) for name, others in zip(self.names, self.synonyms, strict=True))

    def to_json(self) -> str:
        """Text that :meth:`from_json` reads."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> "Vocabulary":
        """What :meth:`to_json` gave."""
        return cls(**{key: _tuples(value) for key, value in json.loads(text).items()})

    @classmethod
    def parse(cls, text: str) -> "Vocabulary":
        """Read a command line's classes: "kite, sea~, person: man | woman". A ``~`` marks stuff.

        Raises:
            DataError: an empty name, or one that is there twice.
        """
        entries = []
        for i, item in enumerate(text.split(","), start=1):
            entries.append((f"vocabulary {text!r}, class {i}", _words(item)))
        return cls._of_entries(entries)

    @classmethod
    def load(cls, source: str | Path) -> "Vocabulary":
        """Read a text file, or one of ours by its name: coco, ade20k, cityscapes, cod10k, pascal_part.

        A line is a class: its name, with a ``~`` behind it where it is stuff, then its synonyms, between commas or as
        :meth:`parse` has them. Empty lines and those that begin with # count for nothing.

        Raises:
            DataError: no such file, no class in it, an empty name, or one that is there twice.
        """
        shipped = _FOLDER / f"{source}.txt"
        file = shipped if shipped.is_file() else Path(source)
        try:
            lines = file.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            ours = ", ".join(sorted(path.stem for path in _FOLDER.glob("*.txt")))
            raise DataError(
                f"vocabulary {source}: is none of {ours}, and as a text file it cannot be read ({error})"
            ) from error
        entries = [
            (f"vocabulary {source}, line {i}", _words(line))
            for i, line in enumerate(lines, start=1)
            if line.strip() and not line.startswith("#")
        ]
        if not entries:
            raise DataError(f"vocabulary {source}: has no classes; write one a line, as in: person, man, woman")
        return cls._of_entries(entries)

    @classmethod
    def read(cls, text: str) -> "Vocabulary":
        """What a command line says: a file, or one of ours by its name (:meth:`load`), or the classes (:meth:`parse`).

        Raises:
            DataError: see there.
        """
        # Many classes are a name too long for a file system to look up.
        is_source = "," not in text and ((_FOLDER / f"{text}.txt").is_file() or Path(text).is_file())
        is_source = is_source or text.endswith(".txt")
        return cls.load(text) if is_source else cls.parse(text)

    @classmethod
    def of_config(cls, cfg: CfgNode) -> "Vocabulary":
        """That of the first training dataset, or of the first test dataset where a config names none to train on.

        Raises:
            DataError: it names no dataset at all; or see :meth:`of_dataset`.
        """
        names = (*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST)
        if not names:
            raise DataError("DATASETS.TRAIN and DATASETS.TEST name no dataset, so that there are no classes; add one")
        return cls.of_dataset(names[0])

    @classmethod
    def of_dataset(cls, name: str) -> "Vocabulary":
        """Read it from Detectron2's metadata.

        Detectron2's "standard" panoptic datasets name all classes in stuff_classes and tell things by
        thing_dataset_id_to_contiguous_id; an instance dataset has thing_classes alone, a semantic one stuff_classes.
        What the classes are called comes from the metadata's vocabulary, as :meth:`read` takes it, if there is one: for
        COCO's "wall-other-merged" is no English.

        Raises:
            DataError: the dataset has no classes, or its vocabulary has not as many.
        """
        metadata = MetadataCatalog.get(name)
        classes = _metadata_classes(name)
        source = metadata.get("vocabulary", _OF_DETECTRON2.get(name))
        if source is None:
            return classes
        vocabulary = cls.read(source)
        if len(vocabulary.names) != len(classes.names):
            raise DataError(
                f"vocabulary {source}: has {len(vocabulary.names)} classes, but dataset {name!r} has "
                f"{len(classes.names)}; write a line for each, in the order of their contiguous ids"
            )
        return replace(vocabulary, is_thing=classes.is_thing)

    @classmethod
    def _of_entries(cls, entries: Iterable[tuple[str, list[str]]]) -> "Vocabulary":
        """Of where each class was found, for messages, and its words, of which the first may be marked as stuff."""
        found: dict[str, str] = {}
        names, is_thing, synonyms = [], [], []
        for where, (marked, *others) in entries:
            name = marked.strip().removesuffix(STUFF)
            words = [word.strip() for word in (name, *others)]
            for word in words:
                if not word:
                    raise DataError(f"{where}: an empty name; take out what separates it from the next")
                if "|" in word or ":" in word:
                    raise DataError(f"{where}: {word!r} is no name; write synonyms as in: person: man | woman")
                if word.casefold() in found:
                    raise DataError(f"{where}: {word!r} is already a word of {found[word.casefold()]}; take one out")
                found[word.casefold()] = where
            names.append(words[0])
            is_thing.append(not marked.strip().endswith(STUFF))
            synonyms.append(tuple(words[1:]))
        return cls(tuple(names), tuple(is_thing), tuple(synonyms))


def _words(text: str) -> list[str]:
    """The words of "person: man | woman", or of "person, man, woman"."""
    name, colon, synonyms = text.partition(":")
    return [name, *synonyms.split("|")] if colon else text.split(",")


def _metadata_classes(name: str) -> Vocabulary:
    """The classes of a dataset under the names that its metadata gives them."""
    metadata = MetadataCatalog.get(name)
    names = metadata.get("stuff_classes")
    if names is not None:
        things = set(metadata.get("thing_dataset_id_to_contiguous_id", {}).values())
        return Vocabulary(tuple(names), tuple(i in things for i in range(len(names))))
    names = metadata.get("thing_classes")
    if names is None:
        raise DataError(f"dataset {name!r} has no stuff_classes and no thing_classes in its metadata; set one of them")
    return Vocabulary(tuple(names), (True,) * len(names))


def _tuples(value: Any) -> Any:
    """json's lists as the tuples they were."""
    return tuple(map(_tuples, value)) if isinstance(value, list) else value
