"""Colours that are distinct for people with and without colour-blindness.

The first seven are those of Okabe and Ito (2008), without black. The palette is extended in the Lab space: each further
colour is the candidate whose least distance from all colours before it is greatest, as normal, deuteranopic and
protanopic vision perceive it, whichever distance is least. So a class keeps its colour if classes are added after it.
"""

from collections import Counter
from functools import cache

import numpy as np
from numpy.typing import NDArray
from skimage.color import lab2rgb, rgb2lab

from samcp.regions import Regions, match_instances

Colors = NDArray[np.float64]  # (..., 3) sRGB in [0, 1]

_OKABE_ITO = ("#E69F00", "#56B4E9", "#009E73", "#F0E442", "#0072B2", "#D55E00", "#CC79A7")
# Linear RGB as perceived with protanopia and deuteranopia: Machado, Oliveira and Fernandes (2009), severity 1.
_PROTANOPIA = [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]]
_DEUTERANOPIA = [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]]
_LIGHTNESS = (30, 86)  # of candidates; darker or lighter ones vanish in shadows or in the sky
_GRID = 18  # candidates per channel
_SHADES = (18, 95)  # lightness of the instances of a class
_SHADE_STEP = 13
_HUE_STEP = 0.35  # radians, when all shades are used


@cache
def class_colors(count: int) -> Colors:
    """Return the colours of `count` classes, (count, 3)."""
    levels = np.linspace(0, 1, _GRID)
    candidates = np.stack(np.meshgrid(levels, levels, levels), -1).reshape(-1, 3)
    lightness = rgb2lab(candidates)[:, 0]
    candidates = candidates[(lightness > _LIGHTNESS[0]) & (lightness < _LIGHTNESS[1])]
    seen = perceived(candidates)
    chosen = [np.array([int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)]) for color in _OKABE_ITO]
    distance = np.min([_distance(seen, perceived(color[None])) for color in chosen], axis=0)
    while len(chosen) < count:
        best = int(distance.argmax())
        chosen.append(candidates[best])
        distance = np.minimum(distance, _distance(seen, seen[:, best : best + 1]))
    return np.array(chosen[:count]).reshape(-1, 3)


def shade(color: Colors, number: int) -> Colors:
    """Return the colour of an instance of a class: `color`, (3,), for number 0, else a lighter or darker one."""
    lightness, a, b = rgb2lab(color[None])[0]
    steps = lightness + _SHADE_STEP * np.arange(-8, 9)
    steps = steps[(steps >= _SHADES[0]) & (steps <= _SHADES[1])]
    steps = np.array([lightness, *sorted(steps[steps != lightness], key=lambda step: abs(step - lightness))])
    rounds, index = divmod(number, len(steps))
    turned = (a + 1j * b) * np.exp(1j * _HUE_STEP * rounds)
    lab = np.array([[steps[index], turned.real, turned.imag]])
    lab[:, 2] = np.minimum(lab[:, 2], 199.99 * (lab[:, 0] + 16) / 116)  # lab2rgb warns from 200 on, and clips
    return lab2rgb(lab)[0]


def region_colors(regions: Regions, truth: Regions | None = None) -> Colors:
    """Return the colour of each region, (R, 3).

    A region has the colour of its class, and the instances of a class have shades of it, lighter or darker.

    Args:
        regions: R regions, for example of a prediction.
        truth: of the same image; an instance that matches one of these gets its colour.
    """
    colors = class_colors(int(regions.classes.max(initial=0)) + 1)
    return np.array(
        [shade(colors[c], n) for c, n in zip(regions.classes, _shades(regions, truth), strict=True)]
    ).reshape(-1, 3)


def _shades(regions: Regions, truth: Regions | None = None) -> np.ndarray:
    """Return the number of each region's shade, (R,).

    Stuff has 0. Instances have the number of their match in `truth`, others the next one that no instance of the class
    has, large instances first.
    """
    matched, seen = {}, Counter[int]()
    if truth is not None:
        theirs = _shades(truth)
        matched = {i: theirs[j] for i, j in match_instances(regions, truth)}
        seen.update(truth.classes[truth.instances].tolist())
    numbers = np.zeros(len(regions), int)
    for i in regions.instances:
        if i in matched:
            numbers[i] = matched[i]
        else:
            numbers[i] = seen[regions.classes[i]]
            seen[regions.classes[i]] += 1
    return numbers


def perceived(colors: Colors) -> Colors:
    """Return the Lab coordinates (3, n, 3) of n colours in normal, protanopic and deuteranopic vision."""
    linear = np.where(colors > 0.04045, ((colors + 0.055) / 1.055) ** 2.4, colors / 12.92)
    seen = np.stack([linear, linear @ np.transpose(_PROTANOPIA), linear @ np.transpose(_DEUTERANOPIA)]).clip(0, 1)
    return rgb2lab(np.where(seen > 0.0031308, 1.055 * seen ** (1 / 2.4) - 0.055, 12.92 * seen))


def _distance(seen: Colors, other: Colors) -> Colors:
    """Return the least of the three distances of n perceived colours (3, n, 3) from another (3, 1, 3)."""
    return np.linalg.norm(seen - other, axis=-1).min(axis=0)
