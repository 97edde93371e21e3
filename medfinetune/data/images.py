"""Opens any image file as RGB, and stores it as PNG under the hash of its pixels."""

import hashlib
import os
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

# What a hospital's folder may hold; EPS and the like are left out, as Pillow runs other programs to open them.
_FORMATS = ("JPEG", "PNG", "TIFF", "WEBP", "BMP", "GIF", "JPEG2000", "PPM")
_FULL_SCALES = (255, 1023, 4095, 16383, 65535)
# Level 6, the default, took three times as long for files that were a tenth smaller.
_PNG_COMPRESS_LEVEL = 1


class UnreadableImage(Exception):
    """A file that cannot be opened as an image.

    Attributes:
        reason: A short phrase, the same for all files with the same fault: it is counted.
        detail: What is particular to this file.
    """

    def __init__(self, reason: str, detail: str = ""):
        super().__init__(reason, detail)
        self.reason = reason
        self.detail = detail


@dataclass(frozen=True, slots=True)
class StoredImage:
    """An image in the output folder.

    Attributes:
        sha256: Hash of the decoded RGB pixels and their dimensions, before any reduction.
        file: Path of the PNG relative to the output folder.
        width_px: Width before any reduction.
        height_px: Height before any reduction.
    """

    sha256: str
    file: str
    width_px: int
    height_px: int


def open_image(path: Path | str) -> Image.Image:
    """Opens an image as 8-bit RGB, upright.

    The format is told by the file's bytes. Grey of more than 8 bits is scaled by its value and never clipped: 255
    stands for the full scale, which is the smallest of 1 (fractions only), 255, 1023, 4095, 16383 and 65535 that
    holds the largest value, or that value itself where it is larger still; where values are negative, the smallest
    is first moved to 0. Transparent pixels are laid over white. Of several frames the first is taken.

    Raises:
        UnreadableImage: The file is missing, empty, damaged, too large, or no image.
    """
    try:
        with open(path, "rb") as file:
            if not file.read(1):
                raise UnreadableImage("empty file")
            file.seek(0)
            with warnings.catch_warnings():
                # Pillow warns from half the size on at which it refuses.
                warnings.simplefilter("ignore")
                return _decode(file)
    except FileNotFoundError as error:
        raise UnreadableImage("no such file") from error
    except OSError as error:
        # Only what the file system says carries a number; Pillow's own are handled below.
        raise UnreadableImage("file cannot be read", str(error)) from error


def _decode(file) -> Image.Image:
    try:
        image = Image.open(file, formats=_FORMATS)
    except Image.UnidentifiedImageError as error:
        raise UnreadableImage("not an image") from error
    except Image.DecompressionBombError as error:
        raise UnreadableImage("image is too large", str(error)) from error
    except Exception as error:
        # A damaged header makes Pillow raise anything from SyntaxError to struct.error.
        raise UnreadableImage("damaged image", str(error)) from error
    try:
        image.load()
        return _to_rgb(ImageOps.exif_transpose(image))
    except Exception as error:
        reason = "truncated image" if "truncated" in str(error) else "damaged image"
        raise UnreadableImage(reason, str(error)) from error


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "F" or image.mode.startswith("I"):
        return Image.fromarray(_to_8_bits(np.asarray(image))).convert("RGB")
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        white = Image.new("RGBA", rgba.size, "white")
        return Image.alpha_composite(white, rgba).convert("RGB")
    return image.convert("RGB")


def _to_8_bits(values: np.ndarray) -> np.ndarray:
    """Scales `(H, W)` grey values of any type to 0..255 by the rule of `open_image`."""
    scaled = values.astype(np.float64)
    if not np.isfinite(scaled).all():
        raise ValueError("holds values that are no finite numbers")
    scaled -= min(scaled.min(), 0.0)
    largest = scaled.max()
    scales = (1, *_FULL_SCALES) if np.issubdtype(values.dtype, np.floating) else _FULL_SCALES
    full_scale = next((scale for scale in scales if largest <= scale), largest)
    return np.rint(scaled * (255.0 / full_scale)).astype(np.uint8)


def store_image(path: Path | str, output_dir: Path, max_side_px: int) -> StoredImage:
    """Writes an image as lossless RGB PNG to `output_dir/images/`, named after its pixels; an existing file is kept.

    Args:
        path: The image file.
        output_dir: The output folder.
        max_side_px: A longer side is reduced to this one (Lanczos).

    Raises:
        UnreadableImage: See `open_image`.
    """
    image = open_image(path)
    width, height = image.size
    sha256 = hashlib.sha256(f"{width}x{height}".encode() + image.tobytes()).hexdigest()
    # A reduced copy carries its size in its name, so that another `max_side_px` never finds the wrong one.
    reduced = max(width, height) > max_side_px
    file = f"images/{sha256[:2]}/{sha256}{f'-{max_side_px}px' if reduced else ''}.png"
    target = output_dir / file
    if not target.exists():
        if reduced:
            scale = max_side_px / max(width, height)
            size = (max(1, round(width * scale)), max(1, round(height * scale)))
            image = image.resize(size, Image.Resampling.LANCZOS)
        target.parent.mkdir(parents=True, exist_ok=True)
        # Another process may be writing the same pixels: each writes its own file, and the last rename wins.
        unfinished = target.with_name(f"{target.name}.{os.getpid()}.tmp")
        image.save(unfinished, format="PNG", compress_level=_PNG_COMPRESS_LEVEL)
        unfinished.replace(target)
    return StoredImage(sha256, file, width, height)
