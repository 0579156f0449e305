"""Datasets that Detectron2 does not know, or not as needed: importing this registers them under DETECTRON2_DATASETS."""

from .ade20k import register_ade20k
from .camvid import register_camvid
from .cityscapes import register_cityscapes
from .coco import register_coco
from .cod10k import register_cod10k
from .own import register_environment
from .pascal_part import register_pascal_part
from .synthetic import register_synthetic

register_ade20k()
register_camvid()
register_cityscapes()
register_coco()
register_cod10k()
register_pascal_part()
register_synthetic()
register_environment()
