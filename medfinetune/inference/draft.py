"""A report on its way: what is known of a request before anything is written."""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any

from PIL import Image
from torch import Tensor

from medfinetune.data.evidence import Evidence, EvidenceKind, evidence_words, with_evidence
from medfinetune.data.unreadable import UnreadableImage
from medfinetune.evaluation.findings import CONTRADICTORY, read_findings
from medfinetune.evaluation.lexicon import Lexicon
from medfinetune.inference.report import Report, ReportRequest, Unwritten
from medfinetune.inference.rerank import Candidate

_UNLIKE = "this image is unlike all training images: its nearest is less similar than for 99 of 100 validation images"
_CUT = "the prompt was longer than max_length: evidence was cut from its front"


@dataclass
class Draft:
    """A request whose images were seen by the encoder.

    Attributes:
        place: Of the request.
        keys: Hashes of its images' pixels.
        embed: `(D,)`, unit norm, of its first image.
        patient: Whose they are, as in `ReportRequest`.
        opened: Its images, where they are not to be opened again.
        evidence: That is told in the prompt.
        messages: The prompt.
        unlike_training: As in `Report`.
        num_tokens: Of the prompt.
        num_cut: Tokens that `max_length` cost.
    """

    place: int
    keys: list[str]
    embed: Tensor
    patient: Hashable | None
    opened: list[Image.Image] | None
    evidence: Evidence = field(default_factory=Evidence)
    messages: list[dict[str, Any]] = field(default_factory=list)
    unlike_training: bool | None = None
    num_tokens: int = 0
    num_cut: int = 0

    def ask(self, request: ReportRequest, kind: EvidenceKind, task: str, collator: Any) -> None:
        """Makes the prompt, and measures it by the collator that it will go through."""
        words = evidence_words(self.evidence, kind, request.language)
        self.messages = with_evidence(request.messages(task), words)
        encoded = collator.encode({"id": request.id, "messages": self.messages})
        self.num_tokens, self.num_cut = len(encoded.input_ids), encoded.num_cut

    def report(
        self,
        request: ReportRequest,
        candidates: Sequence[Candidate],
        kind: EvidenceKind,
        seconds: float,
        lexicon: Lexicon | None = None,
    ) -> Report:
        """The report, once it is written; with a lexicon, one that contradicts itself is marked."""
        warnings = [_UNLIKE] if self.unlike_training else []
        stated = read_findings(candidates[0].text, lexicon) if lexicon is not None else {}
        twofold = [name.replace("_", " ") for name, value in stated.items() if value == CONTRADICTORY]
        if twofold:
            warnings.append(f"this text contradicts itself: {', '.join(twofold)}")
        if self.num_cut:
            warnings.append(_CUT)
        return Report(
            id=request.id,
            prompt=request.prompt,
            text=candidates[0].text,
            language=request.language,
            images=request.paths,
            evidence=self.evidence,
            evidence_kind=kind,
            candidates=candidates,
            unlike_training=self.unlike_training,
            warnings=warnings,
            seconds=seconds,
        )


def told(evidence: Evidence, kind: EvidenceKind, min_probability: float) -> Evidence:
    """The part of the evidence that goes into the prompt."""
    reports, labels = kind in ("reports", "both"), kind in ("labels", "both")
    probable = tuple(label for label in evidence.labels if label.probability >= min_probability)
    return Evidence(evidence.neighbours if reports else (), probable if labels else ())


def unwritten(request: ReportRequest, error: UnreadableImage) -> Unwritten:
    """Why there is no report."""
    detail = f" ({error.detail})" if error.detail else ""
    return Unwritten(request.id, request.paths, f"does not open as an image: {error.reason}{detail}")
