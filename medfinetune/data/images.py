"""Opens any image file as RGB, and stores it as PNG under the hash of its pixels."""

import gzip
import hashlib
import hmac
import io
import os
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from PIL import Image, ImageOps

from medfinetune.data.dicom import is_dicom, read_dicom
from medfinetune.data.grey import to_8_bits
from medfinetune.data.perceptual import perceptual_hash
from medfinetune.data.text import tidy
from medfinetune.data.unreadable import UnreadableImage

# What a hospital's folder may hold; EPS and the like are left out, as Pillow runs other programs to open them.
_FORMATS = ("JPEG", "PNG", "TIFF", "WEBP", "BMP", "GIF", "JPEG2000", "PPM")
PART = "#part="
"""Between the path of an image file and `left` or `right`, where only that half of the picture is meant."""
# Level 6, the default, took three times as long for files that were a tenth smaller.
_PNG_COMPRESS_LEVEL = 1
# TIFF's tag PhotometricInterpretation.
_PHOTOMETRIC = 262


@dataclass(frozen=True, slots=True)
class ImageOptions:
    """How images are opened and stored.

    Attributes:
        max_side_px: A longer side is reduced to this one.
        window_hu: Centre and width in Hounsfield units, for CT in DICOM; the file's own window where left out.
        dicom_frame: Which frame of a DICOM file is taken, from 0.
        patient_key: Key of the hash that stands for a DICOM patient id; without it the id is thrown away.
        ignore_patients: DICOM patient ids are thrown away although there is a key, as tables may need it.
    """

    max_side_px: int = 2240
    window_hu: tuple[float, float] | None = None
    dicom_frame: int = 0
    patient_key: bytes | None = field(default=None, repr=False)
    ignore_patients: bool = False


@dataclass(frozen=True, slots=True)
class StoredImage:
    """An image in the output folder.

    Attributes:
        sha256: Hash of the decoded RGB pixels and their dimensions, before any reduction.
        file: Path of the PNG relative to the output folder.
        width_px: Width before any reduction.
        height_px: Height before any reduction.
        looks: Its `perceptual_hash`.
        tags: What a DICOM header may tell; see `read_dicom`.
        patient: Keyed hash of the patient's id in a DICOM header; empty where there is none.
        names_patient: A DICOM header names a patient.
    """

    sha256: str
    file: str
    width_px: int
    height_px: int
    looks: str = ""
    tags: dict[str, Any] = field(default_factory=dict)
    patient: str = ""
    names_patient: bool = False


def open_image(path: Path | str, window_hu: tuple[float, float] | None = None, dicom_frame: int = 0) -> Image.Image:
    """Opens an image as 8-bit RGB, upright.

    The format is told by the file's bytes. Grey of more than 8 bits is scaled by its value and never clipped; see
    `to_8_bits`. Transparent pixels are laid over white. Of several frames the first is taken. For DICOM see
    `read_dicom`.

    Args:
        path: The file, with `#part=left` or `#part=right` behind it where only one half of the picture is meant.
        window_hu: See `ImageOptions`.
        dicom_frame: See `ImageOptions`.

    Raises:
        UnreadableImage: The file is missing, empty, damaged, too large, or no image.
    """
    return open_with_patient(path, ImageOptions(window_hu=window_hu, dicom_frame=dicom_frame))[0]


def open_with_patient(path: Path | str, options: ImageOptions) -> tuple[Image.Image, str]:
    """`open_image`, and the hash of the patient that a DICOM header names; empty without one or without a key."""
    image, _, patient_id = _open(path, options)
    return image, _hashed(patient_id, options)


def hash_patient(patient_id: str, key: bytes) -> str:
    """HMAC-SHA256 of a patient's id, 32 hexadecimal digits: without the key nobody can try ids until one fits.

    The id is tidied first: what a header and a table write in other widths or spaces is one patient.
    """
    return hmac.new(key, tidy(patient_id).encode(), hashlib.sha256).hexdigest()[:32]


def _open(path: Path | str, options: ImageOptions) -> tuple[Image.Image, dict[str, Any], str]:
    """The image, the harmless tags of its header, and the patient's id."""
    file_path, _, part = str(path).partition(PART)
    try:
        with open(file_path, "rb") as file:
            head = file.read(352)
            if not head:
                raise UnreadableImage("empty file")
            file.seek(0)
            if _is_nifti(head):
                raise UnreadableImage("NIfTI volume, not an image", "export the slices that the text speaks of as PNG")
            tags, patient_id = {}, ""
            if is_dicom(head[:132]):
                # Pillow refuses at twice the size from which on it warns.
                max_pixels = 2 * (Image.MAX_IMAGE_PIXELS or 2**40)
                dicom = read_dicom(file, options.window_hu, options.dicom_frame, max_pixels)
                image, tags, patient_id = dicom.image, dicom.tags, dicom.patient_id
            else:
                with warnings.catch_warnings():
                    # Pillow warns from half the size on at which it refuses.
                    warnings.simplefilter("ignore")
                    image, tags = _decode(file)
    except FileNotFoundError as error:
        raise UnreadableImage("no such file") from error
    except OSError as error:
        # Only what the file system says carries a number; Pillow's own are handled below.
        raise UnreadableImage("file cannot be read", str(error)) from error
    if part:
        if image.width < 2:
            raise UnreadableImage("image is too narrow to be halved")
        middle = image.width // 2
        image = image.crop((0, 0, middle, image.height) if part == "left" else (middle, 0, image.width, image.height))
    return image, tags, patient_id


def _is_nifti(head: bytes) -> bool:
    if head[:2] == b"\x1f\x8b":
        try:
            head = gzip.GzipFile(fileobj=io.BytesIO(head)).read1(352)
        except (OSError, EOFError):
            return False
        return head[:4] in (b"\x5c\x01\0\0", b"\0\0\x01\x5c", b"\x1c\x02\0\0", b"\0\0\x02\x1c")
    return head[344:348] in (b"n+1\0", b"ni1\0") or head[4:8] == b"n+2\0"


def _decode(file: BinaryIO) -> tuple[Image.Image, dict[str, Any]]:
    """The first frame, and of a TIFF with several pages how many there are."""
    try:
        image = Image.open(file, formats=_FORMATS)
    except Image.UnidentifiedImageError as error:
        file.seek(0)
        # Every DICOM file names its kind by such a number near its beginning.
        hint = "looks like DICOM with a broken beginning" if b"1.2.840.10008." in file.read(352) else ""
        raise UnreadableImage("not an image", hint) from error
    except Image.DecompressionBombError as error:
        raise UnreadableImage("image is too large", str(error)) from error
    except Exception as error:
        # A damaged header makes Pillow raise anything from SyntaxError to struct.error.
        raise UnreadableImage("damaged image", str(error)) from error
    try:
        num_pages = image.n_frames if image.format == "TIFF" else 1
        image.load()
        tags = {"frame": 0, "num_frames": num_pages} if num_pages > 1 else {}
        return to_rgb(image), tags
    except Exception as error:
        reason = "truncated image" if "truncated" in str(error) else "damaged image"
        raise UnreadableImage(reason, str(error)) from error


def to_rgb(image: Image.Image) -> Image.Image:
    """An image that Pillow has opened, as `open_image` gives the file that it is of."""
    rgb = _to_rgb(ImageOps.exif_transpose(image))
    # Pillow turns white-is-zero round up to 8 bits, and leaves deeper grey as it is.
    white_is_zero = image.format == "TIFF" and image.tag_v2.get(_PHOTOMETRIC) == 0 and _is_deep_grey(image)
    return ImageOps.invert(rgb) if white_is_zero else rgb


def _is_deep_grey(image: Image.Image) -> bool:
    return image.mode == "F" or image.mode.startswith("I")


def _to_rgb(image: Image.Image) -> Image.Image:
    if _is_deep_grey(image):
        return Image.fromarray(to_8_bits(np.asarray(image))).convert("RGB")
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        white = Image.new("RGBA", rgba.size, "white")
        return Image.alpha_composite(white, rgba).convert("RGB")
    return image.convert("RGB")


def store_image(path: Path | str, output_dir: Path, options: ImageOptions) -> StoredImage:
    """Writes an image as lossless RGB PNG to `output_dir/images/`, named after its pixels; an existing file is kept.

    A file of no bytes, which a crash of the machine may leave behind a rename, is written again.

    Args:
        path: See `open_image`.
        output_dir: The output folder.
        options: A side longer than `max_side_px` is reduced to it (Lanczos).

    Raises:
        UnreadableImage: See `open_image`.
        OSError: The output cannot be written; the image is not to blame.
    """
    image, tags, patient_id = _open(path, options)
    width, height = image.size
    digest = hashlib.sha256(f"{width}x{height}".encode())
    digest.update(image.tobytes())
    sha256 = digest.hexdigest()
    # A reduced copy carries its size in its name, so that another `max_side_px` never finds the wrong one.
    reduced = max(width, height) > options.max_side_px
    file = f"images/{sha256[:2]}/{sha256}{f'-{options.max_side_px}px' if reduced else ''}.png"
    looks = perceptual_hash(image)
    target = output_dir / file
    if not target.exists() or target.stat().st_size == 0:
        if reduced:
            scale = options.max_side_px / max(width, height)
            size = (max(1, round(width * scale)), max(1, round(height * scale)))
            image = image.resize(size, Image.Resampling.LANCZOS)
        target.parent.mkdir(parents=True, exist_ok=True)
        # Another process may be writing the same pixels: each writes its own file, and the last rename wins.
        unfinished = target.with_name(f"{target.name}.{os.getpid()}.tmp")
        try:
            image.save(unfinished, format="PNG", compress_level=_PNG_COMPRESS_LEVEL)
            unfinished.replace(target)
        finally:
            # On a full disk the rest of it would stay in the way.
            unfinished.unlink(missing_ok=True)
    patient, names_patient = _hashed(patient_id, options), bool(tidy(patient_id))
    return StoredImage(sha256, file, width, height, looks, tags, patient, names_patient)


def _hashed(patient_id: str, options: ImageOptions) -> str:
    hashed = tidy(patient_id) and options.patient_key and not options.ignore_patients
    return hash_patient(patient_id, options.patient_key) if hashed else ""
