"""The results as one HTML file that opens without a network."""

import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from medfinetune.evaluation.curves import draw_curves, read_log
from medfinetune.evaluation.findings import CONTRADICTORY
from medfinetune.evaluation.page_grading import calibration_rows, grading_parts
from medfinetune.evaluation.page_report import report_headlines, report_parts, tells
from medfinetune.evaluation.report_figures import KINDS
from medfinetune.evaluation.thumbnails import data_uri

RESULTS_FILE = "results.json"
PREDICTIONS_FILE = "predictions.jsonl"
PAGE_FILE = "index.html"
_TINY = 10_000_000
_THUMBNAIL_PX = 256


def write_results(
    results: dict[str, Any], output_dir: str | Path, predictions: Sequence[dict[str, Any]] | None = None
) -> None:
    """Writes `results.json` and, where there are any, `predictions.jsonl`; what is not finite becomes null."""
    folder = Path(output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    if predictions is not None:
        lines = (json.dumps(_finite(row), ensure_ascii=False) for row in predictions)
        _replace(folder / PREDICTIONS_FILE, "".join(f"{line}\n" for line in lines))
    text = json.dumps(_finite(results), ensure_ascii=False, indent=2, allow_nan=False)
    _replace(folder / RESULTS_FILE, text + "\n")


def write_page(
    results: dict[str, Any],
    output_dir: str | Path,
    predictions: Sequence[dict[str, Any]] = (),
    data_dir: str | Path | None = None,
    encoder_dir: str | Path | None = None,
    decoder_dir: str | Path | None = None,
    num_gallery: int = 48,
) -> Path:
    """Writes `index.html`; a part that the results do not hold is left out.

    Args:
        results: `encoder`, `decoder`, `reports`, `prepare` (what `data_report.json` holds), `seconds` (by part), each
            optional; `is_tiny` says that the figures are of tiny models, and is told by their size where it is not
            given; `split` names what the cases are of.
        predictions: A row for each case, as `evaluate_decoder` or `score_reports` gives them, with `image` relative to
            `data_dir`. Those with `scores` are shown among the reports, all others in the gallery.
        data_dir: The folder that `prepare` wrote, for the pictures.
        encoder_dir: The run folder, for its curves.
        num_gallery: Cases in a gallery, worst first.

    Returns:
        The path of the page.
    """
    parts = {name: results.get(name) or {} for name in ("encoder", "decoder", "reports", "prepare", "seconds")}
    scored = [row for row in predictions if "scores" in row] if parts["reports"] else []
    plain = [row for row in predictions if "scores" not in row] if scored else predictions
    split = results.get("split") or parts["reports"].get("split")
    is_alone = tells(parts["reports"])
    sizes = [parts[name].get("num_parameters") for name in ("encoder", "decoder")]
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"figure": _figure, "percent": _percent, "words": lambda name: str(name).replace("_", " ")}
    page = environment.get_template("page.html.j2").render(
        **parts,
        is_tiny=results.get("is_tiny", any(size is not None and size < _TINY for size in sizes)),
        split=split,
        is_alone=is_alone,
        headlines=[
            *report_headlines(parts["reports"]),
            *_of_encoder(parts["encoder"]),
            *_of_decoder(parts["decoder"], is_alone),
        ],
        runs=_runs({"Encoder": encoder_dir, "Decoder": decoder_dir}),
        report=report_parts(parts["reports"], scored, data_dir, num_gallery, split),
        score_words={name: kind.words for name, kind in KINDS.items()},
        gallery=[_card(row, data_dir) for row in sorted(plain, key=_badness)[:num_gallery]],
        num_predictions=len(plain),
        grading=grading_parts(parts["encoder"], data_dir),
        calibration=calibration_rows(parts["encoder"]),
        shuffled="_shuffled_image",
        contradictory=CONTRADICTORY,
    )
    path = Path(output_dir) / PAGE_FILE
    path.parent.mkdir(parents=True, exist_ok=True)
    _replace(path, page)
    return path


def read_predictions(output_dir: str | Path) -> list[dict[str, Any]]:
    """The rows of `predictions.jsonl`; none where there is no such file."""
    path = Path(output_dir) / PREDICTIONS_FILE
    if not path.is_file():
        return []
    with path.open(encoding="utf-8") as lines:  # a text may hold what `splitlines` takes for the end of a line
        return [json.loads(line) for line in lines]


def _of_encoder(encoder: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Each main figure with its control, its floor and the number of cases behind it, as shares of 1."""
    for language, pools in (encoder.get("recall_pools") or {}).items():
        yield {
            "part": "Encoder",
            "name": f"Finds the right text among {pools['pool_size']}",
            "language": language,
            "value": pools["image_to_text"],
            "limits": pools.get("image_to_text_ci"),
            "control": pools.get("image_to_text_shuffled_image"),
            "floor": pools["chance"],
            "floor_name": "chance",
            "count": f"{pools['num_pools']} pools, {pools['num_cases']} cases",
        }
    if "zero_shot_accuracy" in encoder:
        attributes = encoder["zero_shot_by_attribute"]
        yield {
            "part": "Encoder",
            "name": "Zero-shot accuracy",
            "value": encoder["zero_shot_accuracy"],
            "control": encoder.get("zero_shot_accuracy_shuffled_image"),
            "floor": encoder["zero_shot_chance"],
            "floor_name": "chance",
            "count": f"mean of {len(attributes)} attributes",
        }


def _of_decoder(decoder: dict[str, Any], is_alone: bool) -> Iterator[dict[str, Any]]:
    """Likewise; `is_alone` where the system tells its decoder something and these figures are without that."""
    part, behind = ("Decoder alone, told nothing", ", decoder alone") if is_alone else ("Decoder", "")
    if "finding_accuracy" in decoder:
        yield {
            "part": part,
            "name": f"Findings stated rightly{behind}",
            "value": decoder["finding_accuracy"],
            "control": decoder.get("finding_accuracy_shuffled_image"),
            "floor": decoder.get("finding_accuracy_majority"),
            "floor_name": "most common answer",
            "count": f"{decoder['num_findings']} findings, {decoder['num_cases']} texts",
        }
    for language, score in (decoder.get("bleu") or {}).items():
        control = decoder.get("bleu_shuffled_image", {}).get(language, {}).get("score")
        yield {
            "part": part,
            "name": f"BLEU{behind}",
            "scale": 100,
            "language": language,
            "value": (score["score"] or 0.0) / 100,
            "control": None if control is None else control / 100,
            "floor": None,
            "count": f"{score['num_texts']} texts",
        }


def _runs(folders: dict[str, str | Path | None]) -> list[dict[str, Any]]:
    runs = []
    for name, folder in folders.items():
        panels = draw_curves(read_log(folder), name.lower()) if folder is not None else []
        for panel in panels:
            panel["svg"] = Markup(panel["svg"])
        if panels:
            runs.append({"name": name, "panels": panels})
    return runs


def _badness(row: dict[str, Any]) -> tuple[float, bool]:
    findings = row.get("findings", {})
    wrong = sum(not finding["right"] for finding in findings.values())
    return (-wrong / max(1, len(findings)), row["generated"].strip() == row["reference"].strip())


def _card(row: dict[str, Any], data_dir: str | Path | None) -> dict[str, Any]:
    findings = row.get("findings", {})
    image = Path(data_dir) / row["image"] if data_dir is not None and row.get("image") else None
    return row | {
        "findings": findings,
        "num_right": sum(finding["right"] for finding in findings.values()),
        "thumbnail": data_uri(image, _THUMBNAIL_PX) if image is not None else None,
    }


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _figure(value: Any, digits: int = 2) -> str:
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return "n/a"
    return f"{value:,}" if isinstance(value, int) else f"{value:,.{digits}f}"


def _percent(value: float | None) -> str:
    """A CSS length for a share of 1."""
    return f"{100 * min(1.0, max(0.0, value or 0.0)):.1f}%"


def _replace(path: Path, text: str) -> None:
    """A run that is killed here leaves the earlier file whole."""
    unfinished = path.with_name(path.name + ".tmp")
    unfinished.write_text(text, encoding="utf-8")
    unfinished.replace(path)
