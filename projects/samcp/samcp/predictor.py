"""Predictor: a trained model with its preprocessing and a generator of patches (METHOD 8; paper 3.1).

>>> from samcp import Predictor
>>> predictor = Predictor.from_pretrained()
>>> scene = predictor("cat.png")
>>> scene.segment("cat, dog")
<Result 300 x 451: 1 cat>
"""

import os
import threading
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import transforms as T
from detectron2.data.detection_utils import convert_PIL_to_numpy
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from proposal_cache import ContourGenerator, Patches
from proposal_cache.generation.sources import read_image, turn_upright
from proposal_cache.generators.base import Generator
from samcp import model_zoo
from samcp.checkpoint import load_trained_model
from samcp.config import parse_config
from samcp.data.dataset_mapper import augment_image, build_augmentations
from samcp.download import fetch, is_url
from samcp.errors import CheckpointError, DataError, UsageError
from samcp.export import SUFFIX, ModelFile
from samcp.modeling.meta_arch import SAMCP
from samcp.scene import Scene, check_size
from samcp.vocabulary import Vocabulary

Picture = str | os.PathLike[str] | Image.Image | NDArray[np.uint8] | Tensor


class Predictor:
    """Trained model with its preprocessing and a generator of patches.

    Several threads may use one predictor: each gets the results that it would get alone.

    Args:
        model: the model; it is set to evaluation mode.
        augmentations: preprocessing of images, as in evaluation, without crops.
        image_format: of the network's input, a PIL mode or "BGR".
        generator: makes the patches of images; default: :class:`ContourGenerator`, which needs no download.

    Attributes:
        vocabulary: default classes of :meth:`Scene.segment`: those of the training, or for a model that finds objects
            of any kind, those of COCO.
        generator: may be replaced, for example by a ``SamGenerator``.
        lock: held while the model's classes are changed and used.
    """

    def __init__(
        self,
        model: SAMCP,
        *,
        augmentations: Sequence[T.Augmentation],
        image_format: str,
        generator: Generator | None = None,
    ) -> None:
        self.model = model.eval()
        self.augmentations = T.AugmentationList(augmentations)
        self.image_format = image_format
        self.generator: Generator = generator or ContourGenerator(device=str(model.device))
        self.vocabulary = model.vocabulary if model.namer is None else self.distinct(Vocabulary.load("coco"))
        self.lock = threading.Lock()

    @classmethod
    def from_pretrained(
        cls,
        name: str | os.PathLike[str] = model_zoo.DEFAULT,
        *,
        device: str = "",
        clip: str = "",
        generator: Generator | None = None,
    ) -> "Predictor":
        """Load a shipped model, a checkpoint of train_net.py, or a model file.

        >>> Predictor.from_pretrained("samcp-everyday-lite", device="cpu").vocabulary.names[:3]
        ('person', 'bicycle', 'car')

        Args:
            name: of a shipped model (`samcp models` lists them), or path or URL of a file, which is downloaded once;
                files contain their config.
            device: such as "cpu" or "cuda:1"; default: the GPU if there is one.
            clip: "FILE" or "TAG", weights of the config's CLIP model, for example if the file has moved since the
                training; or "NAME:FILE" or "NAME:TAG" for another model of open_clip, which gives words to a model that
                was trained without names.
            generator: see the class.

        Raises:
            CheckpointError: the file is missing, damaged, or of another program.
            UsageError: the device is not available.
        """
        _check_device(device)
        name = os.fspath(name)
        path = fetch(name) if is_url(name) else Path(model_zoo.find(name))
        try:
            file = ModelFile.load(path) if path.suffix == SUFFIX else ModelFile.of_checkpoint(path)
        except CheckpointError as error:
            if not is_url(name):
                raise
            raise CheckpointError(f"{error}; to download {name} again, delete the file") from error
        cfg = parse_config(file.config)
        cfg.MODEL.WEIGHTS = str(path)
        if clip:
            clip_name, _, cfg.MODEL.CLIP.PRETRAINED = clip.rpartition(":")
            cfg.MODEL.CLIP.NAME = clip_name or cfg.MODEL.CLIP.NAME
            if cfg.MODEL.SAMCP.NAMING.ENCODER:
                cfg.MODEL.SAMCP.NAMING.ENCODER = "clip"
        cfg.MODEL.DEVICE = device or default_device()
        return cls.from_config(cfg, file.vocabulary, generator)

    @classmethod
    def from_config(
        cls, cfg: CfgNode, vocabulary: Vocabulary | None = None, generator: Generator | None = None
    ) -> "Predictor":
        """Build the model of a config with the weights of MODEL.WEIGHTS.

        >>> from samcp.config import parse_config
        >>> file = ModelFile.load(Path(model_zoo.find("samcp-everyday-lite")))
        >>> cfg = parse_config(file.config)
        >>> cfg.MODEL.WEIGHTS, cfg.MODEL.DEVICE = model_zoo.find("samcp-everyday-lite"), "cpu"
        >>> Predictor.from_config(cfg, file.vocabulary).has_instances
        True

        Args:
            vocabulary: classes of the training; default: those in the checkpoint, or of the config's datasets.
            generator: see the class.

        Raises:
            CheckpointError: MODEL.WEIGHTS is empty, or the weights are of another model.
        """
        if not cfg.MODEL.WEIGHTS:
            raise CheckpointError("MODEL.WEIGHTS is empty; set it to the checkpoint of a trained model")
        model = load_trained_model(cfg, cfg.MODEL.WEIGHTS, vocabulary)
        augmentations = build_augmentations(cfg, is_train=False)
        return cls(model, augmentations=augmentations, image_format=cfg.INPUT.FORMAT, generator=generator)

    @property
    def has_instances(self) -> bool:
        """Whether the model has instance queries.

        >>> predictor.has_instances
        True
        """
        return self.model.query_builder.instance_queries

    def check_words(self, vocabulary: Vocabulary) -> None:
        """Raise ValueError, naming similar known words, if the model has no text encoder and lacks some classes.

        >>> predictor.check_words(Vocabulary.parse("cat, elefant"))
        Traceback (most recent call last):
        ValueError: unknown without a text encoder: 'elefant' (near: elephant, ...
        """
        if self.model.namer is None:
            self.model.class_embedding.check_words(vocabulary.words)
        elif not all(vocabulary.known_to(self.model.trained_vocabulary)):
            self.model.namer.check_words(vocabulary.words)

    def distinct(self, vocabulary: Vocabulary) -> Vocabulary:
        """Return the classes that the model knows and, of several with the same meaning, only one.

        >>> predictor.distinct(Vocabulary.parse("cat, elefant, kitty")).names
        ('cat',)
        """
        namer = self.model.namer
        return vocabulary if namer is None else vocabulary.select(namer.distinct(vocabulary.words))

    def __call__(self, image: Picture, patches: Patches | None = None) -> Scene:
        """Encode one image; see :meth:`batch`.

        >>> scene = predictor("cat.png")
        >>> scene.image.shape, len(scene.patches) > 50
        ((300, 451, 3), True)
        """
        return self.batch([image], None if patches is None else [patches])[0]

    @torch.no_grad()
    def batch(self, images: Sequence[Picture], patches: Sequence[Patches] | None = None) -> list[Scene]:
        """Run the backbone and the patch encoder, the most expensive parts, on a batch of images.

        >>> scenes = predictor.batch(["cat.png", np.zeros((40, 60, 3), np.uint8)])
        >>> [scene.image.shape for scene in scenes]
        [(300, 451, 3), (40, 60, 3)]

        Args:
            images: paths, URLs, PIL images, (H, W, 3) uint8 RGB arrays, or (3, H, W) uint8 RGB tensors. Files and PIL
                images are turned upright by their EXIF orientation.
            patches: one per image, from any generator; N may be 0. Default: made by :attr:`generator`.

        Raises:
            DataError, CacheError: an image cannot be read, or its size differs from that of its patches.
        """
        pixels = [_read(image) for image in images]
        if not pixels:
            return []
        if patches is None:
            patches = [self.generator(image) for image in pixels]
        inputs = []
        for image, rgb, image_patches in zip(images, pixels, patches, strict=True):
            check_size(
                rgb.shape[:2], image_patches, str(image) if isinstance(image, str | os.PathLike) else "the image"
            )
            inputs.append(
                augment_image(
                    convert_PIL_to_numpy(Image.fromarray(rgb), self.image_format),
                    image_patches,
                    augmentations=self.augmentations,
                    roi_size=self.model.roi_size,
                    min_patch_area=0,
                )
            )
        encoded = self.model.encode([{"image": x.image, "patches": x.patches} for x in inputs])
        return [
            Scene(self, rgb, x.visible, x.mapping, encoded.image(i))
            for i, (rgb, x) in enumerate(zip(pixels, inputs, strict=True))
        ]


def default_device() -> str:
    """Return "cuda" if there is a GPU, else "cpu"."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def _check_device(name: str) -> None:
    try:
        if name:
            torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as error:  # AssertionError if PyTorch was built without CUDA
        raise UsageError(f"device {name!r} is not available; try cpu ({str(error).splitlines()[0]})") from error


def _read(image: Picture) -> NDArray[np.uint8]:
    """Return the pixels (H, W, 3) RGB of any kind of image."""
    if isinstance(image, str | os.PathLike):
        return read_image(image)
    if isinstance(image, Image.Image):
        return np.asarray(turn_upright(image).convert("RGB"))
    pixels = image.permute(1, 2, 0).cpu().numpy() if isinstance(image, Tensor) and image.ndim == 3 else image
    if isinstance(pixels, np.ndarray) and pixels.dtype == np.uint8 and pixels.ndim == 3 and pixels.shape[2] == 3:
        return np.ascontiguousarray(pixels)
    found = f"{tuple(image.shape)} {image.dtype}" if isinstance(image, np.ndarray | Tensor) else repr(image)
    raise DataError(
        f"image must be a path, a PIL image, an (H, W, 3) uint8 RGB array or a (3, H, W) uint8 RGB tensor, not {found}"
    )
