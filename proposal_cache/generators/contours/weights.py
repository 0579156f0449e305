"""File of weights of the generator `contours`: the network and the cost of merges, in half precision."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save
from torch import Tensor

from proposal_cache.errors import CacheError
from proposal_cache.generators.base import sha256_of
from proposal_cache.generators.contours.hierarchy import Perceptron
from proposal_cache.generators.contours.network import ContourNetwork
from proposal_cache.store.durable import make_directory, write_durably
from proposal_cache.torch_files import halve

SHIPPED = Path(__file__).parents[2] / "weights" / "contours.safetensors"


@dataclass(frozen=True)
class ContourWeights:
    """Trained parts of the generator.

    Attributes:
        network: on its device, in evaluation mode.
        merge: logit that two neighbouring regions belong to different objects, from `pair_features`.
        sha256: of the file.
    """

    network: ContourNetwork
    merge: Perceptron
    sha256: str

    def predict(self, image: NDArray[np.uint8]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Return the boundary probability (H, W) and the scaled embedding (D, H / 4, W / 4) of an image (H, W, 3)."""
        device = self.network.log_scale.device
        pixels = torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1))).to(device, torch.float32)
        boundary, embedding = self.network.predict(pixels)
        return boundary.cpu().numpy(), embedding.cpu().numpy()


def load_weights(path: Path | None, device: str) -> ContourWeights:
    """Load a file of weights; None for the one that is shipped.

    Raises:
        CacheError: if the file is missing, damaged or of another architecture.
    """
    path = SHIPPED if path is None else Path(path)
    if not path.is_file():
        raise CacheError(f"no weights of the generator contours at {path}; write them with scripts/train_contours.py")
    try:
        tensors = load_file(path)
        network = ContourNetwork()
        prefix = "network."
        network.load_state_dict(
            {name.removeprefix(prefix): tensor.float() for name, tensor in tensors.items() if name.startswith(prefix)},
            strict=True,
        )
        merge = _read_perceptron(tensors)
    except Exception as error:  # safetensors, missing names, other shapes
        raise CacheError(f"{path} is damaged or not a file of weights of the generator contours: {error}") from error
    network.eval().to(device).to(memory_format=torch.channels_last)
    return ContourWeights(network, merge, sha256_of(path))


def save_weights(
    path: Path, network: ContourNetwork, merge: Perceptron, origin: Mapping[str, str] = MappingProxyType({})
) -> None:
    """Write a file of weights in half precision atomically, with its origin, such as options, in the metadata."""
    tensors = {f"network.{name}": tensor for name, tensor in network.state_dict().items()}
    tensors |= {f"merge.{part}": torch.tensor(value) for part, value in merge._asdict().items()}
    make_directory(path.parent)
    write_durably(path, save({name: t.contiguous() for name, t in halve(tensors).items()}, dict(origin)))


def _read_perceptron(tensors: Mapping[str, Tensor]) -> Perceptron:
    parts = (tensors[f"merge.{part}"].double().numpy() for part in Perceptron._fields)
    hidden, hidden_bias, output, output_bias = parts
    return Perceptron(hidden, hidden_bias, output, float(output_bias))
