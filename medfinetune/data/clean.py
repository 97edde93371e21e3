"""What is done to every record before and after its images are opened: a record in, a record or a reason out."""

import dataclasses
import json
import re
from collections.abc import Collection, Sequence

from medfinetune.data.image_store import Outcome
from medfinetune.data.images import hash_patient
from medfinetune.data.schema import EMPTY_QUESTION, EMPTY_TEXT, NO_UNICODE, Dropped, Pair, Record
from medfinetune.data.text import tidy
from medfinetune.data.unreadable import UnreadableImage

NO_LICENSE = "none"
"""How `allow_licenses` names a record without a licence."""


def clean(
    item: Record | Dropped, allow_licenses: Collection[str] | None = None, patient_key: bytes | None = None
) -> Record | Dropped:
    """Tidies a record's words, checks its licence, and hashes the patient's id of the user's own reports.

    Args:
        item: As a source gave it.
        allow_licenses: Licences that are kept, however their letters, spaces and hyphens are written; all where left
            out.
        patient_key: Key of the hash; ids stay as they are where left out.
    """
    # File names in another encoding and broken JSON hold halves of characters, which no file of ours can hold.
    if isinstance(item, Dropped):
        return Dropped(item.source, _legible(item.where), item.reason, _legible(item.detail))
    record = item
    said = json.dumps(dataclasses.asdict(record), ensure_ascii=False)
    if _legible(said) != said:
        first = next((path for path in record.images if _legible(path) != path), record.text)
        return Dropped(record.source, _legible(record.where), NO_UNICODE, _legible(first)[:300])
    text, question, answer, label = (
        None if value is None else tidy(value) for value in (record.text, record.question, record.answer, record.label)
    )
    if record.task == "question" and not (question and answer):
        return Dropped(record.source, record.where, EMPTY_QUESTION)
    if not text:
        return Dropped(record.source, record.where, EMPTY_TEXT)
    if allow_licenses is not None:
        license = record.license or NO_LICENSE
        if _spelling(license) not in map(_spelling, allow_licenses):
            return Dropped(record.source, record.where, "license is not among `allow_licenses`", license)
    # Two spellings of an id would be two patients, on two sides of a split.
    patient_id = tidy(record.patient_id or "") or None
    if patient_id and patient_key and record.source == "reports":
        patient_id = hash_patient(patient_id, patient_key)
    return dataclasses.replace(
        record, text=text, question=question, answer=answer, label=label or None, patient_id=patient_id
    )


def _legible(text: str) -> str:
    return text.encode("utf-8", "backslashreplace").decode()


def _spelling(license: str) -> str:
    return re.sub(r"[\s_-]+", "", license).lower()


def with_images(record: Record, outcomes: Sequence[Outcome]) -> Pair | Dropped:
    """Puts a record's images beside it, and what a DICOM header tells into it where the source says nothing.

    Args:
        record: The record.
        outcomes: What became of each of `record.images`.
    """
    images = []
    for path, outcome in zip(record.images, outcomes, strict=True):
        if isinstance(outcome, UnreadableImage):
            detail = f"{path} {outcome.detail}".strip()
            return Dropped(record.source, record.where, f"unreadable image: {outcome.reason}", detail)
        images.append(outcome)
    metadata = dict(record.metadata)
    for image in images:
        metadata = image.tags | metadata
    patient = next((image.patient for image in images if image.patient), None)
    return Pair(dataclasses.replace(record, metadata=metadata, patient_id=record.patient_id or patient), images)
