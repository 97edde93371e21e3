"""Skin lesions photographed with a phone, and their clinical table: PAD-UFES-20 (Mendeley zr7vgbcyr2)."""

import csv
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from medfinetune.data.folders import walk
from medfinetune.data.schema import MISSING_IMAGE, Dropped, Record
from medfinetune.errors import InputError

LICENSE = "CC-BY-4.0"

DIAGNOSES = {
    "BCC": ("basal cell carcinoma", "基底细胞癌"),
    "SCC": ("squamous cell carcinoma", "鳞状细胞癌"),
    "ACK": ("actinic keratosis", "光化性角化病"),
    "SEK": ("seborrheic keratosis", "脂溢性角化病"),
    "MEL": ("melanoma", "黑色素瘤"),
    "NEV": ("nevus", "色素痣"),
}
_REGIONS = {
    "FACE": ("face", "面部"),
    "FOREARM": ("forearm", "前臂"),
    "CHEST": ("chest", "胸部"),
    "BACK": ("back", "背部"),
    "ARM": ("arm", "手臂"),
    "NOSE": ("nose", "鼻部"),
    "HAND": ("hand", "手部"),
    "NECK": ("neck", "颈部"),
    "THIGH": ("thigh", "大腿"),
    "EAR": ("ear", "耳部"),
    "ABDOMEN": ("abdomen", "腹部"),
    "LIP": ("lip", "唇部"),
    "SCALP": ("scalp", "头皮"),
    "FOOT": ("foot", "足部"),
}
_SYMPTOMS = {
    # column: (English if true, English if false, Chinese if true, Chinese if false)
    "elevation": ("is raised", "is not raised", "隆起", "不隆起"),
    "itch": ("itches", "does not itch", "瘙痒", "不痒"),
    "hurt": ("hurts", "does not hurt", "疼痛", "不痛"),
    "bleed": ("bleeds", "does not bleed", "出血", "不出血"),
    "grew": ("has grown", "has not grown", "有增大", "无增大"),
    "changed": ("has changed", "has not changed", "有变化", "无变化"),
}
_SEXES = {"FEMALE": ("woman", "女性"), "MALE": ("man", "男性")}
_COLUMNS = ("img_id", "patient_id", "lesion_id", "diagnostic", "region", "age", "gender", "diameter_1", "diameter_2")
_SAYS_NOTHING = ("", "UNK", "NAN", "NONE")


def read(pad_ufes_dir: Path, languages: Iterable[str]) -> Iterator[Record | Dropped]:
    """Reads `metadata.csv` and finds its images below `pad_ufes_dir`, in doubled folders or not.

    A row is one record for each language.

    Raises:
        InputError: The folder or the table is missing, or the table lacks a column or holds no row.
    """
    if not pad_ufes_dir.is_dir():
        raise InputError(f"{pad_ufes_dir}: no such folder (pad_ufes_dir)")
    tables = sorted(pad_ufes_dir.rglob("metadata.csv"), key=lambda path: (len(path.parts), path))
    if not tables:
        raise InputError(f"{pad_ufes_dir}: holds no metadata.csv (pad_ufes_dir)")
    images: dict[str, str] = {}
    for folder, _, names in sorted(walk(pad_ufes_dir)):
        for name in names:
            images.setdefault(name, os.path.join(folder, name))
    for number, row in _rows(tables[0]):
        where = f"{tables[0].name} row {number}"
        for language in languages:
            if row["img_id"] in images:
                yield _record(row, where, images[row["img_id"]], language)
            else:
                yield Dropped("pad_ufes", where, MISSING_IMAGE, row["img_id"])


def _rows(table: Path) -> Iterator[tuple[int, dict[str, str]]]:
    """The rows by their numbers in a spreadsheet; a cell that says nothing is left out."""
    with table.open(newline="", encoding="utf-8-sig") as file:
        try:
            reader = csv.DictReader(file, strict=True)
            for column in (*_COLUMNS, *_SYMPTOMS):
                if column not in (reader.fieldnames or []):
                    raise InputError(f"{table}: column {column} is missing")
            number = 1
            for number, cells in enumerate(reader, start=2):
                if None in cells or None in cells.values():
                    raise InputError(f"{table}: row {number} has not as many cells as the header")
                row = {column: cell.strip() for column, cell in cells.items()}
                said = {column: cell for column, cell in row.items() if cell.upper() not in _SAYS_NOTHING}
                for column in ("img_id", "patient_id"):
                    if column not in said:
                        raise InputError(f"{table}: row {number}: {column} is empty")
                yield number, said
        except (csv.Error, UnicodeDecodeError) as error:
            raise InputError(f"{table}: cannot be read as CSV in UTF-8: {error}") from error
        if number == 1:
            raise InputError(f"{table}: holds no row")


def _record(row: dict[str, str], where: str, image: str, language: str) -> Record:
    described = {"img_id", "patient_id", "diagnostic", "age", "gender"}
    metadata = {column: cell for column, cell in row.items() if column not in described}
    sex = {"FEMALE": "female", "MALE": "male"}.get(row.get("gender", ""))
    known = {"age": row.get("age"), "sex": sex, "skin_type": row.get("fitspatrick")}
    metadata.pop("fitspatrick", None)
    return Record(
        id=f"pad_ufes-{Path(row['img_id']).stem}-{language}",
        source="pad_ufes",
        where=where,
        images=[image],
        text=caption(row, language),
        language=language,
        task="caption",
        label=row.get("diagnostic"),
        patient_id=row["patient_id"],
        license=LICENSE,
        metadata=metadata | {key: value for key, value in known.items() if value},
    )


def caption(row: dict[str, str], language: str) -> str:
    """Puts a row of the clinical table into words; a column that is not in `row` is passed over in silence.

    The diagnosis comes before the symptoms, so that an encoder of 64 tokens never loses it.

    Args:
        row: The cells that say something, by column.
        language: `en` or `zh`.
    """
    zh = language == "zh"
    region = _REGIONS.get(row.get("region", ""), (row.get("region", "").lower(),) * 2)[zh]
    person, size = _person(row, zh), _size(row)
    diagnosis = DIAGNOSES.get(row.get("diagnostic", ""), (row.get("diagnostic", ""),) * 2)[zh]
    symptoms = []
    for column, (yes, no, yes_zh, no_zh) in _SYMPTOMS.items():
        value = row.get(column, "").lower()
        if value in ("true", "false"):
            symptoms.append((yes_zh if zh else yes) if value == "true" else (no_zh if zh else no))
    if zh:
        text = f"{person}{region or '皮肤'}病变的临床照片"
        text += f"，大小{size}毫米。" if size else "。"
        text += f"诊断：{diagnosis}。" if diagnosis else ""
        return text + (f"病变{'、'.join(symptoms)}。" if symptoms else "")
    text = "Clinical photograph of a skin lesion"
    text += f" on the {region}" if region else ""
    text += f" of {person}" if person else ""
    text += f", {size} mm." if size else "."
    text += f" Diagnosis: {diagnosis}." if diagnosis else ""
    if symptoms:
        listed = ", ".join(symptoms[:-1]) + " and " + symptoms[-1] if len(symptoms) > 1 else symptoms[0]
        text += f" It {listed}."
    return text


def _person(row: dict[str, str], zh: bool) -> str:
    age, sex = row.get("age", ""), _SEXES.get(row.get("gender", ""))
    age = age.removesuffix(".0")
    if zh:
        return "".join([f"{age}岁" if age else "", sex[1] if sex else "患者" if age else ""])
    # A child is neither; the age alone says as much.
    noun = sex[0] if sex and (not age.isdigit() or int(age) >= 18) else "patient"
    if age:
        return f"a {age}-year-old {noun}" if not age.startswith(("8", "11", "18")) else f"an {age}-year-old {noun}"
    return f"a {noun}" if sex else ""


def _size(row: dict[str, str]) -> str:
    """The diameters in mm, the larger first; a diameter of 0 was not measured."""
    sizes = []
    for column in ("diameter_1", "diameter_2"):
        try:
            sizes.append(float(row.get(column, "0")))
        except ValueError:
            continue
    return " x ".join(f"{size:g}" for size in sorted(sizes, reverse=True) if size > 0)
