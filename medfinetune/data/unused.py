"""Images of earlier runs that lie in the output folder and that no record names any more."""

import re
from collections.abc import Iterator
from pathlib import Path

from medfinetune.data.ledger import Ledger

# Nothing is ever removed whose name is not of our making.
_STORED = re.compile(r"images/[0-9a-f]{2}/[0-9a-f]{64}(-\d+px)?\.png")


def count_unused(ledger: Ledger, output_dir: Path) -> int:
    """How many stored images no record of this run names, kept or dropped."""
    return sum(1 for _ in _unused(ledger, output_dir))


def remove_unused(ledger: Ledger, output_dir: Path) -> None:
    """Removes them."""
    for path in _unused(ledger, output_dir):
        path.unlink(missing_ok=True)


def _unused(ledger: Ledger, output_dir: Path) -> Iterator[Path]:
    ledger.change("CREATE INDEX IF NOT EXISTS by_file ON files (json_extract(image, '$.file'))", [()])
    for path in (output_dir / "images").glob("*/*.png"):
        file = path.relative_to(output_dir).as_posix()
        if _STORED.fullmatch(file) and not ledger.number(
            "SELECT COUNT(*) FROM files WHERE json_extract(image, '$.file') = ?", file
        ):
            yield path
