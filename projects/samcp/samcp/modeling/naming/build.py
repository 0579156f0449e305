"""Construction of the namer from a config."""

from detectron2.config import CfgNode

from samcp import model_zoo
from samcp.errors import UsageError, naming_config_key
from samcp.modeling.naming.base import Namer
from samcp.modeling.naming.clip import CLIPNamer
from samcp.modeling.naming.imagenet import ImageNetNamer, LearnedWords

ENCODERS = ("", "imagenet", "clip")


def build_namer(cfg: CfgNode) -> Namer | None:
    """Return the namer of MODEL.SAMCP.NAMING, None if there is none.

    Raises:
        UsageError: a key has an invalid value.
        CheckpointError: the encoder's weights are missing.
    """
    options = cfg.MODEL.SAMCP.NAMING
    if options.ENCODER not in ENCODERS:
        raise UsageError(f"MODEL.SAMCP.NAMING.ENCODER is {options.ENCODER!r}; choose 'imagenet', 'clip' or ''")
    if not options.ENCODER:
        return None
    if options.ENCODER == "imagenet":
        with naming_config_key("MODEL.SAMCP.NAMING"):
            return ImageNetNamer(LearnedWords.load(model_zoo.WORDS), min_size=options.MIN_SIZE)
    clip = cfg.MODEL.CLIP
    with naming_config_key("MODEL.CLIP"):
        return CLIPNamer(
            name=clip.NAME,
            pretrained=clip.PRETRAINED,
            prompts=cfg.MODEL.SAMCP.TEXT.PROMPTS,
            min_size=options.MIN_SIZE,
        )
