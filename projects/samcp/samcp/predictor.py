"""Interactive inference with a trained model: Prompts I and II and the segmentations (METHOD 8; paper 3.1).

Example::

    predictor = Predictor.load("model_final.pth")
    scene = predictor.encode(image, patches)  # runs the backbone once
    answer = scene.ask()                      # for the training's classes, or for a given vocabulary
    answer.label_scores()                     # Prompt I: scores of patches and classes
    answer.affinities("person")               # Prompt II: pairs of patches that belong to one person
    answer.panoptic()
    scene.inside(mask).ask(parts)             # the same for the patches inside a region
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
from samcp import model_zoo
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
from samcp.modeling.naming import Namer
from samcp.modeling.patch_batch import PatchBatch
from samcp.vocabulary import Vocabulary

_MIN_FRACTION_INSIDE = 0.8  # tau of METHOD 6, minimum fraction of a patch's area inside a region

Picture = str | os.PathLike[str] | NDArray[np.uint8]


class Predictor:
    """Trained model with its preprocessing.

    Args:
        model: the model; it is set to evaluation mode.
        augmentations: preprocessing of images, as in evaluation, without crops.
        image_format: of the network's input, a PIL mode or "BGR".
    """

    def __init__(self, model: SAMCP, *, augmentations: Sequence[T.Augmentation], image_format: str) -> None:
        self.model = model.eval()
        self.augmentations = T.AugmentationList(augmentations)
        self.image_format = image_format
        # Default of Scene.ask.
        self.vocabulary = model.vocabulary if model.namer is None else _everyday_words(model.namer)

    @classmethod
    def load(cls, path: str | os.PathLike[str], *, device: str = "", clip: str = "") -> "Predictor":
        """Load a checkpoint of train_net.py or a model file of convert_checkpoint.py; both contain the config.

        Args:
            path: of the file, or the name of a shipped model (`samcp.model_zoo`).
            device: default: the device of the training, or the CPU if there is no GPU.
            clip: "FILE" or "TAG", weights of the config's CLIP model, for example if the file has moved since the
                training; or "NAME:FILE" or "NAME:TAG" for another model of open_clip, which gives words to a model that
                was trained without names.

        Raises:
            CheckpointError: the file is missing, damaged, or of another program.
            UsageError: the device is not available.
        """
        _check_device(device)
        path = Path(model_zoo.find(os.fspath(path)))
        file = ModelFile.load(path) if path.suffix == SUFFIX else ModelFile.of_checkpoint(path)
        cfg = parse_config(file.config)
        cfg.MODEL.WEIGHTS = str(path)
        if clip:
            name, _, cfg.MODEL.CLIP.PRETRAINED = clip.rpartition(":")
            cfg.MODEL.CLIP.NAME = name or cfg.MODEL.CLIP.NAME
            if cfg.MODEL.SAMCP.NAMING.ENCODER:
                cfg.MODEL.SAMCP.NAMING.ENCODER = "clip"
        if device or not torch.cuda.is_available():
            cfg.MODEL.DEVICE = device or "cpu"
        return cls.from_config(cfg, file.vocabulary)

    @classmethod
    def from_config(cls, cfg: CfgNode, vocabulary: Vocabulary | None = None) -> "Predictor":
        """Build the model of a config with the weights of MODEL.WEIGHTS.

        Args:
            vocabulary: classes of the training; default: those in the checkpoint, or of the config's datasets.

        Raises:
            CheckpointError: MODEL.WEIGHTS is empty, or the weights are of another model.
        """
        if not cfg.MODEL.WEIGHTS:
            raise CheckpointError("MODEL.WEIGHTS is empty; set it to the checkpoint of a trained model")
        model = load_trained_model(cfg, cfg.MODEL.WEIGHTS, vocabulary)
        return cls(model, augmentations=build_augmentations(cfg, is_train=False), image_format=cfg.INPUT.FORMAT)

    @property
    def has_instances(self) -> bool:
        """Whether the model has instance queries."""
        return self.model.query_builder.instance_queries

    def check_words(self, vocabulary: Vocabulary) -> None:
        """Raise ValueError if the model has no text encoder, and does not know all of the classes."""
        if self.model.namer is None:
            self.model.class_embedding.check_words(vocabulary.words)
        elif vocabulary != self.model.vocabulary:
            self.model.namer.check_words(vocabulary.words)

    def encode(self, image: Picture, patches: Patches) -> "Scene":
        """Encode one image; see :meth:`encode_batch`."""
        return self.encode_batch([image], [patches])[0]

    @torch.no_grad()
    def encode_batch(self, images: Sequence[Picture], patches: Sequence[Patches]) -> list["Scene"]:
        """Run the backbone and the patch encoder, the most expensive parts, on a batch of images.

        Args:
            images: paths, or (H, W, 3) uint8 RGB.
            patches: one per image, from any generator; N may be 0.

        Raises:
            DataError: an image cannot be read, or its size differs from that of its patches.
        """
        inputs = []
        for image, image_patches in zip(images, patches, strict=True):
            pixels = _read(image, self.image_format)
            _check_size(pixels.shape[:2], image_patches, "the image" if isinstance(image, np.ndarray) else str(image))
            inputs.append(
                augment_image(
                    pixels,
                    image_patches,
                    augmentations=self.augmentations,
                    roi_size=self.model.roi_size,
                    min_patch_area=0,
                )
            )
        encoded = self.model.encode([{"image": x.image, "patches": x.patches} for x in inputs])
        return [Scene(self, x.visible, x.mapping, encoded.image(i)) for i, x in enumerate(inputs)]


@dataclass(frozen=True)
class Scene:
    """Encoded image with N patches; from :meth:`Predictor.encode`.

    Attributes:
        predictor: the model.
        patches: the N patches, at the size of the original image.
        mapping: from the original image to the network's input.
        encoded: feature maps and encoded patches.
    """

    predictor: Predictor
    patches: Patches
    mapping: AxisAlignedMap
    encoded: EncodedImages

    @torch.no_grad()
    def ask(self, vocabulary: Vocabulary | None = None) -> "Answer":
        """Predict the classes of a vocabulary, by default the one that the model was built with.

        Raises:
            ValueError: the model has no text encoder, and does not know all of the classes.
        """
        model = self.predictor.model
        vocabulary = vocabulary or self.predictor.vocabulary
        self.predictor.check_words(vocabulary)
        if vocabulary != model.vocabulary:
            model.set_vocabulary(vocabulary)
        [predictions] = model.predict(self.encoded, [self.patches])
        on_cpu = Predictions(*(value.cpu() for value in vars(predictions).values()))
        # A copy, since set_vocabulary changes the model's inference.
        inference = copy.copy(model.inference)
        return Answer(vocabulary, self.patches, on_cpu, inference, self.predictor.has_instances)

    def inside(self, region: NDArray[np.bool_] | Tensor) -> "Scene":
        """Return the scene with the patches inside a region (H, W), for example to predict its parts (Fig. 5)."""
        mask = np.asarray(region, dtype=bool)
        fraction = self.patches.iop(Patches.from_masks(mask[None]))[:, 0]
        return self.with_patches(self.patches.select(fraction >= _MIN_FRACTION_INSIDE))

    @torch.no_grad()
    def with_patches(self, patches: Patches) -> "Scene":
        """Return the scene with other patches of the same image, such as finer ones of a region (Fig. 7).

        Raises:
            DataError: the patches are of an image of another size.
        """
        _check_size(self.mapping.original_size, patches)
        model = self.predictor.model
        instances = patch_instances(patches, self.mapping, model.roi_size)
        batch = PatchBatch.from_instances([instances], model.roi_size, model.device)
        return Scene(self.predictor, patches, self.mapping, model.encode_patches(self.encoded.features, batch))


@dataclass(frozen=True)
class Answer:
    """Predictions for N patches and C classes; from :meth:`Scene.ask`.

    Attributes:
        vocabulary: the C classes.
        patches: the N patches, at the size of the original image.
        predictions: query predictions, on the CPU.
        inference: converts predictions to segmentations.
        has_instances: whether the model has instance queries.
    """

    vocabulary: Vocabulary
    patches: Patches
    predictions: Predictions
    inference: Inference
    has_instances: bool

    def label_scores(self) -> Tensor:
        """Return Prompt I, (N, C): the probability that a patch has a label.

        See :meth:`Inference.patch_class_scores`. A patch gets the scores of the queries that it has a high affinity
        with, so that the scores also depend on the patches it is merged with (Fig. 5).
        """
        return self.inference.patch_class_scores(self.predictions)

    def affinities(self, label: str | None = None) -> Tensor:
        """Return Prompt II, (N, N), symmetric: the probability that two patches belong to one instance of a label.

        See :meth:`Inference.same_instance`.

        Args:
            label: a thing class; default: any thing class.

        Raises:
            ValueError: the label is unknown or stuff, or the model has no instance queries.
        """
        if not self.has_instances:
            raise ValueError(
                "this model has no instance queries and cannot distinguish instances; use one that was trained with "
                "MODEL.SAMCP.INSTANCE_QUERIES True"
            )
        things = [i for i, is_thing in enumerate(self.vocabulary.is_thing) if is_thing]
        return self.inference.same_instance(self.predictions, things if label is None else [self._thing(label)])

    def semantic(self) -> Tensor:
        """Return the semantic map, (H, W) class indices or -1; see :meth:`Inference.semantic`."""
        return self.inference.semantic(self.predictions, self.patches)

    def instances(self) -> Instances:
        """Return scored instances of things; see :meth:`Inference.instances`."""
        return self.inference.instances(self.predictions, self.patches)

    def panoptic(self) -> tuple[Tensor, list[dict]]:
        """Return the panoptic map, (H, W) segment ids, and its segments; see :meth:`Inference.panoptic`."""
        return self.inference.panoptic(self.predictions, self.patches)

    def _thing(self, label: str) -> int:
        if label not in self.vocabulary.names:
            raise ValueError(f"{label!r} is not in the vocabulary; its classes are {', '.join(self.vocabulary.names)}")
        index = self.vocabulary.names.index(label)
        if not self.vocabulary.is_thing[index]:
            raise ValueError(f"{label!r} is stuff, which has no instances; choose a thing class")
        return index


def _everyday_words(namer: Namer) -> Vocabulary:
    """Return the classes of COCO that a namer knows."""
    coco = Vocabulary.load("coco")
    return coco.select([i for i, names in enumerate(coco.words) if namer.knows(names)])


def _check_device(name: str) -> None:
    try:
        if name:
            torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as error:  # AssertionError if PyTorch was built without CUDA
        raise UsageError(f"device {name!r} is not available; try cpu ({str(error).splitlines()[0]})") from error


def _read(image: Picture, image_format: str) -> NDArray[np.uint8]:
    """Return the pixels (H, W, 3) in the network's format."""
    if not isinstance(image, np.ndarray):
        return read_image(os.fspath(image), image_format)
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
        raise DataError(f"image must be a path or (H, W, 3) uint8 RGB, not {image.shape} {image.dtype}")
    return convert_PIL_to_numpy(Image.fromarray(image), image_format)


def _check_size(size: Sequence[int], patches: Patches, image: str = "the image") -> None:
    if tuple(size) != (patches.height, patches.width):
        raise DataError(
            f"{image} is {size[0]} x {size[1]} pixels (height x width), but its patches are for an image of "
            f"{patches.height} x {patches.width}; generate the patches from this image"
        )
