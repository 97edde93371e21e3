"""Writes generated images as raw folders in the layouts in which the four sources are published."""

import csv
import json
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import yaml
from PIL import Image
from tqdm import tqdm

from medfinetune.data.phantom.draw import draw
from medfinetune.data.phantom.findings import ATTRIBUTES, PARTS, Findings, combinations, report, zero_shot_tasks
from medfinetune.errors import InputError

LANGUAGES = ("en", "zh")
_GRADE_FOLDERS = ("0Normal", "1Doubtful", "2Mild", "3Moderate", "4Severe")
_DIAGNOSIS = {"brown": "NEV", "black": "MEL", "red": "BCC"}
_REGIONS = ("ARM", "FACE", "NECK", "BACK", "CHEST")
_QUESTIONS = {
    # attribute: (English question, its answers by value, Chinese question, its answers, SLAKE's content type)
    "heart": (
        "Is the heart enlarged?",
        {"normal": "No", "enlarged": "Yes"},
        "心脏增大了吗?",
        {"normal": "没有", "enlarged": "是"},
        "Abnormality",
    ),
    "device": (
        "Is there a pacemaker?",
        {"none": "No", "pacemaker": "Yes"},
        "有起搏器吗?",
        {"none": "没有", "pacemaker": "有"},
        "Abnormality",
    ),
    "effusion": (
        "On which side is the effusion?",
        {"none": "There is none", "left": "Left", "right": "Right"},
        "积液在哪一侧?",
        {"none": "没有", "left": "左侧", "right": "右侧"},
        "Position",
    ),
}

# As in a hospital, most training images are normal ones. It also keeps single findings worth learning: where all
# combinations are equally common, a few loud attributes tell any two images of a batch apart.
_TRAINING_ODDS = {
    ("view", "frontal"): 2.0,
    ("device", "none"): 2.0,
    ("effusion", "none"): 2.0,
    ("heart", "normal"): 2.0,
}
_PARTIAL = 0.3


@dataclass
class Sizes:
    """How many images each source gets; `report_*` come once in English and once in Chinese."""

    knee: int = 60
    pad_ufes: int = 40
    slake: int = 30
    report_train: int = 3000
    report_validation: int = 64
    report_test: int = 128


def write_raw_folders(output_dir: Path, seed: int = 0, sizes: Sizes | None = None) -> None:
    """Writes `knee/`, `pad_ufes_20/`, `slake/`, `reports.csv`, `reports/` and `zero_shot.yaml` below `output_dir`.

    The reports' three splits share no combination of attributes. A few records are bad on purpose, as real ones
    are: a disputed grade, repeated pixels, a table row without its image, an empty answer, a truncated file.

    Raises:
        InputError: `output_dir` is a file, or `sizes` asks for more held-out combinations than exist.
    """
    sizes = sizes or Sizes()
    num_held_out = sizes.report_test + sizes.report_validation
    if num_held_out >= math.prod(len(values) for values in ATTRIBUTES.values()):
        raise InputError(f"phantom: {num_held_out} held-out combinations leave none to train on")
    if output_dir.exists() and not output_dir.is_dir():
        raise InputError(f"{output_dir}: is a file, not a folder")
    rng = np.random.default_rng(seed)
    num_images = sum(vars(sizes).values())
    with tqdm(total=num_images, desc="drawing images", unit="image") as progress:
        _write_knee(output_dir / "knee", sizes.knee, rng, progress)
        _write_pad_ufes(output_dir / "pad_ufes_20", sizes.pad_ufes, rng, progress)
        _write_slake(output_dir / "slake" / "Slake1.0", sizes.slake, rng, progress)
        _write_reports(output_dir, sizes, rng, progress)
    prompts = zero_shot_tasks(rng)
    text = yaml.dump(prompts, Dumper=getattr(yaml, "CSafeDumper", yaml.SafeDumper), allow_unicode=True)
    (output_dir / "zero_shot.yaml").write_text(text, encoding="utf-8")


def _random_findings(rng: np.random.Generator) -> Findings:
    return {name: str(rng.choice(values)) for name, values in ATTRIBUTES.items()}


def _save(image: Image.Image, path: Path, progress: tqdm) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path)
    progress.update()


def _write_knee(folder: Path, num_images: int, rng: np.random.Generator, progress: tqdm) -> None:
    root = folder / "Digital Knee X-ray Images" / "Knee X-ray Images"
    for i in range(num_images):
        findings = _random_findings(rng)
        grade = int(findings["knee_grade"])
        image = draw(findings, rng, parts=("knee",)).convert("L")
        if i % 10 == 3:  # some of the published files are 16-bit
            image = Image.fromarray(np.asarray(image).astype(np.uint16) * 220)
        for expert in ("MedicalExpert-I", "MedicalExpert-II"):
            # The graders dispute the first image; everything else they see alike.
            given = (grade + 1) % 5 if i == 0 and expert.endswith("II") else grade
            name = f"{_GRADE_FOLDERS[given][1:]}G{given} ({i + 1}).png"
            path = root / expert / _GRADE_FOLDERS[given] / name
            path.parent.mkdir(parents=True, exist_ok=True)
            image.save(path)
        progress.update()


def _write_pad_ufes(folder: Path, num_images: int, rng: np.random.Generator, progress: tqdm) -> None:
    rows = []
    for i in range(num_images):
        findings = _random_findings(rng)
        patient, lesion = f"PAT_{i // 2 + 1}", i + 1  # two lesions a patient
        name = f"{patient}_{lesion}_{int(rng.integers(100, 999))}.png"
        symptoms = {key: str(rng.choice(["True", "False", "UNK"])) for key in ("itch", "grew", "hurt", "bleed")}
        rows.append(
            {
                "patient_id": patient,
                "lesion_id": lesion,
                "age": int(rng.integers(18, 90)),
                "gender": str(rng.choice(["FEMALE", "MALE", ""])),
                "fitspatrick": str(rng.choice(["1.0", "2.0", "3.0", ""])),
                "region": str(rng.choice(_REGIONS)),
                "diameter_1": f"{rng.integers(3, 15)}.0",
                "diameter_2": f"{rng.integers(3, 15)}.0",
                "diagnostic": _DIAGNOSIS[findings["lesion_colour"]],
                **symptoms,
                "changed": "UNK",
                "elevation": str(findings["lesion_border"] == "irregular"),
                "img_id": name,
                "biopsed": "True",
            }
        )
        part = f"imgs_part_{i % 3 + 1}"
        image = draw(findings, rng, parts=("skin",))
        _save(image, folder / "images" / part / part / name, progress)
    rows.append(rows[-1] | {"lesion_id": num_images + 1, "img_id": "PAT_0_0_0.png"})  # a row without its image
    with (folder / "metadata.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def _write_slake(folder: Path, num_images: int, rng: np.random.Generator, progress: tqdm) -> None:
    questions: dict[str, list[dict]] = {"train": [], "validate": [], "test": []}
    qid = 0
    for i in range(num_images):
        findings = _random_findings(rng)
        name = f"xmlab{i}/source.jpg"
        _save(draw(findings, rng, parts=("chest",)), folder / "imgs" / name, progress)
        split = "test" if i % 10 == 9 else "validate" if i % 10 == 8 else "train"
        for attribute, (question, answers, question_zh, answers_zh, content_type) in _QUESTIONS.items():
            for language in LANGUAGES:
                answer = (answers if language == "en" else answers_zh)[findings[attribute]]
                questions[split].append(
                    {
                        "img_id": i,
                        "img_name": name,
                        "question": question if language == "en" else question_zh,
                        "answer": "" if qid == 1 else answer,
                        "q_lang": language,
                        "location": "Chest",
                        "modality": "X-Ray",
                        "answer_type": "OPEN" if attribute == "effusion" else "CLOSED",
                        "base_type": "vqa",
                        "content_type": content_type,
                        "triple": ["vhead", "_", "_"],
                        "qid": qid,
                    }
                )
                qid += 1
    for split, rows in questions.items():
        (folder / f"{split}.json").write_text(json.dumps(rows, ensure_ascii=False), encoding="utf-8")


def _write_reports(folder: Path, sizes: Sizes, rng: np.random.Generator, progress: tqdm) -> None:
    every = combinations(rng)
    num_test, num_validation = sizes.report_test, sizes.report_validation
    held_out = {"test": every[:num_test], "validation": every[num_test : num_test + num_validation]}
    seen = every[num_test + num_validation :]
    odds = np.array([np.prod([_TRAINING_ODDS.get(finding, 1.0) for finding in findings.items()]) for findings in seen])
    drawn = rng.choice(len(seen), size=sizes.report_train, p=odds / odds.sum())
    held_out["train"] = [seen[i] for i in drawn]
    with (folder / "reports.csv").open("w", newline="", encoding="utf-8") as file:
        columns = ["image", "text", "language", "split", "patient_id", *ATTRIBUTES]
        writer = csv.DictWriter(file, fieldnames=columns)
        writer.writeheader()
        for split in ("train", "validation", "test"):
            for i, findings in enumerate(held_out[split]):
                name = f"reports/{split}_{i:05d}.png"
                # Some training images show one part of the body only, and their reports speak of nothing else.
                parts = tuple(PARTS) if split != "train" or rng.random() > _PARTIAL else (str(rng.choice(list(PARTS))),)
                _save(draw(findings, rng, parts=parts), folder / name, progress)
                shown = {attribute: findings[attribute] for part in parts for attribute in PARTS[part]}
                for language in LANGUAGES:
                    row = {"image": name, "text": report(shown, language, rng), "language": language}
                    writer.writerow(row | {"split": split, "patient_id": f"{split}-{i}"} | shown)
        broken = folder / "reports" / "truncated.png"
        broken.write_bytes((folder / "reports/train_00000.png").read_bytes()[:600])
        row = {"image": "reports/truncated.png", "text": "No fracture.", "language": "en", "split": "train"}
        writer.writerow(row | {"patient_id": "train-truncated"} | held_out["train"][0])
