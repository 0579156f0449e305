"""The classes of a dataset or of a user, each with its synonyms, things and stuff in one numbering."""

import json
import os
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog

from samcp.errors import DataError

STUFF = "~"  # after the name of a class: it has no instances

_FC_CLIP_LINE = re.compile(r"\d+:")
_FC_CLIP_NO_CLASS = "invalid_class_id"
_FOLDER = Path(__file__).parent / "vocabularies"


@dataclass(frozen=True)
class Vocabulary:
    """C classes with contiguous ids 0..C-1.

    Attributes:
        names: one a class.
        is_thing: one a class; a class that is no thing is stuff.
        synonyms: for each class other words for it; it is scored as the best of its words (paper B.3). Default: none.
            Two classes may share a synonym.

    Raises:
        DataError: not as many of each, or none, or two classes with the same name (see :func:`word_key`).
    """

    names: tuple[str, ...]
    is_thing: tuple[bool, ...]
    synonyms: tuple[tuple[str, ...], ...] = ()

    def __post_init__(self) -> None:
        if not self.synonyms:
            object.__setattr__(self, "synonyms", ((),) * len(self.names))
        lengths = len(self.names), len(self.is_thing), len(self.synonyms)
        if len(set(lengths)) > 1 or not self.names:
            raise DataError(
                f"a vocabulary of {lengths} names, kinds and synonyms; give as many of each, and one at least"
            )
        counts = Counter(map(word_key, self.names))
        twice = [name for name, n in counts.items() if n > 1]
        if twice:
            raise DataError(f"a vocabulary has the names {twice} more than once; remove all but one of each")

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
            DataError: an empty name, one that is there twice, or a ``~`` elsewhere than behind a name.
        """
        return cls._of_entries(
            (f"vocabulary {text!r}, class {i}", _words(item)) for i, item in enumerate(text.split(","), start=1)
        )

    @classmethod
    def of_list(cls, classes: Sequence[str]) -> "Vocabulary":
        """Read a list of classes, each of them written as a line of a file (:meth:`load`).

        Raises:
            DataError: no class, or see :meth:`parse`.
        """
        if not classes:
            raise DataError("vocabulary: the list has no classes; write them as in: [kite, sea~]")
        return cls._of_entries((f"vocabulary, class {i}", _words(line)) for i, line in enumerate(classes, start=1))

    @classmethod
    def load(cls, source: str | Path) -> "Vocabulary":
        """Read a text file, or one of ours by its name: coco, ade20k, cityscapes, cod10k, pascal_part.

        A line is a class: its name, with a ``~`` behind it where it is stuff, then behind a comma or colon its
        synonyms, between commas or, behind the colon, as :meth:`parse` has them. Empty lines and those that begin
        with # are skipped. FC-CLIP's files, with lines as "1:person,child,girl", are read as they are: without the ids,
        without the ids of no class ("invalid_class_id"), and with words that several classes have.

        Raises:
            DataError: no such file, no class in it, or see :meth:`parse`.
        """
        file = _shipped().get(str(source).casefold(), Path(source))
        try:
            lines = file.read_text(encoding="utf-8-sig").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            ours = ", ".join(_shipped())
            raise DataError(
                f"vocabulary {source}: is none of {ours}, and as a text file it cannot be read ({error})"
            ) from error
        entries = [
            (f"vocabulary {source}, line {i}", _words(line))
            for i, line in enumerate(lines, start=1)
            if line.strip() and not line.strip().startswith("#")
        ]
        if not entries:
            raise DataError(f"vocabulary {source}: has no classes; write one a line, as in: person, man, woman")
        if all(_FC_CLIP_LINE.match(line) for line in lines if line.strip()):
            return cls._of_fc_clip(lines)
        return cls._of_entries(entries)

    @classmethod
    def _of_fc_clip(cls, lines: Iterable[str]) -> "Vocabulary":
        """Read "ID:name,synonym,..." lines; all classes are things until a dataset says otherwise."""
        classes = [line.partition(":")[2].split(",") for line in lines if line.strip()]
        words = [[word.strip() for word in names if word.strip()] for names in classes]
        words = [names for names in words if names and names[0] != _FC_CLIP_NO_CLASS]
        return cls(
            names=tuple(names[0] for names in words),
            is_thing=(True,) * len(words),
            synonyms=tuple(tuple(dict.fromkeys(names[1:])) for names in words),
        )

    @classmethod
    def read(cls, source: str | Sequence[str]) -> "Vocabulary":
        """What a user gives: a file, or one of ours by its name (:meth:`load`), or the classes.

        Args:
            source: a text with a / and neither comma nor colon, or with .txt at its end, is a file even where there is
                none, so that a wrong path becomes no class. Other texts are classes (:meth:`parse`), and so is a list
                (:meth:`of_list`).

        Raises:
            DataError: see there.
        """
        if not isinstance(source, str):
            return cls.of_list(source)
        is_file = "," not in source and (source.casefold() in _shipped() or os.path.isfile(source))
        return cls.load(source) if is_file or is_path(source) else cls.parse(source)

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
        names, is_thing = _metadata_classes(name)
        source = MetadataCatalog.get(name).get("vocabulary")
        try:
            vocabulary = cls(names, is_thing) if source is None else cls.read(source)
        except DataError as error:
            raise DataError(f"dataset {name!r}: {error}") from error
        if len(vocabulary.names) != len(names):
            raise DataError(
                f"vocabulary {source}: has {len(vocabulary.names)} classes, but dataset {name!r} has {len(names)}; "
                "write a line for each, in the order of their contiguous ids"
            )
        return replace(vocabulary, is_thing=is_thing)

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
                if STUFF in word:
                    raise DataError(
                        f"{where}: {word!r} has a {STUFF} in it; one behind the name of a class marks it as stuff, and "
                        "there is no other, as in: sea~: ocean | water"
                    )
                key = word_key(word)
                if key in found:
                    raise DataError(f"{where}: {word!r} is already a word of {found[key]}; take one out")
                found[key] = where
            names.append(words[0])
            is_thing.append(not marked.strip().endswith(STUFF))
            synonyms.append(tuple(words[1:]))
        return cls(tuple(names), tuple(is_thing), tuple(synonyms))


def word_key(word: str) -> str:
    """What words have in common that mean the same to a reader: case, blanks and how letters are encoded are left out.

    >>> word_key("Café  au lait") == word_key("cafe\\u0301 au lait")
    True
    """
    return " ".join(unicodedata.normalize("NFKC", word).casefold().split())


def is_path(text: str) -> bool:
    """Whether a text says by its form that it is a file's name, be the file there or not."""
    return text.endswith(".txt") or ("/" in text and "," not in text and ":" not in text)


def _shipped() -> dict[str, Path]:
    """The vocabularies that come with the project: name -> file."""
    return {path.stem: path for path in sorted(_FOLDER.glob("*.txt"))}


def _words(text: str) -> list[str]:
    """The words of "person: man | woman", or of "person: man, woman", or of "person, man, woman"."""
    name, colon, synonyms = text.partition(":")
    return [name, *re.split(r"[|,]", synonyms)] if colon else text.split(",")


def _metadata_classes(name: str) -> tuple[tuple[str, ...], tuple[bool, ...]]:
    """The names that a dataset's metadata give its classes, and which are things.

    Raises:
        DataError: they give none.
    """
    metadata = MetadataCatalog.get(name)
    names = metadata.get("stuff_classes")
    if names is not None:
        things = set(metadata.get("thing_dataset_id_to_contiguous_id", {}).values())
        return tuple(names), tuple(i in things for i in range(len(names)))
    names = metadata.get("thing_classes")
    if names is None:
        raise DataError(f"dataset {name!r} has no stuff_classes and no thing_classes in its metadata; set one of them")
    return tuple(names), (True,) * len(names)


def _tuples(value: Any) -> Any:
    """json's lists as the tuples they were."""
    return tuple(map(_tuples, value)) if isinstance(value, list) else value
