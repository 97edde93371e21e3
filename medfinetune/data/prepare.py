"""Raw folders to `all_med_pairs.parquet`, `chat_instructions.jsonl`, `images/` and the report."""

import dataclasses
import hashlib
import itertools
import json
import shutil
import sqlite3
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

import pyarrow as pa
import pyarrow.parquet as pq
from tqdm import tqdm

from medfinetune.data.audit import audit_file, published_leaks
from medfinetune.data.chat import CHATS_FILE, PAIRS_FILE, write_chats
from medfinetune.data.clean import clean, with_images
from medfinetune.data.config import PrepareConfig
from medfinetune.data.image_store import INCOMING_DIR, store_images
from medfinetune.data.ledger import Ledger
from medfinetune.data.lock import only_writer
from medfinetune.data.report import DROPPED_FILE, REPORT_FILE, build_report
from medfinetune.data.report_page import PAGE_FILE, write_page
from medfinetune.data.schema import FEATURES, SPLITS, Dropped, Pair, Record
from medfinetune.data.settle import settle
from medfinetune.data.sources import chen, knee, pad_ufes, report_folder, reports, slake
from medfinetune.data.split import draw_splits, link_groups
from medfinetune.data.unused import count_unused, remove_unused
from medfinetune.errors import InputError

FAILED_FILE = "dropped_of_failed_run.jsonl"
_ROWS_AT_ONCE = 1_000


def prepare(config: PrepareConfig) -> dict[str, Any]:
    """Reads the sources, stores their images, drops what cannot be used, splits the rest and writes it.

    A killed run goes on where it was. Nothing of an earlier output is touched before all is ready.

    Returns:
        What `data_report.json` holds; see `build_report`.

    Raises:
        InputError: See the sources; nothing is left to write, the output folder cannot be written, or another run
            writes there.
    """
    output_dir = Path(config.output_dir)
    try:
        _require_sources(config)
        with _writing(output_dir):
            output_dir.mkdir(parents=True, exist_ok=True)
            with only_writer(output_dir):
                return _prepare(config, output_dir)
    except sqlite3.OperationalError as error:
        if not error.sqlite_errorname.startswith(("SQLITE_FULL", "SQLITE_IOERR", "SQLITE_CANTOPEN")):
            raise
        folder = tempfile.gettempdir()
        raise InputError(f"{folder}: temporary files cannot be written (TMPDIR names another folder)") from error


@contextmanager
def _writing(output_dir: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise InputError(f"{output_dir}: cannot be written (output_dir): {error}") from error


def _prepare(config: PrepareConfig, output_dir: Path) -> dict[str, Any]:
    started = time.perf_counter()
    ledger = Ledger()
    options = config.image_options()
    num_records = 0
    for item in tqdm(_read(config, output_dir), desc="records", unit="record", delay=1):
        num_records += 1
        ledger.add(clean(item, config.allow_licenses, options.patient_key))
    num_files = ledger.number("SELECT COUNT(*) FROM files")
    stored = store_images(ledger.paths(), output_dir, options, config.num_workers, num_files, config.remove_unused)
    for path, outcome in stored:
        ledger.note_image(path, outcome)
    for n, record in ledger.records():
        outcome = with_images(record, [ledger.image(path) for path in record.images])
        ledger.drop(n, outcome) if isinstance(outcome, Dropped) else ledger.save(n, outcome)
    if config.dicom_patients == "hash" and options.patient_key is None:
        _refuse_unhashed_patients(ledger)
    settle(ledger, keep_every_grade=config.knee_grader == "both")
    # Also pairs that max_pairs leaves out tie a patient to an image.
    link_groups(ledger)
    _sample(ledger, config.max_pairs, config.seed)
    num_moved, num_followed = draw_splits(ledger, config.validation_fraction, config.test_fraction, config.seed)
    report = build_report(ledger, config, num_records)
    report |= {
        "moved_to_the_split_of_their_group": num_moved,
        "followed_a_published_split": num_followed,
        "seed": config.seed,
        "config": dataclasses.asdict(config),
        "unused_images": {"num_files": count_unused(ledger, output_dir), "removed": config.remove_unused},
    }
    if report["unused_images"]["num_files"] and not config.remove_unused:
        report["warnings"].append(
            f"{report['unused_images']['num_files']:,} image files of earlier runs are no longer used; "
            "`remove_unused: true` removes them and forgets where they came from"
        )
    if not report["pairs"]:
        _refuse_nothing(report, ledger, output_dir)
    return _write(ledger, report, output_dir, started)


def _read(config: PrepareConfig, output_dir: Path) -> Iterator[Record | Dropped]:
    try:
        yield from _sources(config, output_dir)
    except OSError as error:
        raise InputError(f"{error.filename or 'a source'}: cannot be read: {error.strerror}") from error


def _require_sources(config: PrepareConfig) -> None:
    keys = ("knee_dir", "chen_dir", "pad_ufes_dir", "slake_dir", "reports_file", "reports_dir")
    missing = [key for key in keys if getattr(config, key) and not Path(getattr(config, key)).exists()]
    if missing:
        named = ", ".join(f"{getattr(config, key)} ({key})" for key in missing)
        kind = "file" if missing == ["reports_file"] else "folder"
        without = " ".join(f"--{key} null" for key in missing)
        raise InputError(f"{named}: no such {kind}; to prepare without: {without}")


def _sources(config: PrepareConfig, output_dir: Path) -> Iterator[Record | Dropped]:
    if config.knee_dir:
        yield from knee.read(Path(config.knee_dir), config.languages, config.knee_grader, config.knee_bilateral)
    if config.chen_dir:
        yield from chen.read(Path(config.chen_dir), config.languages, config.chen_split)
    if config.pad_ufes_dir:
        yield from pad_ufes.read(Path(config.pad_ufes_dir), config.languages)
    if config.slake_dir:
        yield from slake.read(Path(config.slake_dir), config.languages, config.slake_split)
    if config.reports_file:
        path, incoming_dir = Path(config.reports_file), output_dir / INCOMING_DIR
        options = (config.reports_columns, incoming_dir, config.reports_encoding, config.reports_separator)
        yield from reports.read(path, config.languages, *options)
    if config.reports_dir:
        yield from report_folder.read(Path(config.reports_dir), config.languages, config.reports_encoding)


def _refuse_unhashed_patients(ledger: Ledger) -> None:
    """Without their patients' ids, images of one patient could end up on two sides."""
    named = "FROM pairs WHERE json_extract(record, '$.patient_id') IS NULL AND images LIKE '%\"names_patient\": true%'"
    count = ledger.number(f"SELECT COUNT(*) {named}")
    if count:
        where = next(ledger.query(f"SELECT place {named} ORDER BY n"))[0]
        raise InputError(
            f"{count:,} DICOM records name their patient only in the header, the first is {where}: give "
            "patient_key_file (made e.g. with `openssl rand -hex 32`) to keep patients apart by a keyed hash, or "
            "`dicom_patients: ignore`"
        )


def _refuse_nothing(report: dict[str, Any], ledger: Ledger, output_dir: Path) -> NoReturn:
    if not report["dropped"]:
        raise InputError("no pair is left: the sources hold no record")
    reasons = ", ".join(f"{reason}: {count:,}" for reason, count in report["dropped"].items())
    first = next(iter(report["dropped_examples"][next(iter(report["dropped"]))]))
    # Under a name of its own: what an earlier run wrote stays whole.
    _write_dropped(ledger, output_dir / FAILED_FILE)
    raise InputError(
        f"no pair is left of {report['records_in']:,} records ({reasons}); e.g. {first['where']}: {first['detail']}; "
        f"all are listed in {output_dir / FAILED_FILE}"
    )


def _sample(ledger: Ledger, max_pairs: dict[str, int], seed: int) -> None:
    # A pair's place depends on itself and the seed alone: more pairs do not reshuffle the others.
    ledger.define("draw_of", lambda name, place: hashlib.sha256(f"{seed}:{name}:{place}".encode()).hexdigest(), 2)
    for source, limit in max_pairs.items():
        surplus = ledger.query(
            "SELECT n, place FROM pairs WHERE source = ? ORDER BY draw_of(id, place), n LIMIT -1 OFFSET ?",
            source,
            limit,
        )
        for n, place in surplus:
            ledger.drop(n, Dropped(source, place, "over max_pairs", f"max_pairs: {limit}"))


def _number_repeats(ledger: Ledger) -> None:
    """Tells apart records whose source repeats an id, as two tables' rows do."""
    ledger.change("CREATE INDEX by_id ON pairs (id)", [()])
    repeats = ledger.query(
        "SELECT n, id, times FROM (SELECT n, id, ROW_NUMBER() OVER (PARTITION BY id ORDER BY n) AS times FROM pairs) "
        "WHERE times > 1 ORDER BY n"
    )
    for n, name, times in repeats.fetchall():
        # A source may have given this name too.
        while ledger.number("SELECT COUNT(*) FROM pairs WHERE id = ?", f"{name}-{times}"):
            times += 1
        ledger.change("UPDATE pairs SET id = ? WHERE n = ?", [(f"{name}-{times}", n)])


def _rows(ledger: Ledger) -> Iterator[dict[str, Any]]:
    _number_repeats(ledger)
    numbered = ledger.query("SELECT n, id, group_id, split FROM pairs ORDER BY n")
    for (n, row_id, group_id, split), (same, pair) in zip(numbered, ledger.pairs(), strict=True):
        assert n == same
        yield row(pair, row_id, group_id, SPLITS[split])


def row(pair: Pair, row_id: str, group_id: str, split: str) -> dict[str, Any]:
    """A row of the parquet; `row_id` is the record's own id, or another where its source repeats that."""
    record = pair.record
    values = {name: getattr(record, name) for name in FEATURES if hasattr(record, name)}
    return values | {
        "id": row_id,
        "images": [image.file for image in pair.images],
        "pixel_sha256": list(pair.pixels),
        "group_id": group_id,
        "split": split,
        "metadata": json.dumps(record.metadata, ensure_ascii=False, sort_keys=True),
    }


def _write(ledger: Ledger, report: dict[str, Any], output_dir: Path, started: float) -> dict[str, Any]:
    """Writes all files under other names first; a failure leaves those of an earlier run as they were."""
    names = (PAIRS_FILE, CHATS_FILE, DROPPED_FILE, REPORT_FILE, PAGE_FILE)
    unfinished = {name: output_dir / f"unfinished_{name}" for name in names}
    rows = _rows(ledger)
    with pq.ParquetWriter(unfinished[PAIRS_FILE], FEATURES.arrow_schema) as writer:
        while batch := list(itertools.islice(rows, _ROWS_AT_ONCE)):
            writer.write_table(pa.Table.from_pylist(batch, schema=FEATURES.arrow_schema))
    write_chats(unfinished[PAIRS_FILE], unfinished[CHATS_FILE])
    _write_dropped(ledger, unfinished[DROPPED_FILE])
    report["audit"] = audit_file(unfinished[PAIRS_FILE]) | {"published": published_leaks(unfinished[PAIRS_FILE])}
    report["seconds"] = round(time.perf_counter() - started, 2)
    unfinished[REPORT_FILE].write_text(json.dumps(report, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
    write_page(report, ledger, output_dir, unfinished[PAGE_FILE])
    for name in names:
        unfinished[name].replace(output_dir / name)
    shutil.rmtree(output_dir / INCOMING_DIR, ignore_errors=True)
    (output_dir / FAILED_FILE).unlink(missing_ok=True)
    if report["unused_images"]["removed"]:
        remove_unused(ledger, output_dir)
    return report


def _write_dropped(ledger: Ledger, path: Path) -> None:
    with path.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(dataclasses.asdict(item), ensure_ascii=False) + "\n" for item in ledger.dropped())
