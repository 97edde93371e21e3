import errno
import gzip
import hashlib
import io
import struct

import numpy as np
import pytest
from PIL import Image

from medfinetune.data.images import ImageOptions, UnreadableImage, open_image, store_image
from tests.data.raw_folders import picture, save


def pixels(path) -> np.ndarray:
    image = open_image(path)
    assert image.mode == "RGB"
    return np.asarray(image)


@pytest.mark.parametrize("format_name", ["PNG", "TIFF", "BMP", "WEBP", "JPEG"])
def test_the_bytes_tell_the_format(tmp_path, format_name):
    path = tmp_path / "image.dcm"
    picture(1).save(path, format=format_name, **({"lossless": True} if format_name == "WEBP" else {}))
    if format_name == "JPEG":
        assert pixels(path).shape == (10, 12, 3)
    else:
        assert np.array_equal(pixels(path), np.asarray(picture(1)))


@pytest.mark.parametrize(
    ("values", "full_scale"),
    [
        (np.array([[0, 100, 255]], np.uint16), 255),
        (np.array([[0, 256, 700]], np.uint16), 1023),
        (np.array([[0, 100, 4095]], np.uint16), 4095),
        (np.array([[0, 30_000, 57_000]], np.uint16), 65535),
        (np.array([[0, 30_000, 1_000_000]], np.int32), 1_000_000),
        (np.array([[-1000, 0, 3000]], np.int32), 4095),
        (np.array([[0, 0.25, 0.75]], np.float32), 1),
        (np.array([[0, 60.0, 250.0]], np.float32), 255),
    ],
)
def test_grey_is_scaled_by_value_and_never_clipped(tmp_path, values, full_scale):
    path = save(tmp_path / "grey.tiff", Image.fromarray(values))
    expected = np.rint((values - min(values.min(), 0)) * (255 / full_scale))
    assert np.array_equal(pixels(path)[..., 0], expected)
    assert len(np.unique(expected)) == 3


def test_16_bit_png_keeps_its_differences(tmp_path):
    values = np.linspace(0, 57_454, 256).astype(np.uint16).reshape(16, 16)
    path = save(tmp_path / "grey.png", Image.fromarray(values))
    assert Image.open(path).mode == "I;16"
    assert pixels(path).mean() == pytest.approx(values.mean() / 65535 * 255, rel=0.02)
    assert len(np.unique(pixels(path))) > 200


def test_transparent_pixels_are_white(tmp_path):
    rgba = Image.new("RGBA", (2, 1), (10, 20, 30, 255))
    rgba.putpixel((1, 0), (10, 20, 30, 0))
    assert pixels(save(tmp_path / "rgba.png", rgba)).tolist() == [[[10, 20, 30], [255, 255, 255]]]
    grey = Image.new("LA", (1, 1), (0, 0))
    assert pixels(save(tmp_path / "la.png", grey)).tolist() == [[[255, 255, 255]]]


def test_palette_and_cmyk(tmp_path):
    palette = Image.new("P", (2, 1))
    palette.putpalette([255, 0, 0, 0, 0, 255])
    palette.putpixel((1, 0), 1)
    assert pixels(save(tmp_path / "p.png", palette)).tolist() == [[[255, 0, 0], [0, 0, 255]]]
    palette.info["transparency"] = 1
    palette.save(tmp_path / "pt.png", transparency=1)
    assert pixels(tmp_path / "pt.png").tolist() == [[[255, 0, 0], [255, 255, 255]]]
    cmyk = Image.new("CMYK", (1, 1), (0, 255, 255, 0))
    assert pixels(save(tmp_path / "cmyk.tiff", cmyk)).tolist() == [[[255, 0, 0]]]


def test_exif_orientation_is_applied(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by 90 degrees
    picture(1).save(tmp_path / "turned.png", exif=exif)
    assert np.array_equal(pixels(tmp_path / "turned.png"), np.rot90(np.asarray(picture(1)), -1))


def make_bomb() -> bytes:
    file = io.BytesIO()
    Image.new("1", (20_000, 20_000)).save(file, format="PNG")
    return file.getvalue()


def nifti() -> bytes:
    return (348).to_bytes(4, "little") + b"\0" * 340 + b"n+1\0" + b"\0" * 900


def encoded(format_name: str) -> bytes:
    file = io.BytesIO()
    picture(1, (200, 200)).save(file, format=format_name)
    return file.getvalue()


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "empty file"),
        (b"PatientName: nobody\n" * 20, "not an image"),
        (encoded("PNG")[:3000], "truncated image"),
        (encoded("JPEG")[:3000], "truncated image"),
        (encoded("PNG")[:20], "damaged image"),
        (encoded("PNG")[:3000] + b"\0" * 3000 + encoded("PNG")[6000:], "damaged image"),
        (make_bomb(), "image is too large"),
        (nifti(), "NIfTI volume, not an image"),
        (gzip.compress(nifti(), mtime=0), "NIfTI volume, not an image"),
        (gzip.compress(b"text" * 200, mtime=0), "not an image"),
    ],
)
def test_unreadable_files_have_a_reason(tmp_path, content, reason):
    path = tmp_path / "image.png"
    path.write_bytes(content)
    with pytest.raises(UnreadableImage) as caught:
        open_image(path)
    assert caught.value.reason == reason


def test_missing_file_and_folder(tmp_path):
    with pytest.raises(UnreadableImage, match="no such file"):
        open_image(tmp_path / "none.png")
    with pytest.raises(UnreadableImage, match="file cannot be read"):
        open_image(tmp_path)


def test_store_names_by_pixels_and_keeps_them(tmp_path):
    first = store_image(save(tmp_path / "a.png", 1), tmp_path, ImageOptions(2240))
    second = store_image(save(tmp_path / "b.bmp", 1), tmp_path, ImageOptions(2240))
    assert first == second
    assert first.file == f"images/{first.sha256[:2]}/{first.sha256}.png"
    assert first.sha256 == hashlib.sha256(b"12x10" + picture(1).tobytes()).hexdigest()
    with Image.open(tmp_path / first.file) as stored:
        assert (stored.format, stored.mode) == ("PNG", "RGB")
        assert np.array_equal(np.asarray(stored), np.asarray(picture(1)))
    assert not list(tmp_path.rglob("*.tmp"))


def test_hash_knows_the_dimensions(tmp_path):
    wide = store_image(save(tmp_path / "a.png", Image.new("RGB", (4, 2))), tmp_path, ImageOptions(2240))
    high = store_image(save(tmp_path / "b.png", Image.new("RGB", (2, 4))), tmp_path, ImageOptions(2240))
    assert wide.sha256 != high.sha256


def test_longest_side_is_reduced(tmp_path):
    path = save(tmp_path / "a.png", picture(1, (60, 30)))
    full, reduced = store_image(path, tmp_path, ImageOptions(60)), store_image(path, tmp_path, ImageOptions(20))
    assert full.sha256 == reduced.sha256
    assert full.file != reduced.file
    assert (reduced.width_px, reduced.height_px) == (60, 30)
    assert Image.open(tmp_path / full.file).size == (60, 30)
    assert Image.open(tmp_path / reduced.file).size == (20, 10)


def test_one_half_of_a_picture(tmp_path):
    path = save(tmp_path / "a.png", 1)
    left, right = (store_image(f"{path}#part={side}", tmp_path, ImageOptions()) for side in ("left", "right"))
    assert (left.width_px, right.width_px) == (6, 6)
    halves = [np.asarray(Image.open(tmp_path / half.file)) for half in (left, right)]
    assert np.array_equal(np.concatenate(halves, axis=1), np.asarray(picture(1)))


def test_real_16_bit_images_keep_their_brightness(real_data):
    checked = 0
    for path in sorted((real_data / "knee").rglob("*.png")):
        with Image.open(path) as image:
            if not image.mode.startswith("I;16"):
                continue
            values = np.asarray(image)
        assert pixels(path).mean() == pytest.approx(values.mean() / 65535 * 255, rel=0.02), path
        checked += 1
    assert checked == 160


def test_of_several_pages_the_first_is_taken_and_their_number_told(tmp_path):
    picture(1).save(tmp_path / "a.tiff", save_all=True, append_images=[picture(2), picture(3)])
    assert np.array_equal(pixels(tmp_path / "a.tiff"), np.asarray(picture(1)))
    assert store_image(tmp_path / "a.tiff", tmp_path, ImageOptions()).tags == {"frame": 0, "num_frames": 3}
    assert store_image(save(tmp_path / "b.tiff", 1), tmp_path, ImageOptions()).tags == {}


@pytest.mark.parametrize("orientation", [1, 6])
def test_white_is_zero_looks_alike_in_8_and_16_bits(tmp_path, orientation):
    ramp = np.arange(256, dtype=np.uint8).reshape(16, 16)
    for name, values in (("8.tiff", ramp), ("16.tiff", ramp.astype(np.uint16) * 257)):
        Image.fromarray(values).save(tmp_path / name, tiffinfo={0x0112: orientation})
        content = (tmp_path / name).read_bytes()
        black_is_zero, white_is_zero = (struct.pack("<HHIHH", 262, 3, 1, kind, 0) for kind in (1, 0))
        assert content.count(black_is_zero) == 1
        (tmp_path / name).write_bytes(content.replace(black_is_zero, white_is_zero))
    expected = 255 - (np.rot90(ramp, -1) if orientation == 6 else ramp)
    assert np.array_equal(pixels(tmp_path / "8.tiff")[..., 0], expected)
    assert np.array_equal(pixels(tmp_path / "16.tiff")[..., 0], expected)


def test_an_empty_file_is_written_again_and_a_whole_one_kept(tmp_path):
    path = save(tmp_path / "a.png", 1)
    stored = tmp_path / store_image(path, tmp_path, ImageOptions()).file
    content, written = stored.read_bytes(), stored.stat().st_mtime_ns
    store_image(path, tmp_path, ImageOptions())
    assert stored.stat().st_mtime_ns == written
    stored.write_bytes(b"")
    store_image(path, tmp_path, ImageOptions())
    assert stored.read_bytes() == content


def test_a_full_disk_is_no_damaged_image(tmp_path, monkeypatch):
    path = save(tmp_path / "a.png", 1)

    def fill(image, target, **_):
        target.write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", fill)
    with pytest.raises(OSError, match="No space left"):
        store_image(path, tmp_path, ImageOptions())
    assert not [found for found in (tmp_path / "images").rglob("*") if found.is_file()]
