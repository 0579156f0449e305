"""The examples in the docstrings of the Python interface run."""

import doctest
import importlib

import numpy as np
import pytest
import skimage.data
from PIL import Image

from samcp import Predictor
from samcp.vocabulary import Vocabulary


@pytest.fixture(scope="module")
def names(tmp_path_factory):
    """Return the variables of the examples: a photograph of a cat, encoded and segmented."""
    photo = tmp_path_factory.mktemp("photo") / "cat.png"
    Image.fromarray(skimage.data.chelsea()).save(photo)
    predictor = Predictor.from_pretrained(device="cpu")
    scene = predictor(photo)
    result = scene.segment("cat, dog")
    return photo.parent, {"np": np, "Vocabulary": Vocabulary, "predictor": predictor, "scene": scene, "result": result}


MODULES = ("config_overrides", "download", "parts", "predictor", "scene", "result", "result_files", "vocabulary")


@pytest.mark.parametrize("module", MODULES)
def test_examples(module, names, monkeypatch):
    folder, variables = names
    monkeypatch.chdir(folder)
    options = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE | doctest.IGNORE_EXCEPTION_DETAIL
    tested = importlib.import_module(f"samcp.{module}")
    outcome = doctest.testmod(tested, extraglobs=variables, optionflags=options)
    assert outcome.attempted > 0
    assert outcome.failed == 0
