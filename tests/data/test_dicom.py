import io
import warnings
from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom.data import get_testdata_file
from pydicom.pixels import apply_modality_lut, apply_windowing
from pydicom.uid import ExplicitVRLittleEndian, JPEGLosslessSV1

from medfinetune.data.dicom import window
from medfinetune.data.images import ImageOptions, UnreadableImage, hash_patient, open_image, store_image
from tests.data.raw_folders import write_dicom

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:pydicom")


def bundled(name: str) -> Path:
    path = get_testdata_file(name, download=False)
    assert path is not None, name
    return Path(path)


def dataset_of(name: str) -> pydicom.Dataset:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pydicom.dcmread(bundled(name), force=True)


def grey(path, **options) -> np.ndarray:
    pixels = np.asarray(open_image(path, **options))
    assert (pixels[..., 0] == pixels[..., 1]).all()
    return pixels[..., 0]


@pytest.mark.parametrize(
    "name",
    [
        "MR_small.dcm",
        "MR_small_RLE.dcm",
        "MR_small_jp2klossless.dcm",
        "MR_small_bigendian.dcm",
        "MR_small_implicit.dcm",
    ],
)
def test_one_slice_in_every_syntax_gives_the_windowed_pixels(name):
    dataset = dataset_of("MR_small.dcm")
    expected = apply_windowing(dataset.pixel_array, dataset)
    # pydicom maps the window to the range of the stored values: 16 bits, signed.
    expected = (expected + 2**15) / (2**16 - 1) * 255
    assert np.abs(grey(bundled(name)) - expected).max() <= 0.51


def test_modality_lut_and_window_of_a_compressed_ct():
    dataset = dataset_of("693_J2KI.dcm")
    hounsfield = apply_modality_lut(dataset.pixel_array, dataset)
    assert hounsfield.min() < -1024, "the rescale intercept was applied"
    center, width = float(dataset.WindowCenter), float(dataset.WindowWidth)
    expected = np.clip((hounsfield - (center - 0.5)) / (width - 1) + 0.5, 0, 1) * 255
    # The two JPEG 2000 decoders that pydicom may choose from differ by one in a lossy file.
    assert np.abs(grey(bundled("693_J2KI.dcm")) - expected).mean() < 0.5


def test_a_named_window_replaces_that_of_a_ct_only():
    dataset = dataset_of("CT_small.dcm")
    hounsfield = apply_modality_lut(dataset.pixel_array, dataset)
    expected = np.clip((hounsfield - 39.5) / 399 + 0.5, 0, 1) * 255
    assert np.abs(grey(bundled("CT_small.dcm"), window_hu=(40, 400)) - expected).max() <= 0.51
    assert len(np.unique(grey(bundled("CT_small.dcm")))) > 50, "without any window all values are kept"
    assert np.array_equal(grey(bundled("MR_small.dcm"), window_hu=(40, 400)), grey(bundled("MR_small.dcm")))


@pytest.mark.parametrize("function", ["LINEAR", "LINEAR_EXACT", "SIGMOID"])
def test_window_functions_agree_with_pydicom(function):
    dataset = pydicom.Dataset()
    dataset.PhotometricInterpretation, dataset.PixelRepresentation, dataset.BitsStored = "MONOCHROME2", 0, 12
    dataset.WindowCenter, dataset.WindowWidth, dataset.VOILUTFunction = 2048, 1000, function
    values = np.arange(4096, dtype=np.uint16).reshape(64, 64)
    expected = apply_windowing(values, dataset) / 4095
    assert np.abs(window(values, 2048, 1000, function) - expected).max() < 1e-9


@pytest.mark.parametrize(
    "name",
    [
        "examples_rgb_color.dcm", "examples_jpeg2k.dcm", "examples_ybr_color.dcm", "SC_rgb_rle.dcm",
        "SC_rgb_jpeg_dcmtk.dcm", "SC_ybr_full_422_uncompressed.dcm", "SC_rgb_small_odd_jpeg.dcm", "ExplVR_BigEnd.dcm",
    ],
)  # fmt: skip
def test_colour_is_that_of_pydicom(name):
    from pydicom.pixels import pixel_array

    assert np.array_equal(np.asarray(open_image(bundled(name))), pixel_array(bundled(name), index=0))


def test_deep_colour_and_palette():
    dataset = dataset_of("SC_rgb_rle_16bit.dcm")
    assert np.abs(np.asarray(open_image(bundled("SC_rgb_rle_16bit.dcm"))) - dataset.pixel_array / 257).max() <= 0.51
    from pydicom.pixels import apply_color_lut

    dataset = dataset_of("examples_palette.dcm")
    expected = apply_color_lut(dataset.pixel_array, dataset) / 257
    assert np.abs(np.asarray(open_image(bundled("examples_palette.dcm"))) - expected).max() <= 0.51


def test_monochrome1_is_inverted(tmp_path):
    values = np.array([[0, 1000, 4095]], np.uint16)
    plain = grey(write_dicom(tmp_path / "a.dcm", values))
    inverted = grey(write_dicom(tmp_path / "b.dcm", values, PhotometricInterpretation="MONOCHROME1"))
    assert plain.tolist() == [[0, 62, 255]]
    assert inverted.tolist() == [[255, 193, 0]]
    windowed = {"WindowCenter": [1000.5, 5], "WindowWidth": [2, 5], "PhotometricInterpretation": "MONOCHROME1"}
    assert grey(write_dicom(tmp_path / "c.dcm", values, **windowed)).tolist() == [[255, 128, 0]]


def test_voi_lut_sequence(tmp_path):
    item = pydicom.Dataset()
    item.LUTDescriptor = [3, 10, 16]
    item.add_new("LUTData", "US", [0, 65535, 100 * 257])
    values = np.array([[5, 10, 11, 12, 99]], np.uint16)
    path = write_dicom(tmp_path / "a.dcm", values, VOILUTSequence=[item])
    assert grey(path).tolist() == [[0, 0, 255, 100, 100]]


def test_one_frame_of_many(tmp_path):
    frames = np.stack([np.full((4, 4), 100 * i, np.uint16) for i in range(3)])
    path = write_dicom(tmp_path / "a.dcm", frames, NumberOfFrames=3, BitsStored=8)
    assert [grey(path, dicom_frame=i).max() for i in range(3)] == [0, 100, 200]
    with pytest.raises(UnreadableImage, match="no such frame"):
        open_image(path, dicom_frame=3)
    assert store_image(path, tmp_path, ImageOptions(dicom_frame=2)).tags == {"frame": 2}


def test_only_harmless_tags_and_a_keyed_hash_leave_the_header(tmp_path):
    tags = {"Modality": "DX", "BodyPartExamined": "KNEE", "ViewPosition": "AP", "ImageLaterality": "L"}
    path = write_dicom(tmp_path / "a.dcm", np.zeros((4, 4), np.uint16), StudyDescription="Doe, knee", **tags)
    stored = store_image(path, tmp_path, ImageOptions(patient_key=b"k" * 16))
    assert stored.tags == {"modality": "DX", "body_part": "KNEE", "view": "AP", "side": "L"}
    assert stored.patient == hash_patient("4711", b"k" * 16) != hash_patient("4711", b"l" * 16)
    for secret in ("4711", "Doe", "1950", "Elsewhere"):
        assert secret not in str(stored)
        assert secret.encode() not in (tmp_path / stored.file).read_bytes()
    without_key = store_image(path, tmp_path, ImageOptions())
    assert (without_key.patient, without_key.names_patient) == ("", True)
    # A code field may hold anything that somebody typed.
    path = write_dicom(tmp_path / "b.dcm", np.zeros((4, 4), np.uint16), BodyPartExamined="DOE JANE", Modality="DX")
    assert store_image(path, tmp_path, ImageOptions()).tags == {"modality": "DX"}


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("MR_truncated.dcm", "truncated image"),
        ("rtplan.dcm", "DICOM without an image"),
        ("reportsi.dcm", "DICOM without an image"),
        ("test-SR.dcm", "DICOM without an image"),
        ("badVR.dcm", "damaged image"),
    ],
)
def test_files_without_a_picture_have_a_reason(name, reason):
    with pytest.raises(UnreadableImage) as caught:
        open_image(bundled(name))
    assert caught.value.reason == reason


def test_no_bundled_file_crashes():
    outcomes = {}
    for path in sorted(bundled("CT_small.dcm").parent.glob("*.dcm")):
        try:
            outcomes[path.name] = open_image(path).size
        except UnreadableImage as error:
            outcomes[path.name] = error.reason
    assert sum(isinstance(outcome, tuple) for outcome in outcomes.values()) >= 45
    assert "damaged image" not in {outcomes["JPEGLSNearLossless_08.dcm"], outcomes["SC_rgb_jpeg_gdcm.dcm"]}


def test_bomb_and_damaged_pixels(tmp_path):
    path = write_dicom(tmp_path / "a.dcm", np.zeros((4, 4), np.uint16), Rows=60_000, Columns=60_000)
    with pytest.raises(UnreadableImage, match="too large"):
        open_image(path)
    path = write_dicom(tmp_path / "b.dcm", np.zeros((4, 4), np.uint16))
    content = path.read_bytes()
    path.write_bytes(
        content.replace(ExplicitVRLittleEndian.encode(), JPEGLosslessSV1.encode()[: len(ExplicitVRLittleEndian)])
    )
    with pytest.raises(UnreadableImage):
        open_image(path)
    for end in range(130, len(content), 40):
        path.write_bytes(content[:end])
        with pytest.raises(UnreadableImage):
            open_image(path)


def test_the_name_says_nothing(tmp_path):
    path = tmp_path / "image.png"
    path.write_bytes(bundled("CT_small.dcm").read_bytes())
    assert open_image(path).size == (128, 128)
    stripped = tmp_path / "stripped"
    file = io.BytesIO()
    dataset = dataset_of("MR_small_implicit.dcm")
    pydicom.dcmwrite(file, dataset)
    # Older files lack the first 132 bytes.
    stripped.write_bytes(file.getvalue()[132:])
    assert open_image(stripped).size == (64, 64)
