"""Vocabularies shared by several registered datasets."""

import pytest

import samcp.data.datasets  # noqa: F401  registers the datasets
from samcp.vocabulary import Vocabulary


@pytest.mark.parametrize(
    ("name", "whole", "shared"),
    [
        ("ade20k_instance_val", "ade20k", 100),
        ("ade20k_panoptic_val", "ade20k", 150),
        ("pascal_part_general_train", "pascal_part", 93),
    ],
)
def test_datasets_of_one_vocabulary_have_the_same_words(name, whole, shared):
    found = {words[0]: words for words in Vocabulary.of_dataset(name).words}
    expected = {words[0]: words for words in Vocabulary.load(whole).words if words[0] in found}
    assert len(expected) == shared
    assert {name: found[name] for name in expected} == expected
