"""Quality of single images."""

import pytest

from samcp.data.build import load_records
from samcp.evaluation.image_quality import segment_images
from samcp.predictor import Predictor
from samcp.vocabulary import Vocabulary
from tests.toy_datasets import panoptic_dataset


def test_classes_that_the_model_cannot_name_are_not_found(tmp_path):
    """As in the evaluation before it, although `Scene.segment` rejects such words."""
    predictor = Predictor.from_pretrained(device="cpu")
    with panoptic_dataset(tmp_path, "toy_quality", count=1) as name:
        vocabulary = Vocabulary.of_dataset(name)
        with pytest.raises(ValueError, match="unknown without a text encoder: 'disc'"):
            predictor.check_words(vocabulary)
        records, cache = load_records(name, str(tmp_path / "patches"))
        [image] = segment_images(predictor, name, records, cache)
    assert 0 <= image.quality <= 100
    assert vocabulary.names.index("disc") not in image.predicted.classes
