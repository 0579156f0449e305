"""Datasets that Detectron2 does not know; importing this registers them under DETECTRON2_DATASETS."""

from .camvid import register_camvid
from .synthetic import register_synthetic

register_camvid()
register_synthetic()
