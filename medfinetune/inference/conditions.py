"""The ways of asking a system about its cases: as it is, and with something taken away, given, or another case's."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from medfinetune.data.evidence import EvidenceKind
from medfinetune.errors import InputError
from medfinetune.evaluation.paired import OWN

Whose = Literal["own", "other", "nobody", "truth"]


@dataclass(frozen=True)
class Condition:
    """One way to ask about every case.

    Attributes:
        image: Whose image the decoder sees; `nobody`'s is black, of the same size.
        evidence: Whose evidence it is told; `truth` is the case's own true report.
        ranked_by: Whose image candidates are held against.
        kind: Which parts of the evidence; the system's where left out.
        num_candidates: The system's where left out.
    """

    image: Whose = "own"
    evidence: Whose = "own"
    ranked_by: Whose = "own"
    kind: EvidenceKind | None = None
    num_candidates: int | None = None

    @property
    def needs_others(self) -> bool:
        """Whether images have to be shuffled among the cases."""
        return "other" in (self.image, self.evidence, self.ranked_by)


CONTROLS = {
    "shuffled_everything": Condition(image="other", evidence="other", ranked_by="other"),
    "shuffled_decoder": Condition(image="other"),
    "blank_image": Condition(image="nobody"),
    "no_evidence": Condition(evidence="nobody", kind="none"),
    "random_evidence": Condition(evidence="other"),
    "true_report_as_evidence": Condition(evidence="truth", kind="reports"),
}
"""Those in which the decoder writes; `report_suite.CONDITIONS` says them in words."""
COPIED, STATED = "nearest_report_copied", "labels_stated"
_OF_EVIDENCE = ("shuffled_decoder", "no_evidence", "random_evidence", "true_report_as_evidence")


def conditions_of(kind: EvidenceKind, variants: Sequence[str] = ()) -> dict[str, Condition]:
    """The system itself, its controls, and variants of it.

    Args:
        kind: Of the system's evidence. Without any, the controls of evidence are left out.
        variants: `labels`, `reports`, `both` (as `evidence_<kind>`), or `reranked_<number of candidates>`.

    Raises:
        InputError: A variant is none of these.
    """
    controls = {name: one for name, one in CONTROLS.items() if kind != "none" or name not in _OF_EVIDENCE}
    found = {OWN: Condition()} | controls
    for variant in variants:
        number = variant.removeprefix("reranked_")
        if variant in ("labels", "reports", "both"):
            found[f"evidence_{variant}"] = Condition(kind=variant)
        elif number != variant and number.isdecimal() and int(number) > 1:
            found[variant] = Condition(num_candidates=int(number))
        else:
            raise InputError(f"variants: {variant!r} is none of labels, reports, both, reranked_8")
    return found
