"""Changes to the files of a custom dataset that check_dataset must report."""

import json

import numpy as np
from PIL import Image


def edit(path, change):
    """Apply `change` to the content of a json file."""
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def fill(path, value, where=np.s_[30:35, 5:9]):
    """Set pixels of an image file to a value."""
    pixels = np.asarray(Image.open(path)).copy()
    pixels[where] = value
    Image.fromarray(pixels).save(path)


def flip(path, position):
    """Flip a bit of a file."""
    content = bytearray(path.read_bytes())
    content[position] ^= 16
    path.write_bytes(content)


def break_box(content):
    """Move the first box partly outside the image."""
    content["annotations"][0]["bbox"] = [50, 8, 20, 12]


def break_polygon(content):
    """Replace the first polygon by one of a single point."""
    content["annotations"][0]["segmentation"] = [[1, 2]]


def duplicate(content):
    """Add a copy of the first instance with another id."""
    content["annotations"].append({**content["annotations"][0], "id": 9})


def duplicate_as_boat(content):
    """Add a copy of the first instance with another category."""
    content["categories"].append({"id": 8, "name": "boat"})
    duplicate(content)
    content["annotations"][-1]["category_id"] = 8


def add_containing_kite(content):
    """Add a kite that contains the first one."""
    duplicate(content)
    box = {"segmentation": [[10, 8, 50, 8, 50, 20, 10, 20]], "bbox": [10, 8, 40, 12], "area": 480}
    content["annotations"][-1].update(box)


def set_value(which, key, value):
    """Return a function that sets a key of the first entry of a list."""

    def change(content):
        content[which][0][key] = value

    return change


def add_image(content):
    """Add an image without annotations."""
    content["images"].append({**content["images"][0], "id": 3, "file_name": "three.jpg"})


def renumber(content):
    """Replace all image ids."""
    for image in content["images"]:
        image["id"] = f"x{image['id']}"
    for annotation in content["annotations"]:
        annotation["image_id"] = f"x{annotation['image_id']}"


def wrong_height(content):
    """Change the height of the first image."""
    content["images"][0]["height"] = 41


def wrong_area(content):
    """Change the area of the first segment."""
    content["annotations"][0]["segments_info"][0]["area"] = 5


def add_segment_without_pixels(content):
    """Add a segment that has no pixels in the PNG."""
    content["annotations"][0]["segments_info"].append({"id": 99, "category_id": 7, "area": 3, "iscrowd": 0})
