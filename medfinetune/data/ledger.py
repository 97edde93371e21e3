"""Keeps all records of a run on disk while they are sorted out."""

import json
import sqlite3
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from typing import Any

from medfinetune.data.image_store import Outcome
from medfinetune.data.images import StoredImage
from medfinetune.data.schema import SOURCES, SPLITS, Dropped, Pair, Record
from medfinetune.data.unreadable import UnreadableImage

_TABLES = """
CREATE TABLE pairs (
    n INTEGER PRIMARY KEY, source TEXT, place TEXT, id TEXT, language TEXT, task TEXT, label TEXT, license TEXT,
    text TEXT, said TEXT, given INTEGER, record TEXT, images TEXT, pixels TEXT,
    root INTEGER, group_id TEXT, split INTEGER
);
CREATE TABLE files (path TEXT PRIMARY KEY, image TEXT, reason TEXT, detail TEXT) WITHOUT ROWID;
CREATE TABLE dropped (source TEXT, place TEXT, reason TEXT, detail TEXT);
CREATE TABLE links (key TEXT, n INTEGER);
"""


class Ledger:
    """The records of one run, in the order in which they came, and why the others were dropped.

    SQLite keeps them in a nameless temporary file: memory does not grow with their number, and nothing is left behind
    however the process ends. `given` and `split` are numbers, places in `SPLITS`, so that the greater one is stronger.
    """

    def __init__(self) -> None:
        self._database = sqlite3.connect("", isolation_level=None)
        self._database.executescript("PRAGMA journal_mode = OFF; PRAGMA synchronous = OFF;" + _TABLES)

    def query(self, sql: str, *values: Any) -> sqlite3.Cursor:
        """The rows of a query."""
        return self._database.execute(sql, values)

    def number(self, sql: str, *values: Any) -> int:
        """The single number that a query gives, 0 for none."""
        return self._database.execute(sql, values).fetchone()[0] or 0

    def change(self, sql: str, rows: Iterable[tuple]) -> None:
        """Runs a statement once for each of `rows`."""
        self._database.executemany(sql, rows)

    def define(self, name: str, function: Any, num_arguments: int) -> None:
        """Makes a Python function known to queries."""
        self._database.create_function(name, num_arguments, function, deterministic=True)

    def add(self, item: Record | Dropped) -> None:
        """Enters what a source gave."""
        if isinstance(item, Dropped):
            self._note(item)
            return
        self._database.execute("INSERT INTO pairs (source, place, record) VALUES (?, ?, ?)", _columns(item))
        for path in item.images:
            self._database.execute("INSERT OR IGNORE INTO files (path) VALUES (?)", (path,))

    def drop(self, n: int, dropped: Dropped) -> None:
        """Takes record `n` out, for the reason given."""
        self._database.execute("DELETE FROM pairs WHERE n = ?", (n,))
        self._note(dropped)

    def save(self, n: int, pair: Pair) -> None:
        """Writes pair `n` as it is now."""
        record = pair.record
        self._database.execute(
            "UPDATE pairs SET id = ?, language = ?, task = ?, label = ?, license = ?, text = ?, said = ?, given = ?, "
            "record = ?, images = ?, pixels = ? WHERE n = ?",
            (
                record.id,
                record.language,
                record.task,
                record.label,
                record.license,
                record.text,
                _said(record),
                None if record.split is None else SPLITS.index(record.split),
                json.dumps(asdict(record), ensure_ascii=False),
                json.dumps([asdict(image) for image in pair.images]),
                " ".join(pair.pixels),
                n,
            ),
        )

    def paths(self) -> Iterator[str]:
        """The image files that the records name, each once, in the order of their names."""
        return (path for (path,) in self.query("SELECT path FROM files ORDER BY path"))

    def note_image(self, path: str, outcome: Outcome) -> None:
        """Enters what became of an image file."""
        if isinstance(outcome, StoredImage):
            values = (json.dumps(asdict(outcome)), None, None, path)
        else:
            values = (None, outcome.reason, outcome.detail, path)
        self._database.execute("UPDATE files SET image = ?, reason = ?, detail = ? WHERE path = ?", values)

    def image(self, path: str) -> Outcome:
        """What became of an image file."""
        found = self._database.execute("SELECT image, reason, detail FROM files WHERE path = ?", (path,)).fetchone()
        return StoredImage(**json.loads(found[0])) if found[0] else UnreadableImage(found[1], found[2])

    def records(self) -> Iterator[tuple[int, Record]]:
        """All records that are still there."""
        for n, record in self.query("SELECT n, record FROM pairs ORDER BY n"):
            yield n, Record(**json.loads(record))

    def pairs(self, condition: str = "TRUE", order: str = "n", values: tuple = ()) -> Iterator[tuple[int, Pair]]:
        """The pairs that meet a condition."""
        for n, record, images in self.query(
            f"SELECT n, record, images FROM pairs WHERE {condition} ORDER BY {order}", *values
        ):
            stored = [StoredImage(**image) for image in json.loads(images)]
            yield n, Pair(Record(**json.loads(record)), stored)

    def dropped(self) -> Iterator[Dropped]:
        """What was dropped, in the order of the sources."""
        for source in SOURCES:
            rows = self.query("SELECT * FROM dropped WHERE source = ? ORDER BY rowid", source)
            yield from (Dropped(*row) for row in rows)

    def _note(self, item: Dropped) -> None:
        values = (item.source, item.where, item.reason, item.detail)
        self._database.execute("INSERT INTO dropped VALUES (?, ?, ?, ?)", values)


def _columns(record: Record) -> tuple[str, str, str]:
    return record.source, record.where, json.dumps(asdict(record), ensure_ascii=False)


def _said(record: Record) -> str:
    """All words of a record: where they differ it is no duplicate."""
    messages = json.dumps(record.metadata.get("messages"), ensure_ascii=False)
    return "\0".join((record.text, record.question or "", record.answer or "", messages))
