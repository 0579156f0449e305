"""Images in the data loader."""

import numpy as np
import pytest

from proposal_cache.generation import sources
from samcp.data.image_io import read_image, read_image_size
from tests.proposal_cache.turned_images import UPRIGHT, write_turned


@pytest.mark.parametrize("suffix", ["jpg", "png", "tif"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_images_have_the_orientation_of_their_patches(tmp_path, orientation, suffix):
    path = tmp_path / f"turned.{suffix}"
    write_turned(path, UPRIGHT, orientation)
    generated = sources.read_image(path)
    np.testing.assert_array_equal(read_image(str(path), "RGB"), generated)
    np.testing.assert_array_equal(read_image(str(path), "BGR"), generated[:, :, ::-1])
    assert read_image_size(str(path)) == generated.shape[:2] == UPRIGHT.shape[:2]
