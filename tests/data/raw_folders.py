"""Small raw folders with the traps of the real ones."""

import csv
import json
from pathlib import Path

import numpy as np
from PIL import Image
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, generate_uid

KNEE_ROOT = Path("Digital Knee X-ray Images") / "Knee X-ray Images"
GRADE_FOLDERS = ("0Normal", "1Doubtful", "2Mild", "3Moderate", "4Severe")
PAD_COLUMNS = (
    "patient_id",
    "lesion_id",
    "smoke",
    "age",
    "gender",
    "fitspatrick",
    "region",
    "diameter_1",
    "diameter_2",
    "diagnostic",
    "itch",
    "grew",
    "hurt",
    "changed",
    "bleed",
    "elevation",
    "img_id",
    "biopsed",
)


def picture(seed: int, size: tuple[int, int] = (12, 10)) -> Image.Image:
    """A picture of noise; each seed gives another one."""
    values = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(values)


def save(path: Path, image: Image.Image | int) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    (picture(image) if isinstance(image, int) else image).save(path)
    return path


def write_knee(folder: Path, grades: dict[int, tuple[int, int]]) -> Path:
    """Writes one picture for each seed in `grades`, graded by expert I and by expert II."""
    for seed, given in grades.items():
        for expert, grade in zip(("MedicalExpert-I", "MedicalExpert-II"), given, strict=True):
            name = f"{GRADE_FOLDERS[grade][1:]}G{grade} ({seed}).png"
            save(folder / KNEE_ROOT / expert / GRADE_FOLDERS[grade] / name, seed)
    return folder


def pad_row(number: int, **cells: str) -> dict[str, str]:
    row = dict.fromkeys(PAD_COLUMNS, "")
    row |= {"patient_id": f"PAT_{number}", "lesion_id": str(number), "age": "55", "gender": "FEMALE", "region": "ARM"}
    row |= {"diameter_1": "5.0", "diameter_2": "8.0", "diagnostic": "BCC", "itch": "True", "grew": "UNK"}
    return row | {"img_id": f"PAT_{number}_{number}_1.png"} | cells


def write_pad(folder: Path, rows: list[dict[str, str]], doubled: bool = True, missing: tuple[str, ...] = ()) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    write_table(folder / "metadata.csv", rows)
    for seed, row in enumerate(rows):
        part = Path("imgs_part_1") / "imgs_part_1" if doubled else Path("imgs_part_1")
        if row["img_id"] not in missing:
            save(folder / "images" / part / row["img_id"], 1_000_000 + seed)
    return folder


def write_table(path: Path, rows: list[dict[str, str]], encoding: str = "utf-8") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding=encoding) as file:
        writer = csv.DictWriter(file, list(rows[0]), delimiter="\t" if path.suffix == ".tsv" else ",")
        writer.writeheader()
        writer.writerows(rows)
    return path


def slake_row(qid: int, image: int, language: str = "en", **values) -> dict:
    row = {"img_id": image, "img_name": f"xmlab{image}/source.jpg", "q_lang": language, "qid": qid}
    texts = {"en": (f"Is finding {qid} there?", "Yes"), "zh": (f"有{qid}吗?", "有")}[language]
    row |= {"question": texts[0], "answer": texts[1], "answer_type": "CLOSED", "content_type": "Abnormality"}
    return row | {"modality": "CT", "location": "Lung", "base_type": "vqa", "triple": ["vhead", "_", "_"]} | values


def write_slake(
    folder: Path, train: list[dict], validation: list[dict], test: list[dict], middle: str = "validate"
) -> Path:
    """Writes the question files, and a picture for each image that they name."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, rows in (("train", train), (middle, validation), ("test", test)):
        (folder / f"{name}.json").write_text(json.dumps(rows, ensure_ascii=False), encoding="utf-8")
        for row in rows:
            save(folder / "imgs" / row["img_name"], 2_000_000 + row["img_id"])
    return folder


def write_dicom(path: Path, values: np.ndarray, **elements) -> Path:
    """A DICOM file of our own, with a patient in its header."""
    path.parent.mkdir(parents=True, exist_ok=True)
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = elements.pop("syntax", ExplicitVRLittleEndian)
    meta.MediaStorageSOPInstanceUID, meta.MediaStorageSOPClassUID = generate_uid(), "1.2.840.10008.5.1.4.1.1.7"
    dataset = FileDataset(path, {}, file_meta=meta, preamble=b"\0" * 128)
    dataset.PatientName, dataset.PatientID, dataset.PatientBirthDate = "Doe^Jane", "4711", "19500101"
    dataset.InstitutionName = "St. Elsewhere"
    dataset.Rows, dataset.Columns = values.shape[-2:]
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 16, 12, 11
    dataset.SamplesPerPixel, dataset.PixelRepresentation = 1, int(values.dtype.kind == "i")
    dataset.PhotometricInterpretation = "MONOCHROME2"
    for name, value in elements.items():
        setattr(dataset, name, value)
    dataset.PixelData = values.tobytes()
    dataset.save_as(path)
    return path
