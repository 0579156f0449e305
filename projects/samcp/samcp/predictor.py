"""The two prompts, asked of a trained model, and what they compose to (METHOD 8; paper 3.1).

predictor = Predictor.load("model_final.pth")
scene = predictor.encode(image, patches)  # reads the image, once
answer = scene.ask()                    # about the classes of the training, or about others
answer.label_scores()                   # Prompt I: which patch is what
answer.affinities("person")             # Prompt II: which patches are one person
answer.panoptic()
scene.inside(mask).ask(parts)           # the same again within a region, finer
"""

import copy
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import transforms as T
from detectron2.data.detection_utils import convert_PIL_to_numpy
from detectron2.structures import Instances
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from proposal_cache import Patches
from samcp.checkpoint import load_trained_model
from samcp.config import parse_config
from samcp.data.dataset_mapper import augment_image, build_augmentations
from samcp.data.image_io import read_image
from samcp.data.patch_transforms import AxisAlignedMap, patch_instances
from samcp.errors import CheckpointError, DataError, UsageError
from samcp.export import SUFFIX, ModelFile
from samcp.modeling.encoded_images import EncodedImages
from samcp.modeling.inference import Inference, Predictions
from samcp.modeling.meta_arch import SAMCP
from samcp.modeling.patch_batch import PatchBatch
from samcp.vocabulary import Vocabulary

_INSIDE = 0.8  # tau of METHOD 6: the share of a patch inside a region from which on it belongs to it

Picture = str | os.PathLike[str] | NDArray[np.uint8]


class Predictor:
    """A trained model that can be asked.

    Args:
        model: is put into evaluation mode.
        augmentations: what an image goes through before the network, as at evaluation; no crops.
        image_format: of the network's input, a PIL mode or "BGR".
    """

    def __init__(self, model: SAMCP, *, augmentations: Sequence[T.Augmentation], image_format: str) -> None:
        self.model = model.eval()
        self.augmentations = T.AugmentationList(augmentations)
        self.image_format = image_format
        self.vocabulary = model.vocabulary  # that is asked for where no other is

    @classmethod
    def load(cls, path: str | os.PathLike[str], *, device: str = "", clip: str = "") -> "Predictor":
        """Load a checkpoint of train_net.py, or a model file of convert_checkpoint.py; either holds its config.

        Args:
            device: where to run it; by default where it was trained, or the CPU where there is no GPU.
            clip: the checkpoint of its CLIP model, if that is not where it was at training.

        Raises:
            CheckpointError: it is missing, damaged, or of another program.
            UsageError: there is no such device here.
        """
        _check_device(device)
        path = Path(path)
        file = ModelFile.load(path) if path.suffix == SUFFIX else ModelFile.of_checkpoint(path)
        cfg = parse_config(file.config)
        cfg.MODEL.WEIGHTS = str(path)
        cfg.MODEL.CLIP.PRETRAINED = clip or cfg.MODEL.CLIP.PRETRAINED
        if device or not torch.cuda.is_available():
            cfg.MODEL.DEVICE = device or "cpu"
        return cls.from_config(cfg, file.vocabulary)

    @classmethod
    def from_config(cls, cfg: CfgNode, vocabulary: Vocabulary | None = None) -> "Predictor":
        """Build the model of a config with the weights of its MODEL.WEIGHTS.

        Args:
            vocabulary: that it was trained on; default: what its checkpoint says, or that of the config's datasets.

        Raises:
            CheckpointError: the config names no weights, or none that fit.
        """
        if not cfg.MODEL.WEIGHTS:
            raise CheckpointError("MODEL.WEIGHTS is empty: only a trained model has answers; name its checkpoint")
        model = load_trained_model(cfg, cfg.MODEL.WEIGHTS, vocabulary)
        return cls(model, augmentations=build_augmentations(cfg, is_train=False), image_format=cfg.INPUT.FORMAT)

    def encode(self, image: Picture, patches: Patches) -> "Scene":
        """Read one image; see :meth:`encode_batch`."""
        return self.encode_batch([image], [patches])[0]

    @torch.no_grad()
    def encode_batch(self, images: Sequence[Picture], patches: Sequence[Patches]) -> list["Scene"]:
        """Run the backbone and the patch encoder, most of the network's work, on several images together.

        Args:
            images: paths, or (H, W, 3) uint8 RGB.
            patches: one an image, of any generator; N may be 0.

        Raises:
            DataError: an image cannot be read, or has another size than its patches.
        """
        inputs = []
        for image, own in zip(images, patches, strict=True):
            pixels = _read(image, self.image_format)
            _check_size(pixels.shape[:2], own, "the image" if isinstance(image, np.ndarray) else str(image))
            inputs.append(
                augment_image(
                    pixels, own, augmentations=self.augmentations, roi_size=self.model.roi_size, min_patch_area=0
                )
            )
        encoded = self.model.encode([{"image": x.image, "patches": x.patches} for x in inputs])
        return [Scene(self, x.visible, x.mapping, encoded.image(i)) for i, x in enumerate(inputs)]


@dataclass(frozen=True)
class Scene:
    """An image that was read, with N patches of it, ready to be asked about; from :meth:`Predictor.encode`.

    Attributes:
        predictor: holds the model.
        patches: the N patches, at the image's own size.
        mapping: from the image to the network's input.
        encoded: what the network made of image and patches.
    """

    predictor: Predictor
    patches: Patches
    mapping: AxisAlignedMap
    encoded: EncodedImages

    @torch.no_grad()
    def ask(self, vocabulary: Vocabulary | None = None) -> "Answer":
        """Ask for the classes of a vocabulary, by default those that the model was built with.

        Raises:
            ValueError: the model's class embeddings are learned, and of other classes.
        """
        model = self.predictor.model
        vocabulary = vocabulary or self.predictor.vocabulary
        if vocabulary != model.vocabulary:
            model.set_vocabulary(vocabulary)
        [predictions] = model.predict(self.encoded, [self.patches])
        on_cpu = Predictions(*(value.cpu() for value in vars(predictions).values()))
        # A copy, since the model's own follows its vocabulary.
        has_instances = model.query_builder.instance_queries
        return Answer(vocabulary, self.patches, on_cpu, copy.copy(model.inference), has_instances)

    def inside(self, region: NDArray[np.bool_] | Tensor) -> "Scene":
        """The scene of the patches that lie inside a region (H, W), to ask for parts of it (Fig. 5)."""
        mask = np.asarray(region, dtype=bool)
        share = self.patches.iop(Patches.from_masks(mask[None]))[:, 0]
        return self.with_patches(self.patches.select(share >= _INSIDE))

    @torch.no_grad()
    def with_patches(self, patches: Patches) -> "Scene":
        """The scene of other patches of the same image, such as finer ones of an enlarged region (Fig. 7).

        Raises:
            DataError: they are of an image of another size.
        """
        _check_size(self.mapping.original_size, patches)
        model = self.predictor.model
        instances = patch_instances(patches, self.mapping, model.roi_size)
        batch = PatchBatch.from_instances([instances], model.roi_size, model.device)
        return Scene(self.predictor, patches, self.mapping, model.encode_patches(self.encoded.features, batch))


@dataclass(frozen=True)
class Answer:
    """What a model says of N patches and C classes; from :meth:`Scene.ask`.

    Attributes:
        vocabulary: the classes asked for.
        patches: the N patches, at the image's own size.
        predictions: of all queries, on the CPU.
        inference: makes segmentations of them.
        has_instances: whether the model tells instances apart.
    """

    vocabulary: Vocabulary
    patches: Patches
    predictions: Predictions
    inference: Inference
    has_instances: bool

    def label_scores(self) -> Tensor:
        """Prompt I, (N, C): the probability that a patch has a label.

        See :meth:`Inference.patch_class_scores`: the queries that claim a patch are classified, and they know all the
        patches that they merge (Fig. 5).
        """
        return self.inference.patch_class_scores(self.predictions)

    def affinities(self, label: str | None = None) -> Tensor:
        """Prompt II, (N, N), symmetric: the probability that two patches belong to one instance of a label.

        See :meth:`Inference.same_instance`.

        Args:
            label: a thing; default: of any thing.

        Raises:
            ValueError: the label is not in the vocabulary or is stuff, or the model has no instance queries.
        """
        if not self.has_instances:
            raise ValueError(
                "this model has no instance queries and tells no instances apart; use one that was trained with "
                "MODEL.SAMCP.INSTANCE_QUERIES True"
            )
        things = [i for i, is_thing in enumerate(self.vocabulary.is_thing) if is_thing]
        return self.inference.same_instance(self.predictions, things if label is None else [self._thing(label)])

    def semantic(self) -> Tensor:
        """Prompt I at every pixel: (H, W) class indices, -1 where no patch lies; see :meth:`Inference.semantic`."""
        return self.inference.semantic(self.predictions, self.patches)

    def instances(self) -> Instances:
        """Prompts I and II: scored instances of things; see :meth:`Inference.instances`."""
        return self.inference.instances(self.predictions, self.patches)

    def panoptic(self) -> tuple[Tensor, list[dict]]:
        """Prompt I for stuff, I and II for things: (H, W) ids and segments; see :meth:`Inference.panoptic`."""
        return self.inference.panoptic(self.predictions, self.patches)

    def _thing(self, label: str) -> int:
        if label not in self.vocabulary.names:
            raise ValueError(f"{label!r} was not asked for; the classes are {', '.join(self.vocabulary.names)}")
        index = self.vocabulary.names.index(label)
        if not self.vocabulary.is_thing[index]:
            raise ValueError(f"{label!r} is stuff, which has no instances to tell apart")
        return index


def _check_device(name: str) -> None:
    try:
        if name:
            torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as error:  # the latter where PyTorch was built without CUDA
        raise UsageError(f"device {name!r} cannot be used here; try cpu ({str(error).splitlines()[0]})") from error


def _read(image: Picture, image_format: str) -> NDArray[np.uint8]:
    """(H, W, 3) in the network's format."""
    if not isinstance(image, np.ndarray):
        return read_image(os.fspath(image), image_format)
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
        raise DataError(f"an image is a path or (H, W, 3) uint8 RGB, not {image.shape} {image.dtype}")
    return convert_PIL_to_numpy(Image.fromarray(image), image_format)


def _check_size(size: Sequence[int], patches: Patches, image: str = "the image") -> None:
    if tuple(size) != (patches.height, patches.width):
        raise DataError(
            f"{image} is {size[0]} x {size[1]} pixels (height x width), but its patches are of "
            f"{patches.height} x {patches.width}; patches must be made of this very image"
        )
