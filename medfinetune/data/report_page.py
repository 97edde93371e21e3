"""`data_report.html`: the report with pictures, in one file that opens without a network."""

import base64
import io
import json
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

import jinja2
from PIL import Image

from medfinetune.data.ledger import Ledger
from medfinetune.data.report import natural
from medfinetune.data.schema import DUPLICATE, SOURCES, SPLITS

PAGE_FILE = "data_report.html"

_THUMBNAIL_PX = 128
_NUM_IN_GALLERY = 8
_NUM_DUPLICATES = 12
_NUM_NEAR = 40
_NUM_LABELS = 20
_NUM_BINS = 30
_COLOURS = {"train": "#4477aa", "validation": "#ccbb44", "test": "#ee6677"}


def write_page(report: Mapping[str, Any], ledger: Ledger, output_dir: Path, path: Path) -> None:
    """Writes the page.

    Args:
        report: What `data_report.json` holds.
        ledger: The pairs.
        output_dir: Where the stored images are.
        path: The HTML file.
    """
    template = files("medfinetune.data").joinpath("data_report.html.j2").read_text(encoding="utf-8")
    environment = jinja2.Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    environment.filters["thumbnail"] = lambda file: _thumbnail(output_dir / file)
    environment.filters["number"] = lambda value: f"{value:,}"
    environment.filters["name"] = lambda where: where.rpartition("/")[2]
    lengths = report["token_lengths"]
    page = environment.from_string(template).render(
        report=report,
        gallery=_gallery(ledger),
        duplicates=_duplicates(ledger),
        near=report["near_duplicates"]["pairs"][:_NUM_NEAR],
        num_duplicates=report["dropped"].get(DUPLICATE, 0),
        splits=[split for split in SPLITS if split in report["by_split"]],
        dict=dict,
        size_chart=_size_chart(ledger),
        length_charts={model: _length_chart(measured) for model, measured in lengths.items()},
        label_charts={source: _label_chart(labels) for source, labels in report["labels_by_split"].items()},
    )
    path.write_text(page, encoding="utf-8")


def _thumbnail(path: Path) -> str:
    with Image.open(path) as image:
        image.thumbnail((_THUMBNAIL_PX, _THUMBNAIL_PX))
        file = io.BytesIO()
        image.save(file, "JPEG", quality=80)
    return "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode()


def _gallery(ledger: Ledger) -> dict[str, list[dict[str, Any]]]:
    """A few pairs of each source, spread over all of them."""
    gallery = {}
    for source in SOURCES:
        numbers = [n for (n,) in ledger.query("SELECT n FROM pairs WHERE source = ? ORDER BY n", source)]
        count = min(len(numbers), _NUM_IN_GALLERY)
        chosen = [numbers[i * len(numbers) // count] for i in range(count)]
        shown = []
        for n in chosen:
            _, pair = next(ledger.pairs("n = ?", values=(n,)))
            split = ledger.number("SELECT split FROM pairs WHERE n = ?", n)
            record = pair.record
            about = [SPLITS[split], record.language, *([f"label {record.label}"] if record.label else [])]
            files = [image.file for image in pair.images]
            shown.append({"files": files, "text": record.text[:300], "about": ", ".join(about), "where": record.where})
        if shown:
            gallery[source] = shown
    return gallery


def _duplicates(ledger: Ledger) -> list[dict[str, str]]:
    """Dropped duplicates beside what was kept of them."""
    rows = ledger.query(
        "SELECT source, place, detail FROM dropped WHERE reason = ? GROUP BY source, place, detail LIMIT ?",
        DUPLICATE,
        5 * _NUM_DUPLICATES,
    )
    shown = []
    for source, place, detail in rows.fetchall():
        kept = detail.partition(" as ")[2]
        found = ledger.query("SELECT images FROM pairs WHERE source = ? AND place = ? LIMIT 1", source, kept).fetchone()
        # What it repeats may have been dropped too, as disputed.
        if found:
            file = json.loads(found[0])[0]["file"]
            shown.append({"source": source, "dropped": place, "kept": kept, "file": file})
    return shown[:_NUM_DUPLICATES]


def _size_chart(ledger: Ledger) -> str:
    figure, (left, right) = _figure(num_columns=2)
    for axes, side in ((left, "width"), (right, "height")):
        counted = ledger.query(
            f"SELECT json_extract(value, '$.{side}_px') AS side, COUNT(DISTINCT json_extract(value, '$.sha256')) "
            "FROM pairs, json_each(images) GROUP BY side"
        )
        _histogram(axes, dict(counted.fetchall()))
        axes.set(xlabel=f"{side}, px", ylabel="images" if axes is left else "")
    return _svg(figure)


def _length_chart(measured: Mapping[str, Any]) -> str:
    figure, (axes,) = _figure()
    _histogram(axes, {int(length): count for length, count in measured["lengths"].items()})
    axes.axvline(measured["max_length"], color=_COLOURS["test"])
    axes.set(xlabel="tokens (the line: what the model takes)", ylabel="texts")
    return _svg(figure)


def _histogram(axes: Any, counts: Mapping[int, int]) -> None:
    """Bars of whole numbers; one value alone gets one bar, and the only mark."""
    from matplotlib.ticker import MaxNLocator

    low, high = min(counts), max(counts)
    width = max(1, -(-(high - low + 1) // _NUM_BINS))
    edges = [low - 0.5 + width * i for i in range((high - low) // width + 2)]
    axes.hist(list(counts), weights=list(counts.values()), bins=edges, color=_COLOURS["train"])
    axes.yaxis.set_major_locator(MaxNLocator(nbins=5, integer=True, min_n_ticks=1))
    axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True, min_n_ticks=1))
    axes.yaxis.set_major_formatter("{x:,.0f}")
    if low == high:
        axes.set(xticks=[low], xlim=(low - 3, low + 3))


def _label_chart(labels: Mapping[str, Mapping[str, int]]) -> str:
    """The share of each label within each split."""
    most = sorted(labels, key=lambda label: -sum(labels[label].values()))[:_NUM_LABELS]
    most.sort(key=natural)
    totals = {split: sum(counts.get(split, 0) for counts in labels.values()) for split in SPLITS}
    present = [split for split in SPLITS if totals[split]]
    figure, (axes,) = _figure(height=max(2.0, 0.3 * len(most) * len(present) / 2))
    for i, split in enumerate(present):
        shares = [100 * labels[label].get(split, 0) / totals[split] for label in most]
        places = [y + 0.8 * i / len(present) for y in range(len(most))]
        axes.barh(
            places, shares, height=0.8 / len(present), color=_COLOURS[split], label=f"{split} ({totals[split]:,})"
        )
    # Letters that matplotlib's font lacks would be boxes.
    names = [label if label.isascii() else json.dumps(label)[1:-1] for label in most]
    axes.set_yticks([y + 0.4 - 0.4 / len(present) for y in range(len(most))], [name[:30] for name in names])
    axes.invert_yaxis()
    axes.set(xlabel="% of the split's labelled pairs")
    axes.legend(fontsize=8)
    return _svg(figure)


def _figure(height: float = 2.4, num_columns: int = 1) -> tuple[Any, Any]:
    # Not pyplot: that would keep every figure and look for a screen.
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.5, height), layout="constrained")
    FigureCanvasSVG(figure)
    columns = figure.subplots(1, num_columns, squeeze=False)[0]
    for axes in columns:
        axes.spines[["top", "right"]].set_visible(False)
    return figure, columns


def _svg(figure: Any) -> str:
    file = io.StringIO()
    figure.savefig(file, format="svg", metadata={"Date": None, "Creator": None})
    text = file.getvalue()
    return text[text.index("<svg") :]
