"""Finds what stands on two sides of a split: python -m medfinetune.data.audit runs/demo/data"""

import json
import sqlite3
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from medfinetune.data.chat import CHATS_FILE, PAIRS_FILE
from medfinetune.data.schema import SPLITS
from medfinetune.errors import InputError
from medfinetune.parser import run

_COLUMNS = ("id", "source", "split", "patient_id", "pixel_sha256", "question", "group_id")
_KINDS = ("patient", "image", "question about an image", "group")


def audit(data_dir: str | Path) -> dict[str, Any]:
    """Checks that no patient, no image, no question about an image and no group stands in two splits.

    Where there are chats beside the pairs, they must be of the same rows in the same splits: the decoder learns from
    them. Training calls it before the first step.

    Args:
        data_dir: The folder that `prepare` wrote.

    Returns:
        `rows`, and how many different ones of each kind were looked at.

    Raises:
        InputError: Something stands in two splits, a row has none, or a chat is not that of a row; rows are named. Or
            the parquet is missing, damaged, lacks a column.
    """
    pairs_file, chats_file = Path(data_dir) / PAIRS_FILE, Path(data_dir) / CHATS_FILE
    counts = audit_file(pairs_file)
    if chats_file.is_file():
        _compare(pairs_file, chats_file)
    return counts


def audit_file(path: Path) -> dict[str, Any]:
    """`audit` for one parquet file."""
    database = sqlite3.connect("", isolation_level=None)
    database.execute("CREATE TABLE seen (kind TEXT, key TEXT, split TEXT, id TEXT)")
    num_rows = 0
    for row in _rows(path, _COLUMNS):
        num_rows += 1
        if row["split"] not in SPLITS:
            raise InputError(f"{path}: row {row['id']}: split {row['split']!r} is none of {', '.join(SPLITS)}")
        values = [(kind, key, row["split"], row["id"]) for kind, key in _keys(row)]
        database.executemany("INSERT INTO seen VALUES (?, ?, ?, ?)", values)
    leaks = database.execute(
        "SELECT kind, key, MIN(split), MAX(split) FROM seen GROUP BY kind, key HAVING MIN(split) != MAX(split)"
    ).fetchall()
    if leaks:
        kind, key, *splits = min(leaks, key=lambda leak: _KINDS.index(leak[0]))
        rows = [
            database.execute(
                "SELECT MIN(id) FROM seen WHERE kind = ? AND key = ? AND split = ?", (kind, key, split)
            ).fetchone()[0]
            for split in splits
        ]
        more = f" ({len(leaks):,} such leaks in all)" if len(leaks) > 1 else ""
        raise InputError(
            f"{path}: {kind} {key[:80]} stands in {splits[0]} (row {rows[0]}) and in {splits[1]} (row {rows[1]})"
            f"{more}; make the split anew with recipes/prepare.py"
        )
    counted = dict(database.execute("SELECT kind, COUNT(DISTINCT key) FROM seen GROUP BY kind"))
    return {"rows": num_rows} | {f"{kind}s": counted.get(kind, 0) for kind in ("patient", "image", "group")}


def published_leaks(path: Path) -> dict[str, dict[str, int]]:
    """What the splits as published would leak, by source: test rows whose image `train` shows too.

    Only sources that note a row's `published_split` in `metadata` are looked at.
    """
    database = sqlite3.connect("", isolation_level=None)
    database.execute("CREATE TABLE seen (source TEXT, image TEXT, split TEXT, row INTEGER)")
    for number, row in enumerate(_rows(path, ("source", "pixel_sha256", "metadata"))):
        split = json.loads(row["metadata"] or "{}").get("published_split")
        if split:
            values = [(row["source"], image, split, number) for image in row["pixel_sha256"]]
            database.executemany("INSERT INTO seen VALUES (?, ?, ?, ?)", values)
    leaks = {}
    for source, num_test in database.execute(
        "SELECT source, COUNT(DISTINCT row) FROM seen WHERE split = 'test' GROUP BY source"
    ).fetchall():
        (num_leaks,) = database.execute(
            "SELECT COUNT(DISTINCT row) FROM seen WHERE source = ? AND split = 'test' AND image IN "
            "(SELECT image FROM seen WHERE source = ? AND split = 'train')",
            (source, source),
        ).fetchone()
        leaks[source] = {"test_rows": num_test, "also_shown_in_train": num_leaks}
    return leaks


def _compare(pairs_file: Path, chats_file: Path) -> None:
    database = sqlite3.connect("", isolation_level=None)
    database.execute("CREATE TABLE pairs (id TEXT PRIMARY KEY, split TEXT) WITHOUT ROWID")
    for row in _rows(pairs_file, ("id", "split")):
        try:
            database.execute("INSERT INTO pairs VALUES (?, ?)", (row["id"], row["split"]))
        except sqlite3.IntegrityError as error:
            raise InputError(f"{pairs_file}: the id {row['id']} stands more than once") from error
    hint = "make the chats anew with recipes/chats.py"
    for number, chat in _chats(chats_file):
        where = f"{chats_file}: line {number}: row {chat.get('id')}"
        found = database.execute("SELECT split FROM pairs WHERE id = ?", (chat.get("id"),)).fetchone()
        if found is None:
            raise InputError(f"{where} is not in {PAIRS_FILE}, or stands here twice; {hint}")
        if found[0] != chat.get("split"):
            raise InputError(f"{where} stands in {chat.get('split')}, but {PAIRS_FILE} says {found[0]}; {hint}")
        database.execute("DELETE FROM pairs WHERE id = ?", (chat["id"],))
    left = database.execute("SELECT MIN(id) FROM pairs").fetchone()[0]
    if left is not None:
        raise InputError(f"{chats_file}: row {left} of {PAIRS_FILE} is missing; {hint}")


def _chats(chats_file: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    with chats_file.open(encoding="utf-8") as file:
        for number, line in enumerate(file, start=1):
            try:
                chat = json.loads(line)
            except ValueError as error:
                raise InputError(f"{chats_file}: line {number} is no JSON: {error}") from error
            if not isinstance(chat, dict):
                raise InputError(f"{chats_file}: line {number} is no JSON object")
            yield number, chat


def _keys(row: dict[str, Any]) -> Iterator[tuple[str, str]]:
    if row["patient_id"]:
        # Another source's patient of the same name is another person.
        yield "patient", f"{row['patient_id']} ({row['source']})"
    for image in row["pixel_sha256"]:
        yield "image", image
        if row["question"]:
            yield "question about an image", f"{image[:12]}... {row['question']}"
    if row["group_id"]:
        yield "group", row["group_id"]


def _rows(path: Path, columns: tuple[str, ...]) -> Iterator[dict[str, Any]]:
    if not path.is_file():
        raise InputError(f"{path}: no such file; make it with: python recipes/prepare.py --config ...")
    try:
        with pq.ParquetFile(path) as file:
            for column in columns:
                if column not in file.schema_arrow.names:
                    raise InputError(f"{path}: column {column} is missing")
            for batch in file.iter_batches(batch_size=1_000, columns=list(columns)):
                yield from batch.to_pylist()
    except (OSError, ValueError) as error:
        raise error if isinstance(error, InputError) else InputError(f"{path}: is no parquet: {error}") from error


def main() -> None:
    """Audits the folder named on the command line."""
    if len(sys.argv) != 2 or sys.argv[1].startswith("-"):
        raise InputError("name the folder that recipes/prepare.py wrote: python -m medfinetune.data.audit DIR")
    for kind, count in audit(sys.argv[1]).items():
        print(f"{kind:<10} {count:>10,}")
    print("nothing stands in two splits")


if __name__ == "__main__":
    run(main)
