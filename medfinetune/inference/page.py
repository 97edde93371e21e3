"""Reports as one HTML file that opens without a network."""

import base64
import io
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jinja2
from PIL import Image

from medfinetune.data.evidence import LabelEvidence
from medfinetune.data.images import open_image
from medfinetune.data.unreadable import UnreadableImage
from medfinetune.inference.index import ImageIndex
from medfinetune.inference.report import Report

PAGE_FILE = "index.html"
_IMAGE_PX, _NEIGHBOUR_PX = 320, 128


def write_page(
    reports: Sequence[Report],
    path: str | Path,
    index: ImageIndex | None = None,
    num_written: int | None = None,
    num_failed: int = 0,
) -> Path:
    """Writes a page of reports, each with its image, its evidence and what warns of it.

    The page is written piece by piece, a report at a time.

    Args:
        reports: Those that are shown; an image that no longer opens is left out.
        path: The file.
        index: For the pictures of neighbours, as far as its data folder can be reached.
        num_written: Reports that there are, where the page shows only some.
        num_failed: Images of which no report could be written.
    """
    ids = {near.id for report in reports for near in report.evidence.neighbours}
    files = index.image_paths(ids) if index is not None and ids else {}
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters |= {"percent": lambda share: f"{100 * share:.0f}%", "bars": _bars}
    template = environment.get_template("page.html.j2")
    path = Path(path)
    unfinished = path.with_name(path.name + ".tmp")
    with unfinished.open("w", encoding="utf-8") as file:
        template.stream(
            cards=_cards(reports, files),
            num_shown=len(reports),
            num_written=len(reports) if num_written is None else num_written,
            num_failed=num_failed,
            num_unlike=sum(bool(report.unlike_training) for report in reports),
        ).dump(file)
    unfinished.replace(path)
    return path


def _cards(reports: Sequence[Report], files: dict[str, Path]) -> Iterator[dict[str, Any]]:
    for number, report in enumerate(reports, start=1):
        yield {
            "number": number,
            "report": report,
            "pictures": [_picture(path, _IMAGE_PX) for path in report.images],
            "neighbours": [
                (near, _picture(files[near.id], _NEIGHBOUR_PX) if near.id in files else None)
                for near in report.evidence.neighbours
            ],
        }


def _bars(label: LabelEvidence) -> list[tuple[str, float]]:
    """Values and probabilities, the most probable first."""
    return sorted(label.probabilities.items(), key=lambda item: -item[1])


def _picture(path: str | Path, size_px: int) -> str | None:
    try:
        image = open_image(path)
    except UnreadableImage:
        return None
    return _data_uri(image, size_px)


def _data_uri(image: Image.Image, size_px: int) -> str:
    image.thumbnail((size_px, size_px))
    stream = io.BytesIO()
    image.save(stream, format="JPEG", quality=88)
    return "data:image/jpeg;base64," + base64.b64encode(stream.getvalue()).decode()
