"""Patches by SAM 2, with the optional package `sam2`."""

from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from proposal_cache import rle
from proposal_cache.errors import CacheError
from proposal_cache.generators.base import require_rgb, sha256_of
from proposal_cache.generators.memory import halving_batches
from proposal_cache.generators.sam.checkpoint import CheckpointError, read_weights
from proposal_cache.patches import Patches

try:
    from sam2.automatic_mask_generator import SAM2AutomaticMaskGenerator
    from sam2.build_sam import build_sam2
except ImportError as error:
    raise CacheError(
        "SAM2 needs the package sam2: SAM2_BUILD_CUDA=0 pip install --no-build-isolation -e '.[sam2]' in the checkout"
    ) from error

CONFIGS = {
    f"{version}_hiera_{size}": f"configs/{version}/{version}_hiera_{short}.yaml"
    for version in ("sam2", "sam2.1")
    for size, short in {"tiny": "t", "small": "s", "base_plus": "b+", "large": "l"}.items()
}
WEIGHTS_PAGE = "https://github.com/facebookresearch/sam2#model-description"


@dataclass(frozen=True)
class Sam2Parameters:
    """Parameters of `sam2`'s SAM2AutomaticMaskGenerator, with the defaults of `SamParameters`."""

    points_per_side: int = 48
    pred_iou_thresh: float = 0.8
    stability_score_thresh: float = 0.9
    box_nms_thresh: float = 0.7


class Sam2Generator:
    """Generator of SAM 2's automatic masks, prompted with a regular grid of points.

    Args:
        model: a `SAM2Base`, on its device.
        parameters: of the search.
        model_type: name of the model in `describe`.
        weights_sha256: SHA-256 of the weights' file in `describe`.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        parameters: Sam2Parameters | None = None,
        *,
        model_type: str = "custom",
        weights_sha256: str | None = None,
    ) -> None:
        self.parameters = parameters or Sam2Parameters()
        self.model_type, self.weights_sha256 = model_type, weights_sha256
        self._search = SAM2AutomaticMaskGenerator(model.eval(), output_mode="coco_rle", **asdict(self.parameters))

    @classmethod
    def from_checkpoint(
        cls, model_type: str, checkpoint: str | Path, *, device: str | torch.device = "cpu", **parameters: Any
    ) -> "Sam2Generator":
        """Create a generator with the weights of a file; `parameters` are those of `Sam2Parameters`.

        >>> Sam2Generator.from_checkpoint("sam2.1_hiera_large", "sam2.1_hiera_large.pt")  # doctest: +SKIP

        Raises CheckpointError if the model type is unknown, or the file is missing, damaged or of another model type.
        """
        if model_type not in CONFIGS:
            raise CheckpointError(f"SAM2 has no model type '{model_type}'; choose one of {', '.join(CONFIGS)}")
        path = Path(checkpoint)
        content = read_weights(path, "SAM2", WEIGHTS_PAGE)
        weights = content.get("model") if isinstance(content, dict) else None
        if not isinstance(weights, dict):
            raise CheckpointError(f"{path} is not a SAM2 checkpoint; the weights of {model_type} are at {WEIGHTS_PAGE}")
        model = build_sam2(CONFIGS[model_type], device="cpu")
        try:
            model.load_state_dict(weights)
        except (AttributeError, RuntimeError, TypeError) as error:
            raise CheckpointError(f"{path} does not match SAM2's {model_type}: {str(error)[:300]}") from error
        search, digest = Sam2Parameters(**parameters), sha256_of(path)
        return cls(model.to(device), search, model_type=model_type, weights_sha256=digest)

    def describe(self) -> dict[str, Any]:
        """Return everything that determines the patches."""
        model = {"model_type": self.model_type, "weights_sha256": self.weights_sha256}
        return {"name": "sam2", **model, **asdict(self.parameters)}

    @torch.inference_mode()
    def __call__(self, image: NDArray[np.uint8]) -> Patches:
        """Return the patches of an image (H, W, 3) RGB."""
        require_rgb(image)
        found = halving_batches(partial(self._search.generate, image), self._halve_batch)
        return Patches.from_rles(
            image.shape[0],
            image.shape[1],
            [rle.from_json(mask["segmentation"], *image.shape[:2]) for mask in found],
            predicted_iou=[mask["predicted_iou"] for mask in found],
            stability_score=[mask["stability_score"] for mask in found],
        )

    def _halve_batch(self) -> int:
        """Halve the number of points that are decoded at once, and return it; return 0 if it was 1."""
        batch = self._search.points_per_batch // 2
        self._search.points_per_batch = max(batch, 1)
        return batch
