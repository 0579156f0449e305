"""Images of folders and lists, their keys, and reading them."""

import errno
import hashlib
import os
import struct
from contextlib import suppress
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
from PIL import ExifTags, Image, ImageFile

from proposal_cache.generation import sources
from proposal_cache.generation.sources import (
    ImageError,
    SourceError,
    from_folder,
    from_list,
    image_key,
    image_size,
    read_image,
    with_boxes,
)
from tests.proposal_cache.turned_images import UPRIGHT, write_turned


def write(path: Path, color: tuple[int, int, int] = (255, 0, 0), size: tuple[int, int] = (6, 4)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, color).save(path)
    return path


def test_key_is_the_path_below_the_root_without_suffix() -> None:
    assert image_key("d/val2017/000000000139.jpg", "./d/val2017") == "000000000139"
    assert image_key("d/a.b.jpg", "d") == "a.b"


@pytest.mark.parametrize("path", ["/other/a.jpg", "/images/../a.jpg", "/images"])
def test_image_outside_the_root_has_no_key(path: str) -> None:
    with pytest.raises(SourceError, match="is not under the image root /images"):
        image_key(path, "/images")


def test_folder_is_searched_recursively(tmp_path: Path) -> None:
    for name in ("b.png", "a/z.JPG", "a/y.png"):
        write(tmp_path / name)
    (tmp_path / "notes.txt").write_text("not an image")
    assert [image.key for image in from_folder(tmp_path)] == ["a/y", "a/z", "b"]


def test_links_are_followed_unless_they_form_a_cycle(tmp_path: Path) -> None:
    write(tmp_path / "elsewhere/deep/x.png")
    write(tmp_path / "root/real/a.png")
    (tmp_path / "root/link").symlink_to(tmp_path / "elsewhere")
    for link, target in {"root/again": "root", "elsewhere/deep/back": "elsewhere", "root/real/up": "."}.items():
        (tmp_path / link).symlink_to(tmp_path / target)
    (tmp_path / "root/other").symlink_to(tmp_path / "root/real")
    images = from_folder(tmp_path / "root")
    assert [image.key for image in images] == ["link/deep/x", "other/a", "real/a"]
    assert images[0].path == tmp_path / "root/link/deep/x.png"


def test_unreadable_files_and_folders_are_not_skipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A lost disk must not make the dataset smaller without an error."""
    write(tmp_path / "a.png")
    (tmp_path / "b.png").symlink_to(tmp_path / "gone.png")
    (tmp_path / "c.png").mkdir()
    os.mkfifo(tmp_path / "d.png")
    (tmp_path / "sub").mkdir()
    images = from_folder(tmp_path)
    assert [image.key for image in images] == ["a", "b"]
    with pytest.raises(ImageError, match=r"b\.png .*No such file"):
        read_image(images[1].path)
    scan = os.scandir

    def fail(path: str) -> object:
        if str(path).endswith("sub"):
            raise OSError(errno.EIO, "Input/output error", path)
        return scan(path)

    monkeypatch.setattr(os, "scandir", fail)
    with pytest.raises(SourceError, match=r"sub cannot be listed: Input/output error"):
        from_folder(tmp_path)


def test_invalid_file_names_are_listed(tmp_path: Path) -> None:
    for i in range(4):
        write(tmp_path / f"back\\slash{i}.png")
    for name in ("new\nline.png", os.fsdecode(b"\xff.png"), "good.png"):
        write(tmp_path / name)
    with pytest.raises(SourceError, match=r"rename 6 images of .* \(.*back.*slash0\.png.*, \.\.\.\)") as caught:
        from_folder(tmp_path)
    assert "cannot be a key" in str(caught.value)
    with pytest.raises(
        SourceError, match=r"rename 1 images of the list .*cannot be a key: its file name is not valid text"
    ):
        from_list([("\udcff", "x.png")])


def test_folder_without_images(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"no images in .* \(supported: \.bmp"):
        from_folder(tmp_path)


def test_two_images_with_the_same_key(tmp_path: Path) -> None:
    write(tmp_path / "a.png")
    write(tmp_path / "a.jpg")
    with pytest.raises(SourceError, match=r"two images with the key 'a': .*a\.jpg and .*a\.png"):
        from_folder(tmp_path)
    assert len(from_list([("a", "x.png"), ("a", "x.png")])) == 1


def test_boxes_are_added_to_images(tmp_path: Path) -> None:
    images = from_list([(key, write(tmp_path / f"{key}.png")) for key in "abc"])
    path = tmp_path / "boxes.json"
    path.write_text('{"a": [[0, 0, 6, 4], [4.5, 1, 9, 3]]}')
    found, digest = with_boxes(images, path)
    assert [image.boxes for image in found] == [((0, 0, 6, 4), (4.5, 1, 9, 3)), (), ()]
    assert digest == hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.mark.parametrize(
    ("content", "error"),
    [
        ("[1", r"boxes\.json cannot be read as json"),
        ("[" * 100_000, r"boxes\.json cannot be read as json"),
        ("[]", "must be a json object"),
        ('{"a": 3}', "must be a json object"),
        ('{"a": [], "x": [], "y/z": []}', r"2 keys that are not images \('x', 'y/z'\)"),
        ('{"a": [[0, 0, 5]]}', r"\[0, 0, 5\] of 'a' is not a box"),
        ('{"a": [[3, 0, 2, 4]]}', "is not a box"),
        ('{"a": [[0, 0, NaN, 4]]}', "is not a box"),
        ('{"a": [[0, 0, 1e999, 4]]}', "is not a box"),
        ('{"a": [[0, 0, "4", 4]]}', "is not a box"),
        ('{"a": [[0, 0, 4, 4], [6, 0, 8, 4]]}', r"\[6, 0, 8, 4\] is outside .*a\.png of 6 x 4 pixels"),
        ('{"a": [[0, -3, 4, 0]]}', "is outside"),
        ('{"turned": [[4, 0, 5, 4]]}', "is outside .*turned.png of 4 x 6"),
    ],
)
def test_invalid_boxes(tmp_path: Path, content: str, error: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # rotated by 90 degrees
    Image.new("RGB", (6, 4)).save(tmp_path / "turned.png", exif=exif)
    write(tmp_path / "a.png")
    (tmp_path / "boxes.json").write_text(content)
    with pytest.raises(SourceError, match=error):
        with_boxes(from_list((key, tmp_path / f"{key}.png") for key in ("a", "turned")), tmp_path / "boxes.json")


def test_all_modes_are_read_as_rgb(tmp_path: Path) -> None:
    for mode in ("L", "P", "RGBA", "CMYK", "1"):
        path = tmp_path / f"{mode}.tif"
        Image.new(mode, (6, 4)).save(path)
        pixels = read_image(path)
        assert (pixels.shape, pixels.dtype) == ((4, 6, 3), np.uint8)


@pytest.mark.parametrize("suffix", ["jpg", "png", "tif", "lzw.tif"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_images_are_turned_upright(tmp_path: Path, orientation: int, suffix: str) -> None:
    path = tmp_path / f"turned.{suffix}"
    write_turned(path, UPRIGHT, orientation)
    np.testing.assert_allclose(read_image(path).astype(int), UPRIGHT, atol=8)
    assert image_size(path) == UPRIGHT.shape[1::-1]


def test_damaged_exif_is_ignored(tmp_path: Path) -> None:
    short, text = 3, 2
    head = b"Exif\0\0II*\0" + struct.pack("<IH", 8, 2)
    turned = struct.pack("<HHIHH", ExifTags.Base.Orientation, short, 1, 6, 0)
    odd = struct.pack("<HHI4s", ExifTags.Base.Orientation, text, 4, b"six")
    resolution = struct.pack("<HHI4sI", ExifTags.Base.XResolution, text, 4, b"bad", 0)
    for name, entry, shape in (("turned", turned, (6, 4, 3)), ("odd", odd, (4, 6, 3))):
        Image.new("RGB", (6, 4)).save(tmp_path / f"{name}.jpg", exif=head + entry + resolution)
        assert read_image(tmp_path / f"{name}.jpg").shape == shape


def test_unreadable_images(tmp_path: Path) -> None:
    (tmp_path / "empty.jpg").touch()
    (tmp_path / "text.jpg").write_text("no image")
    (tmp_path / "eps.jpg").write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n")
    whole = write(tmp_path / "cut.png", size=(200, 200))
    whole.write_bytes(whole.read_bytes()[:60])
    Image.new("I;16", (6, 4)).save(tmp_path / "deep.png")
    for name, message in {
        "empty.jpg": "the file is empty",
        "absent.jpg": "No such file",
        "cut.png": "cannot be read",
        "text.jpg": "its format is unknown",
        "eps.jpg": "its format is unknown",  # Pillow would run Ghostscript
        "deep.png": "more than 8 bits per channel",
    }.items():
        with pytest.raises(ImageError, match=f"{name} .*{message}"):
            read_image(tmp_path / name)


@pytest.mark.parametrize("error", [MemoryError(), IndexError("index out of range")])
def test_any_exception_of_a_decoder_is_an_image_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    monkeypatch.setattr(ImageFile.ImageFile, "load", Mock(side_effect=error))
    with pytest.raises(ImageError, match=rf"a\.png cannot be read as an image: ({type(error).__name__}|index)"):
        read_image(write(tmp_path / "a.png"))


def test_images_with_too_many_pixels_are_rejected_before_decoding(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Image.new("1", (300, 200)).save(tmp_path / "large.png")
    monkeypatch.setattr(sources, "MAX_PIXELS", 60_000)
    assert read_image(tmp_path / "large.png").shape == (200, 300, 3)
    monkeypatch.setattr(sources, "MAX_PIXELS", 59_999)
    with pytest.raises(ImageError, match=r"large.png cannot .* 300 x 200 pixels, at most 59999 .* split it into tiles"):
        read_image(tmp_path / "large.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 20_000)
    with pytest.raises(ImageError, match=r"large.png cannot .* split it into tiles"):
        read_image(tmp_path / "large.png")


def test_no_flipped_bit_changes_a_png(tmp_path: Path) -> None:
    """Pillow alone reads other pixels for most of them."""
    pixels = np.arange(60 * 80 * 3, dtype=np.uint32).reshape(60, 80, 3).astype(np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    content, random = (tmp_path / "a.png").read_bytes(), np.random.default_rng(0)
    for position in random.integers(0, len(content), 100).tolist():
        damaged = bytearray(content)
        damaged[position] ^= 1 << int(random.integers(8))
        with suppress(ImageError):
            assert np.array_equal(read_image("a.png", bytes(damaged)), pixels), "only the end mark may be damaged"
