"""Device of the tests that compare a GPU with the CPU; the CPU if there is no GPU, so that they run all the same."""

import pytest
import torch

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
needs_gpu = pytest.mark.skipif(DEVICE == "cpu", reason="needs a GPU")
