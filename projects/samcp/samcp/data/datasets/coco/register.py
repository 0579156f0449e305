"""COCO: Detectron2 registers it, here are the words by which its classes are asked for."""

from detectron2.data import MetadataCatalog

from samcp.data.datasets.catalog import as_vocabulary
from samcp.vocabulary import Vocabulary


def register_coco() -> None:
    """Give Detectron2's coco_2017_{train,val}_panoptic our vocabulary, and coco_2017_{train,val} that of the things."""
    coco = Vocabulary.load("coco")
    things = [words for words, is_thing in zip(coco.words, coco.is_thing, strict=True) if is_thing]
    for split in ("train", "val"):
        MetadataCatalog.get(f"coco_2017_{split}_panoptic").set(vocabulary="coco")
        MetadataCatalog.get(f"coco_2017_{split}").set(vocabulary=as_vocabulary(things))
