"""Words that ImageNet's classes and annotated photographs explain."""

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from timm.data import ImageNetInfo

from samcp.vocabulary import nearest_words, word_key

_FILE = Path(__file__).with_name("words.txt")
_NUM_CLASSES = 1000


@dataclass(frozen=True)
class Word:
    """Meaning of a word.

    Attributes:
        group: index of its line in words.txt, -1 for the name of a single class of ImageNet.
        rows: classes of ImageNet, maybe none.
    """

    group: int
    rows: tuple[int, ...]


class WordTable:
    """Table of all known words; see words.txt.

    Attributes:
        names: first word of each group.
        rows: classes of ImageNet of each group.
    """

    def __init__(self) -> None:
        lines = [line for line in _FILE.read_text(encoding="utf-8").splitlines() if line and not line.startswith("#")]
        groups = [line.rpartition(":") for line in lines]
        self.names = [words.split(",")[0].strip() for words, _, _ in groups]
        self.rows = [_numbers(numbers) for _, _, numbers in groups]
        info = ImageNetInfo()
        self._words = {
            word_key(word): Word(-1, (i,))
            for i in range(_NUM_CLASSES)
            for word in info.index_to_description(i).split(",")
        }
        for group, (words, _, _) in enumerate(groups):
            self._words |= {word_key(word): Word(group, self.rows[group]) for word in words.split(",")}

    def find(self, word: str) -> Word | None:
        """Return the meaning of a word in singular or plural, None if it is unknown."""
        key = word_key(word)
        singulars = (key.removesuffix("es"), key.removesuffix("s")) if len(key) > 3 else ()
        return next((self._words[form] for form in (key, *singulars) if form in self._words), None)

    def nearest(self, word: str) -> list[str]:
        """Return known words that are written similarly, the most similar first."""
        return nearest_words(word, self._words)


@lru_cache(maxsize=1)
def word_table() -> WordTable:
    """Return the table, which is read once."""
    return WordTable()


def _numbers(text: str) -> tuple[int, ...]:
    """Parse "3 5-7" as (3, 5, 6, 7)."""
    ranges = [part.partition("-") for part in text.split()]
    return tuple(i for first, _, last in ranges for i in range(int(first), int(last or first) + 1))
