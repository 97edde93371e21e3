"""Chats without images whose answers stand in their prompts: what teaches a decoder of random weights to read."""

import json
from pathlib import Path
from typing import Any, Literal

import numpy as np

from medfinetune.data.chat import CHATS_FILE, PROMPTS
from medfinetune.data.evidence import Evidence, LabelEvidence, Neighbour, evidence_words, with_evidence
from medfinetune.data.phantom.findings import ATTRIBUTES, PARTS, Findings, report, statement
from medfinetune.errors import InputError, require_folder

LANGUAGES: tuple[Literal["en", "zh"], ...] = ("en", "zh")
_KINDS = ("labels", "reports", "both")
_VALIDATION = 0.05
_PARTIAL = 0.3


def write_reading_chats(output_dir: str | Path, num_chats: int = 10_000, seed: int = 0, num_neighbours: int = 3) -> Path:
    """Writes `chat_instructions.jsonl`: evidence of no image, and the report that says what it says.

    A decoder that starts from random weights cannot use evidence: it has never learned to read. A checkpoint that was
    trained on texts can, and needs none of this. The findings are drawn evenly and independently of any image, so what
    is learned is reading alone. Where both kinds are told, the labels and the first report agree, the others need not.

    Args:
        output_dir: Made where it is missing; `load_chats` opens it.
        num_chats: English and Chinese in turn, labels, reports and both in turn; every twentieth is for validation.
        seed: Of what is drawn.
        num_neighbours: Reports that are told, at most.

    Returns:
        The file.

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
    path = folder / CHATS_FILE
    unfinished = path.with_name(path.name + ".tmp")
    with unfinished.open("w", encoding="utf-8") as file:
        for number in range(num_chats):
            file.write(json.dumps(_chat(number, num_neighbours, rng), ensure_ascii=False) + "\n")
    unfinished.replace(path)
    return path
