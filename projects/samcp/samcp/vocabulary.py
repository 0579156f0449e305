"""Vocabulary: the classes of a dataset or a user, with synonyms; things and stuff share one numbering."""

import difflib
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
from detectron2.data import DatasetCatalog, MetadataCatalog

from proposal_cache.errors import reason
from samcp.errors import DataError

STUFF = "~"  # suffix of the name of a stuff class

_NEAREST = 5
_FC_CLIP_LINE = re.compile(r"\d+:")
_FC_CLIP_NO_CLASS = "invalid_class_id"
_FOLDER = Path(__file__).parent / "vocabularies"


@dataclass(frozen=True)
class Vocabulary:
    """Vocabulary of C classes with contiguous ids 0..C-1.

    Attributes:
        names: one per class.
        is_thing: one per class; False for stuff.
        synonyms: other words for each class; the score of a class is the maximum over its words (paper B.3). Default:
            none. Two classes may share a synonym.

    Raises:
        DataError: the lengths differ or are 0, or two classes have the same name (see :func:`word_key`).
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
                f"a vocabulary has {lengths} names, kinds and synonyms; the numbers must be equal and at least 1"
            )
        counts = Counter(map(word_key, self.names))
        duplicates = [name for name, n in counts.items() if n > 1]
        if duplicates:
            raise DataError(f"a vocabulary has duplicate names {duplicates}; remove all but one of each")

    @property
    def words(self) -> tuple[tuple[str, ...], ...]:
        """Words of each class, its name first."""
        return tuple((name, *others) for name, others in zip(self.names, self.synonyms, strict=True))

    def known_to(self, other: "Vocabulary") -> list[bool]:
        """Return for each class whether another vocabulary has one of its words.

        >>> Vocabulary.parse("cat, sofa: couch").known_to(Vocabulary.parse("couch, dog"))
        [False, True]
        """
        known = {word_key(word) for words in other.words for word in words}
        return [not known.isdisjoint(map(word_key, words)) for words in self.words]

    def select(self, classes: Sequence[int]) -> "Vocabulary":
        """Return the vocabulary of some of the classes."""
        return Vocabulary(*(tuple(values[i] for i in classes) for values in vars(self).values()))

    def to_json(self) -> str:
        """Return json text for :meth:`from_json`."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> "Vocabulary":
        """Return the vocabulary of a text of :meth:`to_json`.

        Raises:
            DataError: it is the text of something else.
        """
        try:
            columns = {key: _tuples(value) for key, value in json.loads(text).items()}
            vocabulary = cls(**columns)
            classes = list(zip(vocabulary.names, vocabulary.is_thing, vocabulary.synonyms, strict=True))
            if not all(isinstance(w, str) for name, _, words in classes for w in (name, *words)):
                raise TypeError("a word is not text")
        except (AttributeError, RecursionError, TypeError, ValueError) as error:
            raise DataError(f"its vocabulary is damaged ({error})") from error
        return vocabulary

    @classmethod
    def parse(cls, text: str) -> "Vocabulary":
        """Parse classes of a command line: "kite, sea~, person: man | woman". A ``~`` marks stuff.

        Raises:
            DataError: there are no words, a name is empty or a duplicate, or a ``~`` is not at the end of a name.
        """
        if not text.strip():
            raise DataError('vocabulary: there are no words; write them as in "kite, sea~"')
        return cls._of_entries(
            (f"vocabulary {text!r}, class {i}", _words(item)) for i, item in enumerate(text.split(","), start=1)
        )

    @classmethod
    def of_list(cls, classes: Sequence[str]) -> "Vocabulary":
        """Parse a list of classes, each in the format of a line of a file (:meth:`load`).

        Raises:
            DataError: the list is empty, or see :meth:`parse`.
        """
        if not classes:
            raise DataError("vocabulary: the list has no classes; write it as in: [kite, sea~]")
        return cls._of_entries((f"vocabulary, class {i}", _words(line)) for i, line in enumerate(classes, start=1))

    @classmethod
    def load(cls, source: str | Path) -> "Vocabulary":
        """Load a text file, or a packaged vocabulary: coco, ade20k, cityscapes, cod10k, pascal_part.

        Each line is a class, as in "name, synonym, synonym" or "name: synonym | synonym"; a ``~`` after the name marks
        stuff. Empty lines and lines that begin with # are skipped. FC-CLIP's files, with lines such as
        "1:person,child,girl", are supported: ids and the lines of "invalid_class_id" are skipped, and classes may share
        words.

        Raises:
            DataError: the file is missing or has no classes, or see :meth:`parse`.
        """
        file = _packaged().get(str(source).casefold(), Path(source))
        try:
            lines = file.read_text(encoding="utf-8-sig").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            packaged = ", ".join(_packaged())
            raise DataError(
                f"vocabulary {source}: neither one of {packaged} nor a readable text file ({reason(error)})"
            ) from error
        entries = [
            (f"vocabulary {source}, line {i}", _words(line))
            for i, line in enumerate(lines, start=1)
            if line.strip() and not line.strip().startswith("#")
        ]
        if not entries:
            raise DataError(f"vocabulary {source}: no classes; write one per line, as in: person, man, woman")
        if all(_FC_CLIP_LINE.match(line) for line in lines if line.strip()):
            return cls._of_fc_clip(lines)
        return cls._of_entries(entries)

    @classmethod
    def _of_fc_clip(cls, lines: Iterable[str]) -> "Vocabulary":
        """Parse "ID:name,synonym,..." lines; all classes are things unless a dataset defines them as stuff."""
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
        """Read a user's vocabulary: a file, the name of a packaged one (:meth:`load`), or the classes.

        Args:
            source: a text with a / and neither comma nor colon, or with the suffix .txt, is always a path, so that a
                wrong path is not read as a class. Other texts are classes (:meth:`parse`), as are lists
                (:meth:`of_list`).

        Raises:
            DataError: see :meth:`load`, :meth:`parse` and :meth:`of_list`.
        """
        if not isinstance(source, str):
            return cls.of_list(source)
        is_file = "," not in source and (source.casefold() in _packaged() or os.path.isfile(source))
        return cls.load(source) if is_file or is_path(source) else cls.parse(source)

    @classmethod
    def of_config(cls, cfg: CfgNode) -> "Vocabulary":
        """Return the vocabulary of a config's first training dataset, or of its first test dataset if it has none.

        Raises:
            DataError: the config has no dataset, or see :meth:`of_dataset`.
        """
        names = (*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST)
        if not names:
            raise DataError("DATASETS.TRAIN and DATASETS.TEST are empty, so there are no classes; add a dataset")
        return cls.of_dataset(names[0])

    @classmethod
    def of_dataset(cls, name: str) -> "Vocabulary":
        """Return the vocabulary of a registered dataset, from Detectron2's metadata.

        Detectron2's "standard" panoptic datasets have all classes in stuff_classes and the things in
        thing_dataset_id_to_contiguous_id; an instance dataset has only thing_classes, a semantic one only
        stuff_classes. If the metadata has a vocabulary (an argument of :meth:`read`), it replaces these names, since
        names such as COCO's "wall-other-merged" are not natural language.

        Raises:
            DataError: the dataset has no classes, or the number of classes in its vocabulary differs.
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
                "write one line per class, in the order of their contiguous ids"
            )
        return replace(vocabulary, is_thing=is_thing)

    @classmethod
    def _of_entries(cls, entries: Iterable[tuple[str, list[str]]]) -> "Vocabulary":
        """Return the vocabulary of (location for messages, words) pairs; the first word may have a stuff mark."""
        location_of: dict[str, str] = {}
        names, is_thing, synonyms = [], [], []
        for location, (marked, *others) in entries:
            name = marked.strip().removesuffix(STUFF)
            words = [word.strip() for word in (name, *others)]
            for word in words:
                if not word:
                    raise DataError(f"{location}: an empty name; remove the extra separator")
                if "|" in word or ":" in word:
                    raise DataError(
                        f"{location}: {word!r} is not a valid name; write synonyms as in: person: man | woman"
                    )
                if STUFF in word:
                    raise DataError(
                        f"{location}: {word!r} contains {STUFF}, which is only allowed after the name of a stuff "
                        "class, as in: sea~: ocean | water"
                    )
                key = word_key(word)
                if key in location_of:
                    raise DataError(f"{location}: {word!r} is already a word of {location_of[key]}; remove one of them")
                location_of[key] = location
            names.append(words[0])
            is_thing.append(not marked.strip().endswith(STUFF))
            synonyms.append(tuple(words[1:]))
        return cls(tuple(names), tuple(is_thing), tuple(synonyms))


def word_key(word: str) -> str:
    """Return a key that is equal for words that differ only in case, white space or Unicode encoding.

    >>> word_key("Café  au lait") == word_key("cafe\\u0301 au lait")
    True
    """
    return " ".join(unicodedata.normalize("NFKC", word).casefold().split())


def nearest_words(word: str, known: Iterable[str]) -> list[str]:
    """Return up to five known words that are written similarly, the most similar first.

    >>> nearest_words("Elefant", ["dog", "elephant"])
    ['elephant']
    """
    keys = {word_key(name): name for name in known}
    return [keys[key] for key in difflib.get_close_matches(word_key(word), keys, _NEAREST, cutoff=0.6)]


def is_path(text: str) -> bool:
    """Return whether a text has the form of a path, whether or not the file exists."""
    return text.endswith(".txt") or ("/" in text and "," not in text and ":" not in text)


def packaged_names() -> tuple[str, ...]:
    """Return the names of the packaged vocabularies."""
    return tuple(_packaged())


def _packaged() -> dict[str, Path]:
    """Return the files of the packaged vocabularies by name."""
    return {path.stem: path for path in sorted(_FOLDER.glob("*.txt"))}


def _words(text: str) -> list[str]:
    """Split "person: man | woman", "person: man, woman" or "person, man, woman" into words."""
    name, colon, synonyms = text.partition(":")
    return [name, *re.split(r"[|,]", synonyms)] if colon else text.split(",")


def _metadata_classes(name: str) -> tuple[tuple[str, ...], tuple[bool, ...]]:
    """Return the class names in a dataset's metadata and which classes are things.

    Raises:
        DataError: the dataset is not registered, or its metadata has no class names.
    """
    metadata = MetadataCatalog.get(name)
    names = metadata.get("stuff_classes")
    if names is not None:
        things = set(metadata.get("thing_dataset_id_to_contiguous_id", {}).values())
        return tuple(names), tuple(i in things for i in range(len(names)))
    names = metadata.get("thing_classes")
    if names is None and name not in DatasetCatalog:
        raise DataError(f"there is no dataset {name!r}; register it, a custom one by --register FILE")
    if names is None:
        raise DataError(
            f"dataset {name!r} has neither stuff_classes nor thing_classes in its metadata; set one of them"
        )
    return tuple(names), (True,) * len(names)


def _tuples(value: Any) -> Any:
    """Convert nested lists of json to tuples."""
    return tuple(map(_tuples, value)) if isinstance(value, list) else value
