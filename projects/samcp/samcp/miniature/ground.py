"""Textured stuff of the drawn scenes, and their light."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from samcp.miniature.objects import Mask

Image: TypeAlias = NDArray[np.floating]  # (H, W, 3) in [0, 1]


def noise(random: Generator, height: int, width: int, sigma: tuple[float, float]) -> NDArray[np.float64]:
    """Return (H, W, 1) noise of mean 0 and deviation 1, smoothed by sigma (y, x) in pixels."""
    values = gaussian_filter(random.normal(size=(height, width)), sigma, mode="wrap")
    return ((values - values.mean()) / (values.std() + 1e-9))[..., None]


def sky(random: Generator, height: int, width: int) -> Image:
    clouds = np.clip(noise(random, height, width, (height / 25, width / 12)), 0, 1.5)
    return np.array([0.47, 0.71, 0.94]) + clouds * np.array([0.25, 0.17, 0.04])


def grass(random: Generator, height: int, width: int) -> Image:
    return np.array([0.27, 0.52, 0.16]) + 0.07 * noise(random, height, width, (2.5, 0.6)) * np.array([0.9, 1.0, 0.5])


def sand(random: Generator, height: int, width: int) -> Image:
    return np.array([0.87, 0.76, 0.52]) + 0.05 * noise(random, height, width, (0.7, 0.7))


def sea(random: Generator, height: int, width: int) -> Image:
    return np.array([0.12, 0.42, 0.60]) + 0.06 * noise(random, height, width, (0.8, 6.0)) * np.array([0.6, 0.9, 1.0])


def road(random: Generator, height: int, width: int) -> Image:
    """Draw asphalt: grey, with fine grains."""
    return np.array([0.40, 0.40, 0.43]) + random.normal(0, 0.04, (height, width, 1))


def brick(random: Generator, height: int, width: int) -> Image:
    """Draw courses of bricks of slightly different shades, with joints."""
    course, length = random.integers(7, 11), random.integers(15, 22)
    y, x = np.mgrid[:height, :width]
    row = y // course
    along = x + (row % 2) * (length // 2)
    shades = random.normal(0, 0.05, (height // course + 1, width // length + 2))
    image = np.array([0.66, 0.34, 0.26]) + shades[row, along // length][..., None]
    image[(y % course == 0) | (along % length == 0)] = [0.78, 0.72, 0.66]
    return image


TEXTURES: Mapping[str, Callable[[Generator, int, int], Image]] = {
    "sky": sky,
    "sea": sea,
    "grass": grass,
    "sand": sand,
    "road": road,
    "brick": brick,
}


@dataclass(frozen=True)
class Domain:
    """Look of a set of scenes.

    Attributes:
        hues: stuff class -> mean colour, where it differs from that of its texture.
        coarseness: whole number by which the textures are enlarged.
        exposure: share of the light, RGB.
        unevenness: largest difference of light from the mean between the borders of the image, as a share.
        noise: deviation of the noise per pixel and channel.
    """

    hues: Mapping[str, tuple[float, float, float]] = field(default_factory=dict)
    coarseness: int = 1
    exposure: tuple[float, float, float] = (1.0, 1.0, 1.0)
    unevenness: float = 0.2
    noise: float = 0.015


DAY = Domain()
NIGHT = Domain(
    hues={
        "sky": (0.36, 0.30, 0.52),
        "sea": (0.10, 0.36, 0.34),
        "grass": (0.46, 0.44, 0.16),
        "sand": (0.80, 0.60, 0.56),
        "road": (0.26, 0.24, 0.28),
        "brick": (0.62, 0.60, 0.58),
    },
    coarseness=2,
    exposure=(0.55, 0.6, 0.8),
    unevenness=0.5,
    noise=0.03,
)


def draw_ground(
    random: Generator, classes: Sequence[str], domain: Domain, height: int, width: int
) -> tuple[Image, dict[str, Mask]]:
    """Draw one or two of sky and brick above one or two of the other stuff classes, separated by wavy lines.

    Args:
        classes: that may occur.

    Returns:
        The image, and the pixels of each class that occurs.
    """
    y, x = np.mgrid[:height, :width]
    wave = 0.03 * height * np.sin(2 * np.pi * (x / width * random.uniform(0.5, 1.5) + random.random()))
    above = y < height * random.uniform(0.3, 0.6) + wave
    image = np.zeros((height, width, 3), np.float32)
    ground = {}
    for half, stuff in ((above, _ABOVE), (~above, _BELOW)):
        names = random.permutation([name for name in stuff if name in classes])
        left = x < width * random.uniform(-0.5, 1.5) + (y - height / 2) * random.uniform(-0.5, 0.5)
        for name, mask in ((str(names[0]), half & left), (str(names[1]), half & ~left)):
            if mask.any():
                ground[name] = mask
                rows, columns = np.nonzero(mask.any(1))[0], np.nonzero(mask.any(0))[0]
                window = slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)
                inside = mask[window]
                np.copyto(image[window], draw_texture(random, name, domain, *inside.shape), where=inside[..., None])
    return image, ground


_ABOVE, _BELOW = ("sky", "brick"), ("sea", "grass", "sand", "road")


def draw_texture(random: Generator, name: str, domain: Domain, height: int, width: int) -> Image:
    """Return the texture of a stuff class in a domain."""
    step = domain.coarseness
    texture = TEXTURES[name](random, -(-height // step), -(-width // step))
    if step > 1:
        texture = texture.repeat(step, 0).repeat(step, 1)[:height, :width]
    if name in domain.hues:
        texture = texture + (domain.hues[name] - texture.mean((0, 1)))
    return texture


def ramp(random: Generator, height: int, width: int) -> NDArray[np.float64]:
    """Return (H, W, 1) values that rise linearly in a random direction, from -1 to 1 at most."""
    angle = random.uniform(0, 2 * np.pi)
    down, across = np.linspace(-1, 1, height)[:, None], np.linspace(-1, 1, width)
    return ((np.sin(angle) * down + np.cos(angle) * across) / np.sqrt(2))[..., None]


def light(random: Generator, image: Image, domain: Domain) -> Image:
    """Return the image in random light of the domain, slightly blurred, with noise."""
    gain = random.uniform(0.85, 1.1) * (1 + domain.unevenness * random.random() * ramp(random, *image.shape[:2]))
    tint = random.normal(1, 0.03, 3) * domain.exposure
    lit = image * gain.astype(np.float32) * tint.astype(np.float32)
    grains = random.standard_normal(image.shape, np.float32)
    return gaussian_filter(lit, (0.5, 0.5, 0), truncate=3) + np.float32(domain.noise) * grains
