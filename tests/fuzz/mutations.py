"""Random changes of bytes and of json-like values."""

import copy
import math
from typing import Any

import numpy as np

_VALUES: list[Any] = [
    None, True, 0, 1, -1, 7, 2**31, 2**63, 10**400, 0.5, 1e9, -1e308, math.nan, math.inf, "", "x", "0", "../../x", "\0",
    "\ud800", "é" * 300, [], [[]], {}, {"id": 1}, [1, 2, 3], [0.0] * 6, [[1e9] * 6], {"size": [3, 3], "counts": "9"},
]  # fmt: skip
_COUNTS = [1, 1, 1, 2, 3]  # number of changes
_NESTED = 20_000  # levels, more than any parser allows


def mutate_bytes(data: bytes, random: np.random.Generator) -> bytes:
    """Return the data with bits flipped, bytes set, parts cut, repeated or inserted, or nothing left of them."""
    content = bytearray(data)
    for _ in range(_choose(random, _COUNTS)):
        position = int(random.integers(len(content) + 1))
        length = int(min(2 ** random.integers(0, 8), len(content) - position))
        part = slice(position, position + length)
        kind = int(random.integers(8))
        if kind < 3 and position < len(content):
            content[position] ^= 1 << int(random.integers(8))
        elif kind == 3 and position < len(content):
            content[position] = int(random.choice([0, 1, 127, 128, 255, ord("9"), ord("-"), ord('"')]))
        elif kind == 4:
            del content[part]
        elif kind == 5:
            content[position:position] = content[part]
        elif kind == 6:
            content[position:position] = random.bytes(max(length, 1))
        else:
            del content[position:]
    return bytes(content)


def mutate_tree(tree: Any, random: np.random.Generator) -> Any:
    """Return a copy of a json-like value with one to three values replaced, removed, repeated, renamed or nested."""
    tree = copy.deepcopy(tree)
    for _ in range(_choose(random, _COUNTS)):
        places = list(_places(tree))
        if not places:
            return _choose(random, _VALUES)
        container, key = places[int(random.integers(len(places)))]
        kind = int(random.integers(10))
        if kind < 5:
            container[key] = copy.deepcopy(_choose(random, _VALUES))
        elif kind == 5:
            del container[key]
        elif kind == 6 and isinstance(container, list):
            container.append(copy.deepcopy(container[key]))
        elif kind == 6:
            container[f"{key}x"] = container.pop(key)
        elif kind == 7 and isinstance(container[key], str):
            container[key] = mutate_bytes(container[key].encode(errors="surrogatepass"), random).decode("latin-1")
        elif kind == 7 and type(container[key]) in (int, float):
            container[key] = container[key] * int(random.choice([-1, 0, 2, 10**6])) + int(random.integers(2))
        elif kind == 8:
            container[key] = copy.deepcopy(_choose(random, places)[0])
        else:
            container[key] = [container[key]]
    return tree


def nest(depth: int = _NESTED) -> bytes:
    """Return json of nested lists."""
    return b"[" * depth + b"]" * depth


def _choose(random: np.random.Generator, values: list[Any]) -> Any:
    return values[int(random.integers(len(values)))]


def _places(tree: Any) -> Any:
    """Yield (container, key) of every value in a tree."""
    if isinstance(tree, dict | list):
        for key, value in list(tree.items() if isinstance(tree, dict) else enumerate(tree)):
            yield tree, key
            yield from _places(value)
