"""What is asked for, and what comes of it: one report of one image or of several."""

import hashlib
import json
import os
from collections.abc import Hashable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from PIL import Image

from medfinetune.data.chat import PROMPTS
from medfinetune.data.evidence import EVIDENCE_KINDS, Evidence, EvidenceKind
from medfinetune.data.images import PART, ImageOptions, open_with_patient, to_rgb
from medfinetune.data.schema import NO_UNICODE
from medfinetune.data.unreadable import UnreadableImage
from medfinetune.errors import InputError
from medfinetune.inference.rerank import Candidate

LANGUAGES = ("en", "zh")
_MAX_SIDE_PX = ImageOptions().max_side_px


@dataclass(frozen=True)
class ReportRequest:
    """One report that is asked for.

    Attributes:
        images: One or several, as paths (with DICOM and `#part=left` as `open_image` takes them) or opened; the first
            is the one that is looked up and that texts are held against.
        language: `en` or `zh`.
        patient: Whose they are, as the data name the patient: an id, or `(source, id)`; None where nobody says.
        prompt: What the user asks, instead of the words of the task.
        id: What messages call it.
        patient_key: Where nobody says whose the images are, the patient of a DICOM header is hashed with it, as
            `prepare` does.
    """

    images: Sequence[str | Path | Image.Image]
    language: str = "en"
    patient: Hashable | None = None
    prompt: str | None = None
    id: str = ""
    patient_key: bytes | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        if not self.images:
            raise InputError(f"report {self.id or '(without id)'}: has no image")
        if self.language not in LANGUAGES:
            raise InputError(f"report {self.id or '(without id)'}: language {self.language!r} is none of en, zh")

    @property
    def paths(self) -> list[str]:
        """Of the images that were given as files."""
        return [str(image) for image in self.images if not isinstance(image, Image.Image)]

    @property
    def digest(self) -> str:
        """Another one where files (by path and size), language, patient or prompt are others; 16 hexadecimal digits."""
        files = []
        for path in self.paths:
            file = Path(path.partition(PART)[0])
            files.append([os.path.abspath(path), file.stat().st_size if file.is_file() else None])
        patients = sorted(map(str, self.patient)) if isinstance(self.patient, frozenset) else [str(self.patient)]
        asked = json.dumps([files, self.language, patients, self.prompt])
        return hashlib.sha256(asked.encode()).hexdigest()[:16]

    def open(self) -> tuple[list[Image.Image], list[str], Hashable | None]:
        """Its images in RGB, at most as large as `prepare` stores them, the hashes of their pixels, and its patient.

        Raises:
            UnreadableImage: One of them does not open, or its name is no Unicode.
        """
        if not all(map(is_unicode, self.paths)):
            raise UnreadableImage(NO_UNICODE)
        opened, keys, patients = [], [], set()
        options = ImageOptions(patient_key=self.patient_key)
        for given in self.images:
            if isinstance(given, Image.Image):
                image, patient = to_rgb(given), ""
            else:
                image, patient = open_with_patient(given, options)
            patients |= {patient} - {""}
            digest = hashlib.sha256(f"{image.width}x{image.height}".encode())
            digest.update(image.tobytes())
            keys.append(digest.hexdigest())
            image.thumbnail((_MAX_SIDE_PX, _MAX_SIDE_PX), Image.Resampling.LANCZOS)
            opened.append(image)
        return opened, keys, self.patient or frozenset(patients) or None

    def messages(self, task: str) -> list[dict[str, Any]]:
        """The chat that asks for it."""
        asked = self.prompt or PROMPTS[task][self.language]
        marks = [{"type": "image"} for _ in self.images]
        return [{"role": "user", "content": [*marks, {"type": "text", "text": asked}]}]


def requests_of(
    images: Any,
    languages: str | Sequence[str] = "en",
    patients: Sequence[Hashable | None] | None = None,
    prompts: str | Sequence[str | None] | None = None,
) -> list[ReportRequest]:
    """A request for each image; arguments are those of `ReportPipeline`.

    Raises:
        InputError: There are more or fewer languages, patients or prompts than images.
    """
    given = [images] if isinstance(images, str | Path | Image.Image) else list(images)
    num = len(given)
    spoken = [languages] * num if isinstance(languages, str) else list(languages)
    asked = [prompts] * num if prompts is None or isinstance(prompts, str) else list(prompts)
    owners = list(patients) if patients is not None else [None] * num
    for name, column in (("languages", spoken), ("patients", owners), ("prompts", asked)):
        if len(column) != num:
            raise InputError(f"{name}: {len(column)} were given for {num} images")
    return [
        ReportRequest([image] if isinstance(image, str | Path | Image.Image) else image, *rest, str(number))
        for number, (image, *rest) in enumerate(zip(given, spoken, owners, asked, strict=True))
    ]


def is_unicode(text: str) -> bool:
    """Whether a text can be written as UTF-8: a file name of other bytes cannot."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


@dataclass(frozen=True)
class WritingOptions:
    """How reports are written.

    Attributes:
        evidence: What goes into the prompt. Left out, `none` without an index; with one what the decoder was trained
            with, or `both` where nobody says.
        task: Whose words ask for the text.
        num_candidates: Texts written of an image: the greedy one, and so many less one that are drawn.
        temperature: Of the draws.
        top_p: Share of the probability that draws are made from.
        rerank_weight: Of the candidates' agreement, beside the encoder's similarity, in [0, 1].
        min_probability: Labels less probable than this are not told.
        max_new_tokens: Tokens of a text at most.
        max_length: Tokens of a prompt at most; a longer one loses evidence from its front.
        batch_size: Texts that are written at once.
        seed: Of the draws, beside the image itself: an image gives the same texts in any batch and in any run,
            in float32; in half precision a batch of another size may round a close choice the other way.
        date_string: As in training.
    """

    evidence: EvidenceKind | None = None
    task: Literal["report", "caption"] = "report"
    num_candidates: int = 1
    temperature: float = 1.0
    top_p: float = 0.95
    rerank_weight: float = 0.5
    min_probability: float = 0.0
    max_new_tokens: int = 256
    max_length: int = 2048
    batch_size: int = 8
    seed: int = 0
    date_string: str = "26 Jul 2024"

    def __post_init__(self) -> None:
        if self.evidence is not None and self.evidence not in EVIDENCE_KINDS:
            raise InputError(f"evidence: {self.evidence!r} is none of {', '.join(EVIDENCE_KINDS)}")
        if self.task not in PROMPTS:
            raise InputError(f"task: {self.task!r} is none of {', '.join(PROMPTS)}")
        for name in ("num_candidates", "max_new_tokens", "max_length", "batch_size"):
            if getattr(self, name) < 1:
                raise InputError(f"{name}: must be at least 1")
        for name in ("rerank_weight", "min_probability"):
            if not 0 <= getattr(self, name) <= 1:
                raise InputError(f"{name}: must be in [0, 1]")
        if self.temperature <= 0:
            raise InputError("temperature: must be above 0")
        if not 0 < self.top_p <= 1:
            raise InputError("top_p: must be above 0 and at most 1")

    def seeds(self, key: str) -> list[int | None]:
        """For the candidates of one image: None for the greedy one, then a seed for each draw."""
        drawn = (f"{self.seed}\0{key}\0{number}" for number in range(1, self.num_candidates))
        return [None, *(int.from_bytes(hashlib.sha256(name.encode()).digest()[:7]) for name in drawn)]


@dataclass(frozen=True)
class Report:
    """One report with what it rests on.

    Attributes:
        id: Of the request.
        text: The best candidate's.
        language: Of the request.
        images: Paths of the images that were given as files.
        evidence: What was told in the prompt.
        evidence_kind: Which parts of it.
        candidates: Best first; one where nothing was drawn.
        unlike_training: The nearest training image is less similar than for 99 of 100 validation images; None where
            there is no index that knows.
        warnings: What a reader should know, in English.
        seconds: Its share of the time that its batches took.
        prompt: What was asked instead of the task's words.
    """

    id: str
    text: str
    language: str
    images: list[str]
    evidence: Evidence
    evidence_kind: EvidenceKind
    candidates: Sequence[Candidate]
    unlike_training: bool | None = None
    warnings: list[str] = field(default_factory=list)
    seconds: float = 0.0
    prompt: str | None = None

    @property
    def similarity(self) -> float:
        """Cosine of the first image and the text."""
        return self.candidates[0].similarity

    @property
    def match_probability(self) -> float:
        """That the text belongs to the image, by the encoder."""
        return self.candidates[0].match_probability

    def to_dict(self) -> dict[str, Any]:
        """As JSON can hold it."""
        told = {name: getattr(self, name) for name in ("id", "text", "language", "images", "prompt", "evidence_kind")}
        return told | {
            "similarity": self.similarity,
            "match_probability": self.match_probability,
            "unlike_training": self.unlike_training,
            "warnings": list(self.warnings),
            "evidence": self.evidence.to_dict(),
            "candidates": [asdict(candidate) for candidate in self.candidates],
            "seconds": round(self.seconds, 4),
        }

    @classmethod
    def from_dict(cls, given: dict[str, Any]) -> "Report":
        """The inverse of `to_dict`."""
        named = (
            "id",
            "text",
            "language",
            "images",
            "evidence_kind",
            "unlike_training",
            "warnings",
            "seconds",
            "prompt",
        )
        return cls(
            evidence=Evidence.from_dict(given["evidence"]),
            candidates=[Candidate(**candidate) for candidate in given["candidates"]],
            **{name: given[name] for name in named},
        )


@dataclass(frozen=True)
class Unwritten:
    """A report that could not be written.

    Attributes:
        id: Of the request.
        images: Paths of the images.
        reason: Why.
    """

    id: str
    images: list[str]
    reason: str

    def to_dict(self) -> dict[str, Any]:
        """As JSON can hold it."""
        return asdict(self)
