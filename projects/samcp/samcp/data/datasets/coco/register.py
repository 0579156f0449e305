"""COCO: vocabularies for the datasets that Detectron2 registers."""

from detectron2.data import MetadataCatalog

from samcp.data.datasets.catalog import as_vocabulary
from samcp.vocabulary import Vocabulary


def register_coco() -> None:
    """Set the vocabularies of coco_2017_{train,val}_panoptic (all classes) and coco_2017_{train,val} (things)."""
    coco = Vocabulary.load("coco")
    things = [words for words, is_thing in zip(coco.words, coco.is_thing, strict=True) if is_thing]
    for split in ("train", "val"):
        MetadataCatalog.get(f"coco_2017_{split}_panoptic").set(vocabulary="coco")
        MetadataCatalog.get(f"coco_2017_{split}").set(vocabulary=as_vocabulary(things))
