"""Which texts are true of which images: more than the pairs themselves, in training as in search."""

import hashlib
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from medfinetune.data.text import siglip_canonical
from medfinetune.encoder.text import normalize_text

Duplicates = Literal["positive", "ignore", "negative"]
COLUMNS = ("pixel_sha256", "text", "label", "patient_id", "source", "task")
"""What `group_ids_of` reads of a row; only `text` must be there."""
_IMAGE, _TEXT, _LABEL, _PATIENT, _TOKENS = range(5)
NUM_GROUPS = 5


def group_ids_of(columns: dict[str, Sequence], input_ids: Tensor | None = None) -> Tensor:
    """Numbers that are equal where rows share an image, a text, a label, a patient or what the model reads.

    Texts are the same where they differ in case and sentence marks only; and what the model reads of them is the same
    where their tokens are, also if they go on differently after the last of them. Labels and patients count within
    their source. A question's label is its answer, which says nothing without the question, so that only its text
    counts.

    Args:
        columns: Of `COLUMNS`, those that there are; `text` must be.
        input_ids: `(N, max_length)`, the texts as the model gets them, cut off and padded.

    Returns:
        `(N, 5)`, int64: image, text, label, patient, tokens; 0 where unknown. The same in every process and every run.
    """
    num_rows = len(columns["text"])
    images, labels, patients, sources, tasks = (
        columns.get(name) or [None] * num_rows for name in ("pixel_sha256", "label", "patient_id", "source", "task")
    )
    rows = []
    for i in range(num_rows):
        label = None if tasks[i] == "question" else labels[i]
        rows.append(
            (
                _number(images[i][0] if images[i] else None),
                _number(siglip_canonical(normalize_text(columns["text"][i]))),
                _number(label, sources[i]),
                _number(patients[i], sources[i]),
                0 if input_ids is None else _number(str(input_ids[i].tolist())),
            )
        )
    return torch.tensor(rows, dtype=torch.int64).reshape(num_rows, NUM_GROUPS)


def right_answers(image_groups: Tensor, text_groups: Tensor, first_text: int = 0, by_label: bool = True) -> Tensor:
    """Which texts are right for which images: a pair's own, and those of pairs with its image, text, tokens or label.

    The one rule for the positives of training and for what search may find.

    Args:
        image_groups: `(B, 5)`, from `group_ids_of`.
        text_groups: `(N, 5)`.
        first_text: Where the images' own pairs begin among the texts.
        by_label: Whether an equal label counts.

    Returns:
        `(B, N)`, bool.
    """
    right = torch.zeros(len(image_groups), len(text_groups), dtype=torch.bool, device=image_groups.device)
    right.diagonal(first_text).fill_(True)
    for column in (_IMAGE, _TEXT, _TOKENS, _LABEL) if by_label else (_IMAGE, _TEXT, _TOKENS):
        right |= _same(image_groups[:, column], text_groups[:, column])
    return right


def labels_from_groups(
    image_groups: Tensor, text_groups: Tensor, first_text: int = 0, duplicates: Duplicates = "positive"
) -> tuple[Tensor, Tensor]:
    """What `sigmoid_loss` takes as `targets` and `weights`.

    A text is true of an image as `right_answers` says. One of the same patient with another finding is neither right
    nor surely wrong, and is ignored. All others are negative.

    Args:
        image_groups: `(B, 5)`, from `group_ids_of`: those of this process's pairs.
        text_groups: `(N, 5)`: those of all processes' pairs.
        first_text: Where this process's own pairs begin among the texts.
        duplicates: `positive` as above; `ignore` leaves out what is true besides the own text; `negative` takes all
            but the own text as wrong, as the paper's loss does.

    Returns:
        `targets` and `weights`, `(B, N)`, float32, 0 or 1.
    """
    own = torch.zeros(len(image_groups), len(text_groups), dtype=torch.bool, device=image_groups.device)
    own.diagonal(first_text).fill_(True)
    if duplicates == "negative":
        return own.float(), torch.ones_like(own, dtype=torch.float32)
    true = right_answers(image_groups, text_groups, first_text)
    ignored = _same(image_groups[:, _PATIENT], text_groups[:, _PATIENT]) & ~true
    if duplicates == "ignore":
        ignored |= true & ~own
        true = own
    return true.float(), (~ignored).float()


def _same(of_images: Tensor, of_texts: Tensor) -> Tensor:
    """Which numbers are equal and known: `(B,)` and `(N,)` to `(B, N)`, bool."""
    return (of_images[:, None] == of_texts).masked_fill_((of_images == 0)[:, None], False)


def _number(value: str | None, within: str | None = "") -> int:
    if value is None or value == "":
        return 0
    digest = hashlib.sha256(f"{within}\0{value}".encode()).digest()
    return int.from_bytes(digest[:8], "little", signed=True) or 1
