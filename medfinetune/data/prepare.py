"""Raw folders to `all_med_pairs.parquet`, `chat_instructions.jsonl`, `images/` and `data_report.json`."""

import dataclasses
import hashlib
import json
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from medfinetune.data.chat import CHATS_FILE, PAIRS_FILE, write_chats
from medfinetune.data.image_store import Outcome, store_images
from medfinetune.data.images import UnreadableImage
from medfinetune.data.report import build_report
from medfinetune.data.schema import FEATURES, SOURCES, Dropped, Pair, Record
from medfinetune.data.sources import knee, pad_ufes, reports, slake
from medfinetune.data.split import draw_splits, link_groups
from medfinetune.errors import InputError

REPORT_FILE = "data_report.json"
LANGUAGES = ("en", "zh")


@dataclass
class PrepareConfig:
    """The keys of the files under `recipes/prepare/`."""

    output_dir: str = field(metadata={"help": "where the pairs, the chats, the images and the report go"})
    knee_dir: str | None = field(default=None, metadata={"help": "folder of the knee X-rays by Gornale & Patravali"})
    pad_ufes_dir: str | None = field(default=None, metadata={"help": "folder of PAD-UFES-20"})
    slake_dir: str | None = field(default=None, metadata={"help": "folder of SLAKE 1.0"})
    reports_file: str | None = field(default=None, metadata={"help": "your own table: .csv, .tsv, .jsonl or .parquet"})
    languages: list[str] = field(default_factory=lambda: list(LANGUAGES), metadata={"help": "en, zh or both"})
    validation_fraction: float = field(default=0.05, metadata={"help": "share of the pairs without a published split"})
    test_fraction: float = field(default=0.0, metadata={"help": "share of the pairs without a published split"})
    max_pairs: dict[str, int] = field(
        default_factory=dict, metadata={"help": f"at most so many pairs of a source ({', '.join(SOURCES)})"}
    )
    seed: int = field(default=0, metadata={"help": "decides what max_pairs keeps and how splits are drawn"})
    max_side_px: int = field(default=2240, metadata={"help": "longest side of the stored images"})
    knee_grader: knee.Grader = field(
        default="agree", metadata={"help": "agree leaves out images with more than one grade; I, II, both"}
    )
    slake_split: slake.SplitBy = field(
        default="image", metadata={"help": "image: the published split by image; fresh: drawn anew"}
    )
    reports_columns: dict[str, str] = field(
        default_factory=dict, metadata={"help": "our column names to those of reports_file"}
    )
    num_workers: int | None = field(default=None, metadata={"help": "processes that open images (default: all cores)"})

    def __post_init__(self) -> None:
        if not any((self.knee_dir, self.pad_ufes_dir, self.slake_dir, self.reports_file)):
            raise InputError("give at least one of knee_dir, pad_ufes_dir, slake_dir, reports_file")
        if not self.languages or set(self.languages) - set(LANGUAGES):
            raise InputError(f"languages: {self.languages}: must name {' or '.join(LANGUAGES)} or both")
        self.languages = list(dict.fromkeys(self.languages))
        for name in ("validation_fraction", "test_fraction"):
            if not 0 <= getattr(self, name) < 1:
                raise InputError(f"{name}: {getattr(self, name)}: must lie between 0 and 1")
        if self.validation_fraction + self.test_fraction >= 1:
            raise InputError("validation_fraction and test_fraction leave nothing to train on")
        for source, count in self.max_pairs.items():
            if source not in SOURCES:
                raise InputError(f"max_pairs: unknown source {source}; those are {', '.join(SOURCES)}")
            if count < 0:
                raise InputError(f"max_pairs: {source}: {count}: must not be negative")
        for name in ("max_side_px", "num_workers"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise InputError(f"{name}: {getattr(self, name)}: must be at least 1")


def prepare(config: PrepareConfig) -> dict[str, Any]:
    """Reads the sources, stores their images, drops what cannot be used, splits the rest and writes it.

    A killed run goes on where it was. Nothing of an earlier output is touched before all is ready.

    Returns:
        What `data_report.json` holds; see `build_report`.

    Raises:
        InputError: See the sources; or nothing is left to write, or the output folder cannot be written.
    """
    started = time.perf_counter()
    output_dir = Path(config.output_dir)
    records, dropped = _sort_out(_read(config))
    num_records = len(records) + len(dropped)
    try:
        output_dir.mkdir(parents=True, exist_ok=True)
        paths = dict.fromkeys(path for record in records for path in record.images)
        outcomes = store_images(paths, output_dir, config.max_side_px, config.num_workers)
    except OSError as error:
        raise InputError(f"{output_dir}: cannot be written (output_dir): {error}") from error
    pairs, more = _sort_out(_open(records, outcomes))
    dropped += more
    pairs, more = _sort_out(_settle(pairs, config))
    dropped += more
    # Also pairs that max_pairs leaves out tie a patient to an image.
    group_of = dict(zip(map(id, pairs), link_groups(pairs), strict=True))
    pairs, more = _sort_out(_sample(pairs, config.max_pairs, config.seed))
    dropped += more
    group_ids = [group_of[id(pair)] for pair in pairs]
    outcome = draw_splits(pairs, group_ids, config.validation_fraction, config.test_fraction, config.seed)
    rows = _rows(pairs, group_ids, outcome.splits)
    report = build_report(rows, dropped, num_records) | {
        "moved_to_the_split_of_their_group": outcome.num_moved,
        "followed_a_published_split": outcome.num_followed,
        "seed": config.seed,
        "config": dataclasses.asdict(config),
        "seconds": round(time.perf_counter() - started, 2),
    }
    if not rows:
        reasons = ", ".join(f"{reason}: {count:,}" for reason, count in report["dropped"].items())
        raise InputError(f"no pair is left of {num_records:,} records ({reasons})")
    try:
        _write(rows, report, output_dir)
    except OSError as error:
        raise InputError(f"{output_dir}: cannot be written (output_dir): {error}") from error
    return report


def _read(config: PrepareConfig) -> Iterator[Record | Dropped]:
    if config.knee_dir:
        yield from knee.read(Path(config.knee_dir), config.languages, config.knee_grader)
    if config.pad_ufes_dir:
        yield from pad_ufes.read(Path(config.pad_ufes_dir), config.languages)
    if config.slake_dir:
        yield from slake.read(Path(config.slake_dir), config.languages, config.slake_split)
    if config.reports_file:
        yield from reports.read(Path(config.reports_file), config.languages, config.reports_columns)


def _sort_out(items: Iterable[Any]) -> tuple[list[Any], list[Dropped]]:
    kept, dropped = [], []
    for item in items:
        (dropped if isinstance(item, Dropped) else kept).append(item)
    return kept, dropped


def _open(records: Iterable[Record], outcomes: dict[str, Outcome]) -> Iterator[Pair | Dropped]:
    for record in records:
        images = [outcomes[path] for path in record.images]
        bad = next((image for image in images if isinstance(image, UnreadableImage)), None)
        if bad is None:
            yield Pair(record, images)
        else:
            detail = f"{record.images[images.index(bad)]} {bad.detail}".strip()
            yield Dropped(record.source, record.where, f"unreadable image: {bad.reason}", detail)


def _settle(pairs: Sequence[Pair], config: PrepareConfig) -> Iterator[Pair | Dropped]:
    """Drops what only the pixels tell: disputed grades, then the same images with the same text."""
    first: dict[tuple, Pair] = {}
    graded = [pair for pair in pairs if pair.record.source == "knee"]
    others = [pair for pair in pairs if pair.record.source != "knee"]
    for pair in [*knee.settle(graded, config.knee_grader), *others]:
        if isinstance(pair, Dropped):
            yield pair
            continue
        record = pair.record
        kept = first.setdefault((pair.pixels, record.text, record.language, record.task), pair)
        if kept is pair:
            yield pair
        else:
            kept.absorb(pair)
            yield pair.drop("duplicate", f"same pixels and text as {kept.record.where}")


def _sample(pairs: Sequence[Pair], max_pairs: dict[str, int], seed: int) -> Iterator[Pair | Dropped]:
    by_source: dict[str, list[str]] = defaultdict(list)
    for pair in pairs:
        # A pair's place depends on itself and the seed alone: more pairs do not reshuffle the others.
        by_source[pair.record.source].append(_draw(pair, seed))
    last = {source: sorted(draws)[: max_pairs.get(source)][-1:] for source, draws in by_source.items()}
    for pair in pairs:
        limit = last[pair.record.source]
        if limit and _draw(pair, seed) <= limit[0]:
            yield pair
        else:
            yield pair.drop("over max_pairs", f"max_pairs: {max_pairs[pair.record.source]}")


def _draw(pair: Pair, seed: int) -> str:
    return hashlib.sha256(f"{seed}:{pair.record.id}:{pair.record.where}".encode()).hexdigest()


def _rows(pairs: Sequence[Pair], group_ids: Sequence[str], splits: Sequence[str]) -> list[dict[str, Any]]:
    rows = []
    num_used: dict[str, int] = defaultdict(int)
    for pair, group_id, split in zip(pairs, group_ids, splits, strict=True):
        record = pair.record
        num_used[record.id] += 1
        values = {name: getattr(record, name) for name in FEATURES if hasattr(record, name)}
        repeated = f"-{num_used[record.id]}" if num_used[record.id] > 1 else ""
        values |= {
            "id": record.id + repeated,
            "images": [image.file for image in pair.images],
            "pixel_sha256": list(pair.pixels),
            "group_id": group_id,
            "split": split,
            "metadata": json.dumps(record.metadata, ensure_ascii=False, sort_keys=True),
        }
        rows.append(values)
    return rows


def _write(rows: list[dict[str, Any]], report: dict[str, Any], output_dir: Path) -> None:
    """Writes all three files under other names first; a failure leaves those of an earlier run as they were."""
    names = (PAIRS_FILE, CHATS_FILE, REPORT_FILE)
    unfinished = {name: output_dir / f"unfinished_{name}" for name in names}
    with pq.ParquetWriter(unfinished[PAIRS_FILE], FEATURES.arrow_schema) as writer:
        for start in range(0, len(rows), 2_000):
            writer.write_table(pa.Table.from_pylist(rows[start : start + 2_000], schema=FEATURES.arrow_schema))
    write_chats(unfinished[PAIRS_FILE], unfinished[CHATS_FILE])
    unfinished[REPORT_FILE].write_text(json.dumps(report, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
    for name in names:
        unfinished[name].replace(output_dir / name)
