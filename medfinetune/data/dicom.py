"""Opens one frame of a DICOM file as RGB, and takes from its header only what tells nothing about the patient."""

import logging
import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
from PIL import Image

from medfinetune.data.grey import to_8_bits
from medfinetune.data.unreadable import UnreadableImage

if TYPE_CHECKING:
    from pydicom import Dataset


def _codes(codes: str) -> frozenset[str]:
    return frozenset(codes.split())


# Closed lists: a code field may hold anything that somebody typed, a name too.
_MODALITIES = _codes("CR CT DX ES GM IO IVUS MG MR NM OCT OP OPT PT PX RF RG SC SM US XA XC")
_VIEWS = _codes("AP PA LL RL LLD LLO RLD RLO CC ML MLO LM LMO SIO XCCL LAT LATERAL OBL OBLIQUE AXIAL")
_SIDES = _codes("L R U B")
_BODY_PARTS = _codes(
    "ABDOMEN ANKLE ARM BLADDER BRAIN BREAST CALCANEUS CHEST CLAVICLE COCCYX CSPINE CTSPINE EAR ELBOW EXTREMITY EYE "
    "FACE FEMUR FINGER FOOT FOREARM HAND HEAD HEART HIP HUMERUS JAW KIDNEY KNEE LEG LIVER LSPINE LUNG MANDIBLE MAXILLA "
    "NECK NOSE ORBIT PANCREAS PELVIS PROSTATE RIB RIBS SACRUM SCAPULA SHOULDER SKIN SKULL SPINE SPLEEN SSPINE STERNUM "
    "STOMACH TEETH THIGH THORAX THUMB TIBIA TOE TSPINE TLSPINE UTERUS WRIST"
)
# Their pixels are labels and doses, no picture.
_NO_PICTURES = {
    "1.2.840.10008.5.1.4.1.1.66.4": "SEG",
    "1.2.840.10008.5.1.4.1.1.66.7": "SEG",
    "1.2.840.10008.5.1.4.1.1.481.2": "RTDOSE",
}
_WITHOUT_PIXELS = _codes("AU DOC ECG KO PR REG RTPLAN RTRECORD RTSTRUCT RWV SR")
_DEFLATED = "1.2.840.10008.1.2.1.99"
# Of native pixels, by whether values are implicit and whether bytes are little-endian.
_SYNTAXES = {
    (True, True): "1.2.840.10008.1.2",
    (False, True): "1.2.840.10008.1.2.1",
    (False, False): "1.2.840.10008.1.2.2",
}
# Where enhanced multi-frame objects keep for each frame what others keep at the top.
_OF_FRAMES = (
    ("PixelValueTransformationSequence", ("RescaleSlope", "RescaleIntercept"), ("ModalityLUTSequence",)),
    ("FrameVOILUTSequence", ("WindowCenter", "WindowWidth", "VOILUTFunction", "VOILUTSequence"), ()),
)


@dataclass(frozen=True, slots=True)
class DicomImage:
    """One frame.

    Attributes:
        image: 8-bit RGB.
        tags: `modality`, `body_part`, `view`, `side`, each only where the header states a known code; `frame` and
            `num_frames` where there are several.
        patient_id: As it stands in the header. It must be hashed before it goes anywhere.
    """

    image: Image.Image
    tags: dict[str, Any]
    patient_id: str


def is_dicom(head: bytes) -> bool:
    """Tells a DICOM file by its first 132 bytes; older files without the mark start with group 2 or 8."""
    unmarked = len(head) == 132 and head[0] in (2, 8) and head[1] == head[3] == 0
    big_endian = len(head) == 132 and head[:3] == b"\0\x08\0" and head[4:6].isalpha() and head[4:6].isupper()
    return head[128:132] == b"DICM" or unmarked or big_endian


def read_dicom(file: BinaryIO, window_hu: tuple[float, float] | None, frame: int, max_pixels: int) -> DicomImage:
    """Decodes one frame: modality LUT, then the window, then MONOCHROME1 inverted.

    Args:
        file: Opened for reading, at its beginning.
        window_hu: Centre and width in Hounsfield units, for CT; the window that the file names where left out, and for
            all other modalities. Where there is none, values are scaled by the rule of `to_8_bits`.
        frame: Which of several frames, from 0; a file with a single one has only that.
        max_pixels: Larger images are refused before they are decoded.

    Raises:
        UnreadableImage: The file holds no image, no such frame, a compression without decoder, or is damaged. It tells
            nothing of what stands in the header.
    """
    # Every oddity of a header is logged; the reason below says what matters.
    logging.getLogger("pydicom").setLevel(logging.CRITICAL)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return _read(file, window_hu, frame, max_pixels)
        except UnreadableImage:
            raise
        except Exception as error:
            # A damaged file makes pydicom raise anything from struct.error to RecursionError.
            message = str(error)
            if "missing dependencies" in message or "does not support" in message:
                hint = "pip install 'medfinetune[dicom-gpl]' adds decoders under the GPL"
                raise UnreadableImage("DICOM compression without a decoder", hint) from None
            short = any(words in message for words in ("than expected", "end of file", "truncated", "cannot reshape"))
            # The message may quote the header, a name too: neither it nor the error itself goes any further.
            reason = "truncated image" if short else "damaged image"
            raise UnreadableImage(reason, f"DICOM ({type(error).__name__})") from None


def _read(file: BinaryIO, window_hu: tuple[float, float] | None, frame: int, max_pixels: int) -> DicomImage:
    # pydicom takes a fifth of a second to import: only those wait who have DICOM.
    from pydicom import dcmread

    dataset = dcmread(file, force=True, stop_before_pixels=True)
    modality = str(dataset.get("Modality") or "").strip().upper()
    other = _NO_PICTURES.get(str(dataset.get("SOPClassUID", "")), modality)
    if other in _NO_PICTURES.values():
        raise UnreadableImage(f"DICOM object that is no picture ({other})")
    if "Rows" not in dataset or "PhotometricInterpretation" not in dataset:
        raise UnreadableImage("DICOM without an image", modality if modality in _WITHOUT_PIXELS | _MODALITIES else "")
    if int(dataset.Rows) * int(dataset.Columns) > max_pixels:
        raise UnreadableImage("image is too large", f"{int(dataset.Columns)} x {int(dataset.Rows)} pixels")
    num_frames = int(dataset.get("NumberOfFrames") or 1)
    frame = frame if num_frames > 1 else 0
    if frame >= num_frames:
        raise UnreadableImage("DICOM has no such frame", f"dicom_frame: {frame}, but it has {num_frames}")
    values = _decode(file, dataset, frame)
    _take_from_frame(dataset, frame)
    image = _colour(values, dataset) if _is_colour(dataset) else _grey(values, dataset, window_hu)
    tags = _harmless_tags(dataset) | ({"frame": frame, "num_frames": num_frames} if num_frames > 1 else {})
    return DicomImage(image, tags, str(dataset.get("PatientID") or ""))


def _take_from_frame(dataset: "Dataset", frame: int) -> None:
    """Puts the rescaling and the window of one frame of an enhanced object where those of other objects stand."""
    per_frame, shared = (dataset.get(f"{name}FunctionalGroupsSequence") or [] for name in ("PerFrame", "Shared"))
    groups = [*per_frame[frame : frame + 1], *shared[:1]]
    for sequence, names, instead in _OF_FRAMES:
        found = next((group.get(sequence)[0] for group in groups if group.get(sequence)), None)
        if found is not None and all(dataset.get(name) in (None, "") for name in names + instead):
            for name in names:
                if name in found:
                    dataset[name] = found[name]


def _decode(file: BinaryIO, dataset: "Dataset", frame: int) -> np.ndarray:
    """The stored values of one frame, `(H, W)` or `(H, W, 3)`; other frames are not read."""
    from pydicom import dcmread
    from pydicom.pixels import pixel_array

    file.seek(0)
    syntax = getattr(dataset.file_meta, "TransferSyntaxUID", None)
    if syntax == _DEFLATED:
        return pixel_array(dcmread(file, force=True), index=frame)
    return pixel_array(file, index=frame, transfer_syntax_uid=syntax or _SYNTAXES[dataset.original_encoding])


def _is_colour(dataset: "Dataset") -> bool:
    return not dataset.PhotometricInterpretation.startswith("MONOCHROME")


def _colour(values: np.ndarray, dataset: "Dataset") -> Image.Image:
    from pydicom.pixels import apply_color_lut

    if dataset.PhotometricInterpretation == "PALETTE COLOR":
        values = apply_color_lut(values, dataset)
        full_scale = np.iinfo(values.dtype).max
    else:
        full_scale = 2 ** int(dataset.BitsStored) - 1
    if full_scale != 255:
        values = np.rint(values * (255.0 / full_scale))
    return Image.fromarray(np.ascontiguousarray(values[..., :3]).astype(np.uint8), "RGB")


def _grey(values: np.ndarray, dataset: "Dataset", window_hu: tuple[float, float] | None) -> Image.Image:
    from pydicom.pixels import apply_modality_lut

    values = apply_modality_lut(values, dataset)
    center, width = (_first(dataset.get(name)) for name in ("WindowCenter", "WindowWidth"))
    if window_hu is not None and dataset.get("Modality") == "CT":
        grey = window(values, *window_hu)
    elif dataset.get("VOILUTSequence") and "LUTData" in dataset.VOILUTSequence[0]:
        grey = _look_up(values, dataset.VOILUTSequence[0], dataset.original_encoding[1])
    elif center is not None and width is not None and width > 0:
        grey = window(values, center, width, str(dataset.get("VOILUTFunction")).strip().upper())
    elif int(dataset.BitsStored) == 1:
        grey = (values > 0).astype(np.float64)
    else:
        # A rescale slope turns whole numbers into floats, for which another scale would be taken.
        grey = to_8_bits(values.astype(np.int64) if (values == np.rint(values)).all() else values) / 255
    if dataset.PhotometricInterpretation == "MONOCHROME1":
        grey = 1 - grey
    return Image.fromarray(np.rint(grey * 255).astype(np.uint8)).convert("RGB")


def _look_up(values: np.ndarray, table: "Dataset", is_little_endian: bool | None) -> np.ndarray:
    """Maps values by a VOI LUT to 0..1.

    Not pydicom's `apply_voi`: it counts in the type of the entries, so that tables of 8 bits repeat after 256 of them.
    """
    _, first, bits = table.LUTDescriptor
    entries = table.LUTData
    if isinstance(entries, bytes):
        entries = np.frombuffer(entries, ">u2" if is_little_endian is False else "<u2")
    entries = np.atleast_1d(np.asarray(entries))
    places = np.clip(values.astype(np.int64) - int(first), 0, len(entries) - 1)
    return np.clip(entries[places] / (2 ** int(bits) - 1), 0, 1)


def window(values: np.ndarray, center: float, width: float, function: str = "LINEAR") -> np.ndarray:
    """Maps values to 0..1 by the formulas of DICOM PS3.3 C.11.2.1.

    Args:
        values: After the modality LUT.
        center: In the unit of `values`.
        width: In the unit of `values`, above 0.
        function: `LINEAR`, `LINEAR_EXACT` or `SIGMOID`.
    """
    values = values.astype(np.float64)
    if function == "SIGMOID":
        return 1 / (1 + np.exp(-4 * (values - center) / width))
    if function != "LINEAR_EXACT" and width == 1:
        return (values > center - 0.5).astype(np.float64)
    if function == "LINEAR_EXACT" or width < 1:
        return np.clip((values - center) / width + 0.5, 0, 1)
    return np.clip((values - (center - 0.5)) / (width - 1) + 0.5, 0, 1)


def _first(value: Any) -> float | None:
    if value is None or value == "":
        return None
    return float(value) if not hasattr(value, "__len__") or isinstance(value, str) else float(value[0])


def _harmless_tags(dataset: "Dataset") -> dict[str, Any]:
    side = dataset.get("ImageLaterality") or dataset.get("Laterality")
    found = {
        "modality": (dataset.get("Modality"), _MODALITIES),
        "body_part": (dataset.get("BodyPartExamined"), _BODY_PARTS),
        "view": (dataset.get("ViewPosition"), _VIEWS),
        "side": (side, _SIDES),
    }
    codes = {name: (str(value or "").strip().upper(), known) for name, (value, known) in found.items()}
    return {name: value for name, (value, known) in codes.items() if value in known}
