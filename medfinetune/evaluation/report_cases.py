"""What is known of each case that reports are scored on, besides its pixels."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import datasets

from medfinetune.errors import InputError
from medfinetune.evaluation.answers import AnswerType, answer_type
from medfinetune.evaluation.cases import pixel_keys, references


@dataclass(frozen=True)
class ReportCase:
    """A held-out case and the text that is taken for true.

    Attributes:
        id: Unique among the cases.
        language: Of the reference; BLEU and chrF are told for each language by itself.
        reference: The words that a generated text is held against.
        task: `caption`, `report` or `question`; answers are scored for questions alone.
        patient: Whose image it is; empty where that is not known.
        pixels: What its images are by content; equal for equal pixels.
        metadata: Of the row: `answer_type`, `age`, `sex` and `skin_type` are used where they are there.
    """

    id: str
    language: str
    reference: str
    source: str = ""
    label: str | None = None
    task: str = "report"
    question: str = ""
    patient: str = ""
    pixels: tuple[str, ...] = ()
    metadata: Mapping[str, Any] = field(default_factory=dict)

    @property
    def cluster(self) -> tuple[str, ...]:
        """What intervals draw as one: all cases of a patient where the patient is known, else of an image."""
        return ("patient", self.source, self.patient) if self.patient else ("pixels", *(self.pixels or (self.id,)))

    @property
    def answer_type(self) -> AnswerType | None:
        """None where the case asks no question."""
        return answer_type(self.reference, self.metadata) if self.task == "question" else None


def report_cases(pairs: datasets.Dataset, chats: datasets.Dataset) -> list[ReportCase]:
    """The cases of `load_cases`, in its order.

    Args:
        pairs: The columns of `load_pairs`.
        chats: Of the same ids in the same order; the assistant's last turn is the reference.

    Raises:
        InputError: The ids differ, metadata are no JSON object, or a chat does not end with the assistant's turn.
    """
    names = ("id", "language", "source", "label", "task", "question", "patient_id", "metadata")
    columns = {name: list(pairs[name]) for name in names}
    if columns["id"] != list(chats["id"]):
        raise InputError("pairs and chats are not of the same cases in the same order; load_cases gives both")
    rows = zip(*columns.values(), references(chats), pixel_keys(pairs), strict=True)
    return [
        ReportCase(
            identity,
            language,
            reference,
            source or "",
            label or None,
            task or "report",
            question or "",
            patient or "",
            pixels,
            _metadata(identity, metadata),
        )
        for identity, language, source, label, task, question, patient, metadata, reference, pixels in rows
    ]


def _metadata(identity: str, text: str | None) -> dict[str, Any]:
    try:
        found = json.loads(text or "{}")
    except json.JSONDecodeError as error:
        raise InputError(f"pair {identity}: its metadata are no JSON: {error}") from error
    if not isinstance(found, dict):
        raise InputError(f"pair {identity}: its metadata are no JSON object, but {text[:40]!r}")
    return found
