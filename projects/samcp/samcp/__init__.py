"""SAM-CP, a Detectron2 project: importing it registers the meta-architecture, the backbones and the datasets."""

from .config import add_samcp_config
from .meta_arch import SAMCP
from .modeling import backbone
from .structures import RLEMasks

__all__ = ["SAMCP", "RLEMasks", "add_samcp_config", "backbone"]
