"""COCO: Detectron2 registers it all, but its 80 things alone without the words by which its panoptic form is asked."""

from detectron2.data import MetadataCatalog

from samcp.data.vocabulary import Vocabulary

from .catalog import as_vocabulary


def register_coco() -> None:
    """Give Detectron2's coco_2017_{train,val} the words of the things of our vocabulary."""
    coco = Vocabulary.load("coco")
    things = [words for words, is_thing in zip(coco.words, coco.is_thing, strict=True) if is_thing]
    for split in ("train", "val"):
        MetadataCatalog.get(f"coco_2017_{split}").set(vocabulary=as_vocabulary(things))
