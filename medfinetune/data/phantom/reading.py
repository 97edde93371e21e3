"""Chats without images whose answers stand in their prompts: what teaches a decoder of random weights to read."""

import json
from pathlib import Path
from typing import Any, Literal

import datasets
import numpy as np

from medfinetune.data.chat import CHATS_FILE, PAIRS_FILE, PROMPTS, write_chats
from medfinetune.data.evidence import Evidence, LabelEvidence, Neighbour, evidence_words, with_evidence
from medfinetune.data.phantom.findings import ATTRIBUTES, PARTS, Findings, report, statement
from medfinetune.data.schema import FEATURES
from medfinetune.errors import InputError, require_folder

LANGUAGES: tuple[Literal["en", "zh"], ...] = ("en", "zh")
_KINDS = ("labels", "reports", "both")
_VALIDATION = 0.05
_PARTIAL = 0.3


def write_reading_chats(
    output_dir: str | Path, num_chats: int = 10_000, seed: int = 0, num_neighbours: int = 3
) -> Path:
    """Writes a data folder of chats that tell evidence of no image, and answer with the report that says the same.

    A decoder that starts from random weights cannot use evidence: it has never learned to read. A checkpoint that was
    trained on texts can, and needs none of this. The findings are drawn evenly and belong to no image, so what is
    learned is reading alone. Where labels are told, the answer states them all, in any wording; where reports are, it
    is the first of them; where both are, they agree.

    Args:
        output_dir: Made where it is missing; gets the parquet and the chats, as `prepare` writes them.
        num_chats: English and Chinese in turn, and of each language labels, reports and both in turn; about one in
            twenty is for validation.
        seed: Of what is drawn.
        num_neighbours: Reports that are told, at most.

    Returns:
        The file of the chats.

    Raises:
        InputError: `output_dir` is a file, or a number is below 1.
    """
    for key, number in (("num_chats", num_chats), ("num_neighbours", num_neighbours)):
        if number < 1:
            raise InputError(f"{key}: must be at least 1")
    folder = Path(output_dir)
    require_folder(folder)
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    rows = datasets.Dataset.from_list([_row(i, num_neighbours, rng) for i in range(num_chats)], features=FEATURES)
    rows.to_parquet(folder / PAIRS_FILE)
    write_chats(folder / PAIRS_FILE, folder / CHATS_FILE)
    return folder / CHATS_FILE


def _row(number: int, num_neighbours: int, rng: np.random.Generator) -> dict[str, Any]:
    """A row of the parquet that came as a chat."""
    language, kind = LANGUAGES[number % 2], _KINDS[number // 2 % 3]
    findings = _random_findings(rng)
    text = report(findings, language, rng)
    others = [report(_random_findings(rng), language, rng) for _ in range(rng.integers(num_neighbours))]
    near = np.sort(rng.uniform(0.5, 1, size=1 + len(others)))[::-1]
    neighbours = [
        Neighbour(f"reading-{number}-{i}", told, float(similarity))
        for i, (told, similarity) in enumerate(zip([text, *others], near, strict=True))
    ]
    # In the order of the generated zero-shot file.
    labels = [_label(attribute, value, rng) for attribute, value in sorted(findings.items())]
    words = evidence_words(Evidence(neighbours, labels), kind, language)
    question = [{"role": "user", "content": [{"type": "text", "text": PROMPTS["report"][language]}]}]
    answer = {"role": "assistant", "content": [{"type": "text", "text": text}]}
    return dict.fromkeys(FEATURES) | {
        "id": f"reading-{language}-{number:06d}",
        "images": [],
        "pixel_sha256": [],
        "text": text,
        "language": language,
        "source": "reading",
        "task": "report",
        "split": "validation" if rng.random() < _VALIDATION else "train",
        "metadata": json.dumps({"messages": [*with_evidence(question, words), answer], "kind": kind}),
    }


def _random_findings(rng: np.random.Generator) -> Findings:
    """Of the whole body or, as with the generated images, of one part of it."""
    parts = list(PARTS) if rng.random() > _PARTIAL else [str(rng.choice(list(PARTS)))]
    return {name: str(rng.choice(ATTRIBUTES[name])) for part in parts for name in PARTS[part]}


def _label(attribute: str, value: str, rng: np.random.Generator) -> LabelEvidence:
    """A finding as the encoder would tell it."""
    others = [other for other in ATTRIBUTES[attribute] if other != value]
    probability = float(rng.uniform(0.5, 1))
    probabilities = {value: probability} | {other: (1 - probability) / len(others) for other in others}
    return LabelEvidence(attribute, probabilities, {lang: statement(attribute, value, lang) for lang in LANGUAGES})
