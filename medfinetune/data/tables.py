"""Rows of a CSV, TSV, JSONL or parquet file, each with where it stands, for messages."""

import codecs
import csv
import json
import re
import sys
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from medfinetune.errors import InputError

Row = dict[str, Any]
_SUFFIXES = (".csv", ".tsv", ".jsonl", ".parquet")
WHOLE_FLOAT = re.compile(r"(-?\d+)\.0+")
_MARKS = {codecs.BOM_UTF8: "utf-8-sig", codecs.BOM_UTF16_LE: "utf-16", codecs.BOM_UTF16_BE: "utf-16"}
_ENCODING_HINT = "`reports_encoding` names another encoding, e.g. gb18030, utf-16 or latin-1"


def read_table(
    path: Path, encoding: str | None = None, separator: str | None = None, columns: Collection[str] | None = None
) -> Iterator[tuple[str, Row]]:
    """Yields `row 7` or `line 7`, and the row; not-a-number, as pandas writes what is missing, is None.

    Args:
        path: The file; its ending tells its kind.
        encoding: Of a text file; what its mark says where left out, or UTF-8.
        separator: Between the cells of a CSV or TSV file; comma and tabulator where left out.
        columns: Of a parquet file, the only ones that are read.

    Raises:
        InputError: Not one of the four kinds, another encoding, or damaged; the row is named.
    """
    suffix = path.suffix.lower()
    if suffix not in _SUFFIXES:
        raise InputError(f"{path}: must end in {', '.join(_SUFFIXES)} (reports_file)")
    if suffix == ".parquet":
        rows = _parquet_rows(path, columns)
    elif suffix == ".jsonl":
        rows = _jsonl_rows(path, encoding or encoding_of(path))
    else:
        separator = separator or ("\t" if suffix == ".tsv" else ",")
        rows = _csv_rows(path, encoding or encoding_of(path), separator)
    return ((where, {key: _known(value) for key, value in row.items()}) for where, row in rows)


def whole_number_columns(rows: Iterator[tuple[str, Row]], columns: Collection[str]) -> set[str]:
    """Those of `columns` that hold nothing but whole numbers written as `1.0`: so pandas writes ids with gaps."""
    floats, others = set(), set()
    for _, row in rows:
        for column in columns:
            cell = str(row.get(column) if row.get(column) is not None else "").strip()
            if WHOLE_FLOAT.fullmatch(cell):
                floats.add(column)
            elif cell and not cell.isdecimal():
                others.add(column)
    return floats - others


def encoding_of(path: Path) -> str:
    """What the mark at the beginning of a text file says; UTF-8 where it has none."""
    with path.open("rb") as file:
        head = file.read(3)
    return next((name for mark, name in _MARKS.items() if head.startswith(mark)), "utf-8")


def check_encoding(encoding: str | None) -> None:
    """Raises:
    InputError: Python knows no such encoding.
    """
    try:
        codecs.lookup(encoding or "utf-8")
    except LookupError as error:
        raise InputError(f"reports_encoding: {encoding}: no such encoding; try utf-8, gb18030 or latin-1") from error


def _known(value: Any) -> Any:
    return None if isinstance(value, float) and value != value else value


def _csv_rows(path: Path, encoding: str, separator: str) -> Iterator[tuple[str, Row]]:
    # A report may be longer than the 131,072 characters that the csv module takes by default.
    csv.field_size_limit(min(sys.maxsize, 2**31 - 1))
    with path.open(newline="", encoding=encoding) as file:
        try:
            reader = csv.DictReader(file, delimiter=separator, strict=True)
            columns = reader.fieldnames or []
            repeated = next((column for column in columns if columns.count(column) > 1), None)
            if repeated is not None:
                raise InputError(f"{path}: column {repeated!r} stands more than once")
            other = next((mark for mark in ";\t|" if mark in "".join(columns)), None)
            if len(columns) == 1 and other is not None:
                raise InputError(
                    f"{path}: the header has one cell, with {other!r} in it; is that the separator? Then set "
                    f"`reports_separator: {other}`"
                )
            # The header is row 1, as a spreadsheet counts.
            for number, row in enumerate(reader, start=2):
                if None in row:
                    raise InputError(f"{path}: row {number} has more cells than the header")
                yield f"row {number}", row
        except UnicodeError as error:
            raise InputError(f"{path}: is not in {_plain(encoding)}; {_ENCODING_HINT} ({error})") from error
        except csv.Error as error:
            raise InputError(f"{path}: line {reader.line_num} is no CSV: {error}") from error


def _jsonl_rows(path: Path, encoding: str) -> Iterator[tuple[str, Row]]:
    with path.open(encoding=encoding) as file:
        number = 0
        try:
            for number, line in enumerate(file, start=1):
                if line.strip():
                    row = json.loads(line)
                    if not isinstance(row, dict):
                        raise InputError(f"{path}: line {number} is no JSON object")
                    yield f"line {number}", row
        except json.JSONDecodeError as error:
            raise InputError(f"{path}: line {number} is no JSON: {error}") from error
        except UnicodeError as error:
            where = f"line {number + 1} is not in {_plain(encoding)}"
            raise InputError(f"{path}: {where}; {_ENCODING_HINT} ({error})") from error


def _plain(encoding: str) -> str:
    return encoding.upper().removesuffix("-SIG")


def _parquet_rows(path: Path, columns: Collection[str] | None) -> Iterator[tuple[str, Row]]:
    try:
        with pq.ParquetFile(path) as file:
            number = 0
            # Rows may hold whole images.
            wanted = None if columns is None else [name for name in file.schema_arrow.names if name in columns]
            for batch in file.iter_batches(batch_size=100, columns=wanted):
                for row in batch.to_pylist():
                    number += 1
                    yield f"row {number}", row
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: is no parquet: {error}") from error
