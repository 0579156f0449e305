"""Interface of dual encoders of regions and words."""

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor

Words = Sequence[Sequence[str]]  # one sequence per class, the name of the class first

NAMES = "names"  # key of the namer's feature map beside those of the backbone
_STRIDE = 32  # of the feature maps
_HINTS = 5  # unknown words in a message
_MAX_CELLS = 64  # of the longer side of a feature map, which limits the memory of long thin images


class Namer(ABC):
    """Frozen encoder of the regions of an image and of the words of C classes.

    It is not a module of the model, so its weights are neither trained nor saved.

    Args:
        min_size: shorter side in pixels that images are resized to; less if the longer side would exceed 2048.
    """

    def __init__(self, min_size: int) -> None:
        self.min_size = min_size

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """Return rows and columns of the feature map of an image, which covers it without padding."""
        factor = min(self.min_size / _STRIDE / min(height, width), _MAX_CELLS / max(height, width))
        return max(1, round(height * factor)), max(1, round(width * factor))

    def resize(self, image: Tensor, scale: float = 1.0) -> Tensor:
        """Resize an image (3, H, W) to (1, 3, h, w), multiples of the stride near `scale` times those of the grid."""
        size = [max(1, round(cells * scale)) * _STRIDE for cells in self.grid(*image.shape[1:])]
        return F.interpolate(image[None], size, mode="bilinear", antialias=True)

    @abstractmethod
    def dense(self, image: Tensor) -> Tensor:
        """Return the feature map (1, channels, h, w) of an image (3, H, W), RGB in 0..255."""

    def check_words(self, words: Words) -> None:
        """Raise ValueError if the encoder does not know a class."""
        unknown = [names[0] for names in words if not self.knows(names)]
        if unknown:
            hints = [f"{name!r} (near: {', '.join(self.nearest(name)) or 'nothing'})" for name in unknown[:_HINTS]]
            if len(unknown) > _HINTS:
                hints.append(f"and {len(unknown) - _HINTS} more")
            raise ValueError(
                f"unknown without a text encoder: {'; '.join(hints)}; use other words, add synonyms (as in 'sofa: "
                "couch'), or use CLIP"
            )

    @abstractmethod
    def knows(self, names: Sequence[str]) -> bool:
        """Return whether the encoder knows at least one word of a class."""

    def distinct(self, words: Words) -> list[int]:
        """Return the indices of classes that it knows, of several with the same meaning only one."""
        return [i for i, names in enumerate(words) if self.knows(names)]

    def nearest(self, name: str) -> list[str]:
        """Return known words that are written similarly."""
        return []

    @abstractmethod
    def set_words(self, words: Words) -> None:
        """Change the classes; those that are not among the :meth:`distinct` ones get probability 0."""

    @abstractmethod
    def probabilities(self, dense: Tensor, weights: Tensor) -> Tensor:
        """Return the probability (Q, C) that a region carries the name of a class.

        Args:
            dense: (channels, h, w), from :meth:`dense`.
            weights: (Q, h, w), area of each region in each cell; regions without area get 0.
        """
