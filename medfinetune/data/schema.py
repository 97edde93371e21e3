"""What one record is on its way from a raw folder to a row of `all_med_pairs.parquet`."""

from dataclasses import dataclass, field
from typing import Any, Literal

import datasets

from medfinetune.data.images import StoredImage

Split = Literal["train", "validation", "test"]
Task = Literal["caption", "report", "question"]
SPLITS: tuple[Split, ...] = ("train", "validation", "test")
SOURCES = ("knee", "chen", "pad_ufes", "slake", "reports")
"""In the order in which they are read, counted and written."""

# Reasons that more than one source gives.
MISSING_IMAGE = "image file is missing"
OTHER_LANGUAGE = "language is not among `languages`"
EMPTY_QUESTION = "question or answer is empty"
EMPTY_TEXT = "text is empty"
DUPLICATE = "duplicate"
NO_UNICODE = "file name or text is not Unicode"

FEATURES = datasets.Features(
    {
        "id": datasets.Value("string"),
        "images": datasets.List(datasets.Value("string")),
        "pixel_sha256": datasets.List(datasets.Value("string")),
        "text": datasets.Value("string"),
        "language": datasets.Value("string"),
        "source": datasets.Value("string"),
        "task": datasets.Value("string"),
        "question": datasets.Value("string"),
        "answer": datasets.Value("string"),
        "label": datasets.Value("string"),
        "patient_id": datasets.Value("string"),
        "group_id": datasets.Value("string"),
        "split": datasets.Value("string"),
        "license": datasets.Value("string"),
        "metadata": datasets.Value("string"),
    }
)
"""The columns of the parquet. `images` are paths relative to the output folder, `pixel_sha256` stands beside
them one for one, `metadata` is a JSON object (its keys differ from source to source)."""


@dataclass(slots=True)
class Record:
    """One image-text pair as a source found it, before its images were opened.

    Attributes:
        id: Unique within the whole output, e.g. `slake-zh-9834`; the same at every run.
        where: The file and row it came from, for messages.
        images: Paths of the image files; see `open_image` for halves.
        text: What the encoder learns: a caption or a report; for a question, question and answer.
        group_keys: Keys that tie records to one side of a split (`study:12`); patient and pixels are added later.
        split: A published split that is to be honoured; None where the split is ours to draw.
    """

    id: str
    source: str
    where: str
    images: list[str]
    text: str
    language: str
    task: Task
    question: str | None = None
    answer: str | None = None
    label: str | None = None
    patient_id: str | None = None
    group_keys: list[str] = field(default_factory=list)
    split: Split | None = None
    license: str | None = None
    metadata: dict[str, Any] = field(default_factory=dict)


@dataclass(slots=True)
class Dropped:
    """One record that came in and is not kept.

    Attributes:
        where: The file and row it came from.
        reason: A short phrase, the same for all records dropped for the same cause: it is counted.
        detail: What is particular to this one.
    """

    source: str
    where: str
    reason: str
    detail: str = ""


@dataclass(slots=True)
class Pair:
    """A record whose images were opened and stored, one `StoredImage` for each of `record.images`."""

    record: Record
    images: list[StoredImage]

    @property
    def pixels(self) -> tuple[str, ...]:
        """What identifies the images, whatever their files are called and however they were compressed."""
        return tuple(image.sha256 for image in self.images)

    @property
    def links(self) -> list[str]:
        """Everything that ties the pair to others: its keys, its patient, and its images by their pixels."""
        record = self.record
        patient = [f"patient:{record.source}:{record.patient_id}"] if record.patient_id else []
        headers = [f"patient:dicom:{image.patient}" for image in self.images if image.patient]
        return list(dict.fromkeys([*record.group_keys, *patient, *headers, *(f"pixels:{p}" for p in self.pixels)]))

    def absorb(self, other: "Pair") -> None:
        """Takes over what ties a dropped duplicate to a split, so that dropping it opens no leak."""
        self.record.group_keys = list(dict.fromkeys([*self.record.group_keys, *other.links]))
        splits = [split for split in (self.record.split, other.record.split) if split is not None]
        self.record.split = max(splits, key=SPLITS.index, default=None)

    def drop(self, reason: str, detail: str = "") -> Dropped:
        """The same record, dropped."""
        return Dropped(self.record.source, self.record.where, reason, detail)
