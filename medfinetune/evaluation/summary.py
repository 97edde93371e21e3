"""The few figures that a terminal shows, each beside what a model without sight would reach."""

import re
from typing import Any


def describe_results(results: dict[str, Any]) -> str:
    """The main figures of `results.json`, a line each; a model that was not evaluated has none.

    Args:
        results: What `recipes/evaluate.py` writes.
    """
    of_decoder, reports = _decoder(results.get("decoder")), results.get("reports")
    if (reports or {}).get("evidence", "none") != "none":
        of_decoder = [line.replace("decoder ", "decoder, told nothing ", 1) for line in of_decoder]
    return "\n".join([*_encoder(results.get("encoder")), *of_decoder, *_reports(reports)])


def _encoder(figures: dict[str, Any] | None) -> list[str]:
    lines = []
    for name, by_language in (figures or {}).items():
        among = re.fullmatch(r"recall_at_1_among_(\d+)", name)
        if among:
            # Several texts of a pool may be right: chance is not one in so many.
            chances = figures["recall_at_1_chance"]
            lines += [
                _line("encoder", f"recall@1 among {among[1]}, {language}", value, "chance", chances[language])
                for language, value in by_language.items()
            ]
    if figures and "zero_shot_accuracy" in figures:
        known = figures["zero_shot_accuracy"], "chance", figures["zero_shot_chance"]
        lines.append(_line("encoder", "zero-shot accuracy", *known))
    return lines


def _decoder(figures: dict[str, Any] | None) -> list[str]:
    """Of the decoder that is told nothing."""
    if not figures:
        return []
    shuffled = "images shuffled"
    lines = [
        _line(
            "decoder",
            f"BLEU, {language}",
            bleu["score"],
            shuffled,
            figures.get("bleu_shuffled_image", {}).get(language, {}).get("score"),
        )
        for language, bleu in figures["bleu"].items()
    ]
    for name in ("perplexity", "finding_accuracy"):
        if figures.get(name) is not None:
            known = figures[name], shuffled, figures.get(f"{name}_shuffled_image")
            lines.append(_line("decoder", name.replace("_", " "), *known))
    return lines


def _reports(figures: dict[str, Any] | None) -> list[str]:
    """Finding F1 of the system and of all that it was held against, with intervals and paired differences."""
    lines, known = [], figures or {}
    systems = [(name, found, known["differences"]) for name, found in (known.get("conditions") or {}).items()]
    for name, other in (known.get("compared_with") or {}).items():
        systems.append((f"run {name}", other["figures"], {f"run {name}": other["differences"]}))
    for name, found, differences in systems:
        value = found.get("finding_f1")
        if value is None:
            continue
        limits, line = found.get("finding_f1_ci"), f"reports  finding F1, {name.replace('_', ' '):<25} {value:.3f}"
        line += f" [{limits[0]:.3f}, {limits[1]:.3f}]" if limits else ""
        paired = differences.get(name, {}).get("finding_f1", {})
        if paired.get("difference_ci"):
            low, high = paired["difference_ci"]
            line += f"   (own - this: {paired['difference']:+.3f} [{low:+.3f}, {high:+.3f}])"
        lines.append(line)
    return lines


def _line(model: str, name: str, value: float | None, control: str, of_control: float | None) -> str:
    beside = "" if of_control is None else f"   ({control}: {of_control:.3f})"
    return f"{model}  {name:<24} {'-' if value is None else f'{value:.3f}':>8}{beside}"
