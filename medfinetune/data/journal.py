"""Remembers on disk which images are stored, so that a killed run goes on where it was."""

import json
import sqlite3
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from types import TracebackType

from medfinetune.data.images import StoredImage

JOURNAL = "images/journal.jsonl"


class Journal:
    """`images/journal.jsonl`, a line for each stored image; only ever appended to, but for `forget_others`.

    The lines are looked up in a database that SQLite keeps in a nameless temporary file: it goes with the process,
    however that ends, and memory does not grow with the number of images.
    """

    def __init__(self, output_dir: Path):
        self._output_dir = output_dir
        self._index = sqlite3.connect("", isolation_level=None)
        self._index.execute("CREATE TABLE done (key TEXT PRIMARY KEY, image TEXT, used INTEGER) WITHOUT ROWID")
        self._index.execute("CREATE TABLE waiting (path TEXT, key TEXT)")
        path = output_dir / JOURNAL
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.is_file():
            with path.open(encoding="utf-8", errors="replace") as file:
                self._index.execute("BEGIN")
                self._index.executemany("INSERT OR REPLACE INTO done VALUES (?, ?, 0)", _entries(file))
                self._index.execute("COMMIT")
        self._file = path.open("a", encoding="utf-8")
        # A kill may have left half a line.
        self._file.write("\n")

    def __enter__(self) -> "Journal":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._file.close()
        self._index.close()

    def find(self, key: str) -> StoredImage | None:
        """The image that was stored under `key`, if its file is still there."""
        row = self._index.execute("SELECT image FROM done WHERE key = ?", (key,)).fetchone()
        if row is None:
            return None
        image = StoredImage(**json.loads(row[0]))
        if not (self._output_dir / image.file).is_file():
            return None
        self._index.execute("UPDATE done SET used = 1 WHERE key = ?", (key,))
        return image

    def add(self, key: str, image: StoredImage) -> None:
        """Notes an image; from now on a later run finds it."""
        self._file.write(json.dumps({"key": key} | asdict(image)) + "\n")
        self._file.flush()
        self._index.execute("INSERT OR REPLACE INTO done VALUES (?, ?, 1)", (key, json.dumps(asdict(image))))

    def forget_others(self) -> None:
        """Leaves only the lines of images that were found or added since the journal was opened."""
        path = self._output_dir / JOURNAL
        unfinished = path.with_name(path.name + ".tmp")
        with unfinished.open("w", encoding="utf-8") as file:
            for key, image in self._index.execute("SELECT key, image FROM done WHERE used ORDER BY key"):
                file.write(json.dumps({"key": key} | json.loads(image)) + "\n")
        unfinished.replace(path)

    def postpone(self, path: str, key: str) -> None:
        """Puts a file on the list of those that are still to be opened."""
        self._index.execute("INSERT INTO waiting VALUES (?, ?)", (path, key))

    @property
    def num_waiting(self) -> int:
        """How many files were postponed."""
        return self._index.execute("SELECT COUNT(*) FROM waiting").fetchone()[0]

    def waiting(self) -> Iterator[tuple[str, str]]:
        """The postponed files and their keys, in order."""
        # One by one: an open cursor would complain when an interrupted run closes the database under it.
        last = 0
        while row := self._index.execute(
            "SELECT rowid, path, key FROM waiting WHERE rowid > ? ORDER BY rowid LIMIT 1", (last,)
        ).fetchone():
            last, path, key = row
            yield path, key


def _entries(lines: Iterator[str]) -> Iterator[tuple[str, str]]:
    for line in lines:
        try:
            entry = json.loads(line)
            key = entry.pop("key")
            StoredImage(**entry)
        except (json.JSONDecodeError, AttributeError, KeyError, TypeError):
            continue
        yield key, json.dumps(entry)
