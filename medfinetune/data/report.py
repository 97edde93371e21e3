"""`data_report.json`: what came in, what was kept, and why the rest was not."""

import platform
import re
from importlib.metadata import version
from typing import Any

from medfinetune.data.config import PrepareConfig
from medfinetune.data.ledger import Ledger
from medfinetune.data.perceptual import MAX_DISTANCE, near_duplicates
from medfinetune.data.schema import MISSING_IMAGE, SOURCES, SPLITS
from medfinetune.data.wording import find_confused, load_tokenizer, measure_chats, measure_texts

REPORT_FILE = "data_report.json"
DROPPED_FILE = "dropped.jsonl"

# What the pixels and the files depend on.
_PACKAGES = ("medfinetune", "pillow", "pydicom", "numpy", "pyarrow", "datasets")
_NUM_EXAMPLES = 5
_NUM_NEAR = 100
# Every image is compared with every other one: beyond this it would take longer than all the rest.
_MAX_COMPARED = 100_000
_NON_COMMERCIAL = re.compile(r"(?<![a-z])nc(?![a-z])|non[ _-]?commercial", re.IGNORECASE)
_RESTRICTED = re.compile(
    r"proprietary|research|academic|educational|internal|confidential|restricted|all rights reserved|not for|"
    r"no derivatives|(?<![a-z])nd(?![a-z])",
    re.IGNORECASE,
)
_SPLIT_NAME = "CASE split " + " ".join(f"WHEN {i} THEN '{name}'" for i, name in enumerate(SPLITS)) + " END"
_IMAGES = "FROM (SELECT DISTINCT json_extract(value, '$.sha256') FROM pairs, json_each(images))"


def build_report(ledger: Ledger, config: PrepareConfig, num_records: int) -> dict[str, Any]:
    """Counts records in, pairs kept and records dropped, and looks at the pairs' images, texts and licences.

    Args:
        ledger: The pairs, with their splits, and what was dropped.
        config: Names the tokenizers.
        num_records: How many came in.

    Raises:
        AssertionError: A record was neither kept nor dropped.
        InputError: A tokenizer cannot be loaded.
    """
    num_pairs = ledger.number("SELECT COUNT(*) FROM pairs")
    num_dropped = ledger.number("SELECT COUNT(*) FROM dropped")
    assert num_records == num_pairs + num_dropped, (num_records, num_pairs, num_dropped)
    missing = _missing_images(ledger)
    return {
        "records_in": num_records,
        "pairs": num_pairs,
        "dropped": _count(ledger, "reason", "dropped"),
        "dropped_by_source": _count_by(ledger, "reason", table="dropped"),
        "dropped_examples": _examples(ledger),
        "missing_image_files": {source: count for source, (count, _) in missing.items()},
        "warnings": _warnings(ledger, missing, config),
        "images": ledger.number(f"SELECT COUNT(*) {_IMAGES}"),
        "groups": ledger.number("SELECT COUNT(DISTINCT group_id) FROM pairs"),
        "by_source": _count(ledger, "source"),
        "by_split": _in_order(_count(ledger, _SPLIT_NAME)),
        "by_language": _count(ledger, "language"),
        "by_task": _count(ledger, "task"),
        "by_license": _count(ledger, "COALESCE(license, '')"),
        "by_label": {
            source: dict(sorted(counts.items(), key=lambda item: natural(item[0])))
            for source, counts in _count_by(ledger, "COALESCE(label, '')").items()
        },
        "by_source_and_split": {source: _in_order(counts) for source, counts in _count_by(ledger, _SPLIT_NAME).items()},
        "by_language_and_split": _languages_by_split(ledger),
        "labels_by_split": _labels_by_split(ledger),
        "licenses_to_check": _licenses_to_check(ledger),
        "near_duplicates": _near_duplicates(ledger),
        "versions": {name: version(name) for name in _PACKAGES} | {"python": platform.python_version()},
        **_texts(ledger, config),
    }


def _count(ledger: Ledger, column: str, table: str = "pairs") -> dict[str, int]:
    """The most frequent first."""
    return dict(ledger.query(f"SELECT {column} AS name, COUNT(*) FROM {table} GROUP BY name ORDER BY 2 DESC, 1"))


def _count_by(ledger: Ledger, column: str, table: str = "pairs") -> dict[str, dict[str, int]]:
    counted: dict[str, dict[str, int]] = {source: {} for source in SOURCES}
    rows = ledger.query(f"SELECT source, {column} AS name, COUNT(*) FROM {table} GROUP BY 1, 2 ORDER BY 3 DESC, 2")
    for source, name, count in rows:
        counted[source][name] = count
    return {source: counts for source, counts in counted.items() if counts}


def _in_order(counts: dict[str, int]) -> dict[str, int]:
    return {split: counts[split] for split in SPLITS if split in counts}


def natural(name: str) -> list[tuple[bool, int, str]]:
    """A key that sorts `grade 2` before `grade 10`, and numbers before words."""
    parts = re.findall(r"[0-9]+|[^0-9]+", name)
    return [(False, int(part), "") if part[0] in "0123456789" else (True, 0, part.lower()) for part in parts]


def _languages_by_split(ledger: Ledger) -> dict[str, dict[str, int]]:
    counted: dict[str, dict[str, int]] = {}
    rows = ledger.query(f"SELECT language, {_SPLIT_NAME}, COUNT(*) FROM pairs GROUP BY 1, split ORDER BY 1, split")
    for language, split, count in rows:
        counted.setdefault(language, {})[split] = count
    return counted


def _labels_by_split(ledger: Ledger) -> dict[str, dict[str, dict[str, int]]]:
    """source -> label -> split -> pairs."""
    counted: dict[str, dict[str, dict[str, int]]] = {}
    rows = ledger.query(
        f"SELECT source, label, {_SPLIT_NAME}, COUNT(*) FROM pairs WHERE label IS NOT NULL GROUP BY 1, 2, 3 "
        "ORDER BY 1, 2"
    )
    for source, label, split, count in rows:
        counted.setdefault(source, {}).setdefault(label, {})[split] = count
    return counted


def _examples(ledger: Ledger) -> dict[str, list[dict[str, str]]]:
    """A few different ones for each reason and source."""
    examples: dict[str, list[dict[str, str]]] = {}
    rows = ledger.query(
        "SELECT reason, source, place, detail FROM (SELECT *, ROW_NUMBER() OVER (PARTITION BY reason, source "
        "ORDER BY r) AS k FROM (SELECT *, MIN(rowid) AS r FROM dropped GROUP BY reason, source, place)) "
        "WHERE k <= ? ORDER BY r",
        _NUM_EXAMPLES,
    )
    for reason, source, place, detail in rows:
        examples.setdefault(reason, []).append({"source": source, "where": place, "detail": detail})
    return examples


def _missing_images(ledger: Ledger) -> dict[str, tuple[int, str]]:
    """How many image files of each source are missing, and the first."""
    rows = ledger.query(
        "SELECT source, COUNT(DISTINCT detail), detail, MIN(rowid) FROM dropped WHERE reason = ? GROUP BY source",
        MISSING_IMAGE,
    )
    return {source: (count, first) for source, count, first, _ in rows}


def _warnings(ledger: Ledger, missing: dict[str, tuple[int, str]], config: PrepareConfig) -> list[str]:
    warnings = []
    kept, lost = _count(ledger, "source"), _count(ledger, "source", "dropped")
    for source in SOURCES:
        if source in lost and source not in kept:
            warnings.append(f"{source}: NOTHING IS KEPT of its {lost[source]:,} records")
        if source in missing:
            count, first = missing[source]
            verb = "files are" if count > 1 else "file is"
            warnings.append(f"{source}: {count:,} image {verb} missing, the first is {first}")
    for split in ("validation", "test"):
        fraction = getattr(config, f"{split}_fraction")
        if (
            kept
            and fraction > 0
            and not ledger.number("SELECT COUNT(*) FROM pairs WHERE split = ?", SPLITS.index(split))
        ):
            warnings.append(
                f"{split}_fraction: {fraction:g}, but no pair is in {split}: there are too few, or groups are too large"
            )
    return warnings + _patient_warnings(ledger, config)


def _patient_warnings(ledger: Ledger, config: PrepareConfig) -> list[str]:
    if config.patient_key_file is not None:
        return []
    warnings = []
    named = "SELECT COUNT(*) FROM pairs WHERE images LIKE '%\"names_patient\": true%' AND "
    named += "json_extract(record, '$.patient_id')"
    if config.dicom_patients == "ignore" and ledger.number(f"{named} IS NULL"):
        warnings.append("dicom_patients: ignore: images of one patient may stand in two splits")
    if count := ledger.number(f"{named} IS NOT NULL"):
        warnings.append(
            f"{count:,} pairs have a patient_id in the table and a patient in the DICOM header; without "
            "patient_key_file the two were not compared: a patient whom the table names in two ways may stand in two "
            "splits"
        )
    return warnings


def _licenses_to_check(ledger: Ledger) -> list[dict[str, Any]]:
    """Licences that are blank, ambiguous, non-commercial or otherwise restricted, with the rows that have them."""
    found = []
    rows = ledger.query(
        "SELECT COALESCE(license, ''), source, COUNT(*), MIN(n), place FROM pairs GROUP BY 1, 2 ORDER BY 3 DESC"
    )
    for name, source, count, _, place in rows:
        if problem := _license_problem(name):
            found.append({"license": name, "problem": problem, "source": source, "pairs": count, "first": place})
    return found


def _license_problem(name: str) -> str:
    if not name:
        return "blank"
    if _NON_COMMERCIAL.search(name):
        return "non-commercial"
    if _RESTRICTED.search(name):
        return "restricted"
    return "ambiguous" if "ambiguous" in name.lower() else ""


def _near_duplicates(ledger: Ledger) -> dict[str, Any]:
    """Images that look alike, the closest first; those across two splits before all others."""
    if ledger.number(f"SELECT COUNT(*) {_IMAGES}") > _MAX_COMPARED:
        return {"compared": 0, "max_bits": MAX_DISTANCE, "num_pairs": 0, "num_across_splits": 0, "pairs": []}
    ledger.change(
        "CREATE TABLE looks (k INTEGER PRIMARY KEY, looks TEXT, file TEXT, place TEXT, source TEXT, split)", [()]
    )
    ledger.change(
        "INSERT INTO looks (looks, file, place, source, split) SELECT json_extract(value, '$.looks'), "
        "json_extract(value, '$.file'), place, source, split FROM (SELECT value, place, source, split, MIN(n) AS first "
        "FROM pairs, json_each(images) GROUP BY json_extract(value, '$.sha256')) ORDER BY first",
        [()],
    )
    splits = bytes(split for (split,) in ledger.query("SELECT split FROM looks ORDER BY k"))
    found, across, closest = 0, 0, []
    for i, j, bits in near_duplicates(looks for (looks,) in ledger.query("SELECT looks FROM looks ORDER BY k")):
        found += 1
        across += splits[i] != splits[j]
        closest.append((splits[i] == splits[j], bits, i, j))
        if len(closest) > 10 * _NUM_NEAR:
            closest = sorted(closest)[:_NUM_NEAR]
    listed = [{"bits": bits, "images": [_image(ledger, k) for k in (i, j)]} for _, bits, i, j in sorted(closest)]
    return {
        "compared": len(splits),
        "max_bits": MAX_DISTANCE,
        "num_pairs": found,
        "num_across_splits": across,
        "pairs": listed[:_NUM_NEAR],
    }


def _image(ledger: Ledger, k: int) -> dict[str, str]:
    file, place, source, split = next(ledger.query("SELECT file, place, source, split FROM looks WHERE k = ?", k + 1))
    return {"file": file, "where": place, "source": source, "split": SPLITS[split]}


def _texts(ledger: Ledger, config: PrepareConfig) -> dict[str, Any]:
    encoder = decoder = None
    if config.encoder_tokenizer:
        encoder = load_tokenizer(config.encoder_tokenizer, "encoder_tokenizer")
    if config.decoder_tokenizer:
        decoder = load_tokenizer(config.decoder_tokenizer, "decoder_tokenizer")
    lengths = {}
    if encoder is not None:
        lengths["encoder"] = measure_texts(ledger, encoder, config.encoder_max_length)
    if decoder is not None:
        lengths["decoder"] = measure_chats(ledger, decoder, config.decoder_max_length)
    return {"token_lengths": lengths, "confused_texts": find_confused(ledger, encoder)}
