"""Datasets that Detectron2 lacks or registers differently; importing this registers them under DETECTRON2_DATASETS."""

from samcp.data.datasets.ade20k.register import register_ade20k
from samcp.data.datasets.bsds500.register import register_bsds500
from samcp.data.datasets.camvid.register import register_camvid
from samcp.data.datasets.ccp.register import register_ccp
from samcp.data.datasets.cityscapes.register import register_cityscapes
from samcp.data.datasets.coco.register import register_coco
from samcp.data.datasets.cod10k.register import register_cod10k
from samcp.data.datasets.custom.register import register_environment
from samcp.data.datasets.miniature.register import register_miniature
from samcp.data.datasets.pascal_part.register import register_pascal_part
from samcp.data.datasets.synthetic.register import register_synthetic

register_ade20k()
register_bsds500()
register_camvid()
register_ccp()
register_cityscapes()
register_coco()
register_cod10k()
register_miniature()
register_pascal_part()
register_synthetic()
register_environment()
