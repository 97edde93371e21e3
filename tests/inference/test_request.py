"""What is asked for: images as files and opened, and whose they are."""

import os

import numpy as np
import pytest
from PIL import Image

from medfinetune.data.images import hash_patient
from medfinetune.data.unreadable import UnreadableImage
from medfinetune.inference.report import ReportRequest
from tests.data.raw_folders import write_dicom

KEY = b"a key of more than sixteen bytes"


def _grey(rng):
    return rng.integers(0, 4096, (40, 60), dtype=np.uint16)


def _rotated(path, rng):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(rng.integers(0, 255, (40, 60, 3), dtype=np.uint8)).save(path, exif=exif)


@pytest.mark.parametrize(
    ("name", "save"),
    [
        ("deep.png", lambda path, rng: Image.fromarray(_grey(rng)).save(path)),
        ("float.tif", lambda path, rng: Image.fromarray(_grey(rng).astype(np.float32) / 4096).save(path)),
        ("clear.png", lambda path, rng: Image.fromarray(rng.integers(0, 255, (40, 60, 4), dtype=np.uint8)).save(path)),
        ("turned.png", _rotated),
        ("white_is_zero.tif", lambda path, rng: Image.fromarray(_grey(rng)).save(path, tiffinfo={262: 0})),
    ],
)
def test_an_opened_image_is_seen_as_its_file_is(tmp_path, name, save):
    path = tmp_path / name
    save(path, np.random.default_rng(0))
    of_file, of_opened = ReportRequest([path]).open(), ReportRequest([Image.open(path)]).open()
    assert of_file[1] == of_opened[1]
    assert of_file[0][0].tobytes() == of_opened[0][0].tobytes()


def test_the_patient_of_a_dicom_header_is_hashed_as_prepare_does(tmp_path):
    path = write_dicom(tmp_path / "a.dcm", _grey(np.random.default_rng(0)), PatientID="PAT0")
    assert ReportRequest([path], patient_key=KEY).open()[2] == {hash_patient("PAT0", KEY)}
    assert ReportRequest([path]).open()[2] is None
    assert ReportRequest([path], patient="told", patient_key=KEY).open()[2] == "told"


def test_a_name_that_is_no_unicode_does_not_open(tmp_path):
    path = os.fsdecode(os.fsencode(tmp_path) + b"/\xe9.png")
    Image.new("RGB", (8, 8)).save(path)
    with pytest.raises(UnreadableImage, match="not Unicode"):
        ReportRequest([path]).open()


def test_half_of_a_line_of_pixels_is_no_image(tmp_path):
    Image.new("RGB", (1, 8)).save(tmp_path / "thin.png")
    with pytest.raises(UnreadableImage, match="too narrow"):
        ReportRequest([f"{tmp_path}/thin.png#part=left"]).open()
