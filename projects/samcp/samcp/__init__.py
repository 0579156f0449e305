"""SAM-CP, a Detectron2 project: importing it registers the meta-architecture, the backbones and the datasets."""

from samcp.config import add_samcp_config
from samcp.data import datasets
from samcp.modeling import backbone
from samcp.modeling.meta_arch import SAMCP
from samcp.structures import RLEMasks

__all__ = ["SAMCP", "RLEMasks", "add_samcp_config", "backbone", "datasets"]
