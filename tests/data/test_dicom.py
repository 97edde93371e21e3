import io
import traceback
import warnings
from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom.data import get_testdata_file
from pydicom.pixels import apply_modality_lut, apply_voi_lut, apply_windowing
from pydicom.uid import ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian, JPEGLosslessSV1

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


def lut_of(bits: int, num_entries: int, first: int) -> pydicom.Dataset:
    item = pydicom.Dataset()
    item.LUTDescriptor = [num_entries, first, bits]
    curve = np.sqrt(np.linspace(0, 1, num_entries)) * (2**bits - 1)
    item.add_new("LUTData", "US", curve.astype(int).tolist())
    return item


@pytest.mark.parametrize(
    ("bits", "num_entries", "first"), [(8, 200, 30), (10, 1000, 0), (12, 4096, 0), (16, 3000, 500)]
)
@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
def test_voi_lut_is_that_of_pydicom_and_goes_before_the_window(tmp_path, bits, num_entries, first, photometric):
    # pydicom miscounts above 255 in tables of 8 bits.
    values = np.arange(256 if bits == 8 else 4096, dtype=np.uint16).reshape(16, -1)
    elements = {"VOILUTSequence": [lut_of(bits, num_entries, first)], "WindowCenter": 100, "WindowWidth": 50}
    path = write_dicom(tmp_path / "a.dcm", values, PhotometricInterpretation=photometric, **elements)
    expected = apply_voi_lut(values, pydicom.dcmread(path), prefer_lut=True) / (2**bits - 1) * 255
    expected = 255 - expected if photometric == "MONOCHROME1" else expected
    assert np.abs(grey(path) - expected).max() <= 0.5


def test_voi_lut_of_8_bits_with_many_entries(tmp_path):
    values = np.arange(4096, dtype=np.uint16).reshape(64, 64)
    item = lut_of(8, 4096, 0)
    path = write_dicom(tmp_path / "a.dcm", values, VOILUTSequence=[item])
    assert np.array_equal(grey(path).ravel(), item.LUTData)
    item.add_new("LUTData", "OW", np.asarray(item.LUTData, "<u2").tobytes())
    assert np.array_equal(
        grey(write_dicom(tmp_path / "b.dcm", values, VOILUTSequence=[item])).ravel(), np.sort(grey(path), None)
    )


@pytest.mark.parametrize("function", ["LINEAR", "LINEAR_EXACT", "SIGMOID", None])
@pytest.mark.parametrize("width", [1, 2, 700])
def test_windows_of_a_file_are_those_of_pydicom(tmp_path, function, width):
    values = np.arange(4096, dtype=np.uint16).reshape(64, 64)
    elements = {"VOILUTFunction": function} if function else {}
    path = write_dicom(tmp_path / "a.dcm", values, WindowCenter=1000, WindowWidth=width, **elements)
    with np.errstate(over="ignore"):
        expected = apply_windowing(values, pydicom.dcmread(path)) / 4095 * 255
    assert np.abs(grey(path) - expected).max() <= 0.5


def test_one_frame_of_many(tmp_path):
    frames = np.stack([np.full((4, 4), 100 * i, np.uint16) for i in range(3)])
    path = write_dicom(tmp_path / "a.dcm", frames, NumberOfFrames=3, BitsStored=8)
    assert [grey(path, dicom_frame=i).max() for i in range(3)] == [0, 100, 200]
    with pytest.raises(UnreadableImage, match="no such frame"):
        open_image(path, dicom_frame=3)
    assert store_image(path, tmp_path, ImageOptions(dicom_frame=2)).tags == {"frame": 2, "num_frames": 3}
    single = write_dicom(tmp_path / "b.dcm", frames[1])
    assert np.array_equal(grey(single, dicom_frame=1), grey(single)), "it chooses among several"
    assert store_image(single, tmp_path, ImageOptions(dicom_frame=1)).tags == {}


def enhanced(path: Path, values: np.ndarray, shared=(), per_frame=(), **elements) -> Path:
    """An enhanced CT: what each group says of rescaling (`slope`, `intercept`) and window (`center`, `width`)."""

    def group(**said) -> pydicom.Dataset:
        item = pydicom.Dataset()
        if "slope" in said:
            inner = pydicom.Dataset()
            inner.RescaleSlope, inner.RescaleIntercept, inner.RescaleType = said["slope"], said["intercept"], "HU"
            item.PixelValueTransformationSequence = [inner]
        if "center" in said:
            inner = pydicom.Dataset()
            inner.WindowCenter, inner.WindowWidth = said["center"], said["width"]
            item.FrameVOILUTSequence = [inner]
        return item

    return write_dicom(
        path,
        values,
        Modality="CT",
        NumberOfFrames=len(values),
        SharedFunctionalGroupsSequence=[group(**said) for said in shared],
        PerFrameFunctionalGroupsSequence=[group(**said) for said in per_frame],
        **elements,
    )


def test_enhanced_frames_bring_their_own_rescaling_and_window(tmp_path):
    ramp = np.linspace(0, 4095, 64).astype(np.uint16).reshape(8, 8)
    stack = np.stack([ramp, ramp])
    rescaled = [{"slope": 1, "intercept": -1024}, {"slope": 2, "intercept": -2000}]
    windows = [{"center": 40, "width": 400}, {"center": 500, "width": 1000}]
    path = enhanced(
        tmp_path / "a.dcm", stack, per_frame=[one | two for one, two in zip(rescaled, windows, strict=True)]
    )
    for i in range(2):
        values = ramp.astype(float) * rescaled[i]["slope"] + rescaled[i]["intercept"]
        expected = window(values, windows[i]["center"], windows[i]["width"]) * 255
        assert np.abs(grey(path, dicom_frame=i) - expected).max() <= 0.5
        expected = window(values, -600, 1500) * 255
        assert np.abs(grey(path, dicom_frame=i, window_hu=(-600, 1500)) - expected).max() <= 0.5
    mixed = enhanced(tmp_path / "b.dcm", stack, shared=[rescaled[1] | windows[0]], per_frame=[{}, windows[1]])
    values = ramp.astype(float) * 2 - 2000
    assert np.abs(grey(mixed, dicom_frame=0) - window(values, 40, 400) * 255).max() <= 0.5
    assert np.abs(grey(mixed, dicom_frame=1) - window(values, 500, 1000) * 255).max() <= 0.5
    top = {"RescaleSlope": 1, "RescaleIntercept": 0, "WindowCenter": 2000, "WindowWidth": 4000}
    above = enhanced(tmp_path / "c.dcm", stack, shared=[rescaled[1] | windows[0]], **top)
    assert np.abs(grey(above) - window(ramp, 2000, 4000) * 255).max() <= 0.5


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
    ignoring = store_image(path, tmp_path, ImageOptions(patient_key=b"k" * 16, ignore_patients=True))
    assert (ignoring.patient, ignoring.names_patient) == ("", True), "the key may be there for a table"
    # A code field may hold anything that somebody typed.
    path = write_dicom(tmp_path / "b.dcm", np.zeros((4, 4), np.uint16), BodyPartExamined="DOE JANE", Modality="DX")
    assert store_image(path, tmp_path, ImageOptions()).tags == {"modality": "DX"}


@pytest.mark.parametrize(
    "keyword",
    ["Modality", "WindowCenter", "WindowWidth", "NumberOfFrames", "PhotometricInterpretation", "RescaleSlope", "Rows"],
)
@pytest.mark.parametrize("without", [(), ("Rows",)])
def test_nothing_of_a_damaged_header_comes_out(tmp_path, keyword, without):
    path = write_dicom(
        tmp_path / "a.dcm",
        np.zeros((4, 4), np.uint16),
        Modality="DX",
        WindowCenter=1,
        WindowWidth=2,
        RescaleSlope=1,
        RescaleIntercept=0,
        NumberOfFrames=1,
    )
    dataset = pydicom.dcmread(path)
    for name in without:
        del dataset[name]
    tag = pydicom.datadict.tag_for_keyword(keyword)
    vr = "OB" if keyword == "Rows" else pydicom.datadict.dictionary_VR(tag)
    dataset[tag] = pydicom.dataelem.RawDataElement(pydicom.tag.Tag(tag), vr, 10, b"DOE JOHN 7", 0, False, True)
    dataset.save_as(path)
    assert b"DOE JOHN 7" in path.read_bytes()
    try:
        said = str(store_image(path, tmp_path, ImageOptions()).tags)
    except UnreadableImage as error:
        said = "".join(traceback.format_exception(error))
    assert "DOE" not in said
    assert "JOHN" not in said


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("MR_truncated.dcm", "truncated image"),
        ("rtplan.dcm", "DICOM without an image"),
        ("reportsi.dcm", "DICOM without an image"),
        ("test-SR.dcm", "DICOM without an image"),
        ("badVR.dcm", "DICOM object that is no picture (RTDOSE)"),
        ("rtdose_1frame.dcm", "DICOM object that is no picture (RTDOSE)"),
        ("liver_1frame.dcm", "DICOM object that is no picture (SEG)"),
        ("ExplVR_BigEndNoMeta.dcm", "DICOM without an image"),
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
    assert sum(isinstance(outcome, tuple) for outcome in outcomes.values()) >= 40
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


@pytest.mark.parametrize("syntax", [ImplicitVRLittleEndian, ExplicitVRLittleEndian, ExplicitVRBigEndian])
def test_files_without_a_mark_in_every_byte_order(tmp_path, syntax):
    dataset = dataset_of("MR_small_implicit.dcm")
    values = dataset.pixel_array
    file = io.BytesIO()
    bare = pydicom.Dataset({element.tag: element for element in dataset if element.tag.group > 2})
    big = syntax == ExplicitVRBigEndian
    bare.PixelData = values.astype(">i2" if big else "<i2").tobytes()
    bare["PixelData"].VR = "OW"
    pydicom.dcmwrite(file, bare, implicit_vr=syntax == ImplicitVRLittleEndian, little_endian=not big)
    path = tmp_path / "image"
    path.write_bytes(file.getvalue())
    assert np.array_equal(grey(path), grey(bundled("MR_small_implicit.dcm")))


def test_ids_in_other_widths_are_one_patient(tmp_path):
    key = b"k" * 16
    for written in ("A 47", " A  47 ", "Ａ\u3000４７"):
        path = write_dicom(
            tmp_path / "a.dcm", np.zeros((4, 4), np.uint16), SpecificCharacterSet="ISO_IR 192", PatientID=written
        )
        assert store_image(path, tmp_path, ImageOptions(patient_key=key)).patient == hash_patient("A 47", key)
    path = write_dicom(tmp_path / "b.dcm", np.zeros((4, 4), np.uint16), PatientID="  ")
    assert not store_image(path, tmp_path, ImageOptions(patient_key=key)).names_patient


def test_a_broken_beginning_has_a_hint():
    with pytest.raises(UnreadableImage, match=r"not an image.*DICOM"):
        open_image(bundled("no_meta.dcm"))
