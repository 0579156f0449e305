"""Classes of the drawn scenes, the parts of things, and the named colours."""

from collections.abc import Mapping

import numpy as np

# Thing class -> its parts. Dog and cat have the same parts, and differ in the ears only.
PARTS: Mapping[str, tuple[str, ...]] = {
    "house": ("wall", "roof", "door", "window"),
    "tree": ("crown", "trunk"),
    "person": ("head", "shirt", "legs"),
    "car": ("body", "window", "wheels"),
    "boat": ("hull", "sail", "flag"),
    "dog": ("body", "head", "ears", "legs", "tail"),
    "cat": ("body", "head", "ears", "legs", "tail"),
    "kite": ("top", "bottom", "tail"),
    "umbrella": ("canopy", "stripe", "handle"),
}
THINGS = tuple(PARTS)
STUFF = ("sky", "sea", "grass", "sand", "road", "brick")
CLASSES = THINGS + STUFF

# Classes that the training images do not have, for the open vocabulary.
UNSEEN = ("boat", "cat", "umbrella", "sand")
SEEN = tuple(name for name in CLASSES if name not in UNSEEN)

# Classes of the part annotations, which exist for scenes of seen classes.
PART_CLASSES = tuple(f"{thing} {part}" for thing in THINGS if thing in SEEN for part in PARTS[thing])

# Colours of parts, RGB in [0, 1]. Any two are easy to tell apart.
COLORS: Mapping[str, np.ndarray] = {
    name: np.array(rgb) / 255
    for name, rgb in {
        "red": (212, 36, 40),
        "orange": (246, 138, 26),
        "yellow": (247, 220, 52),
        "green": (30, 140, 62),
        "turquoise": (62, 206, 196),
        "blue": (32, 76, 190),
        "purple": (132, 54, 170),
        "pink": (246, 130, 178),
        "brown": (112, 66, 34),
        "black": (30, 30, 34),
        "white": (246, 246, 240),
    }.items()
}
