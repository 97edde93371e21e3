"""What the encoder found about an image, as words in the decoder's prompt."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

EvidenceKind = Literal["none", "labels", "reports", "both"]
EVIDENCE_KINDS: tuple[EvidenceKind, ...] = ("none", "labels", "reports", "both")

_HEADS = {
    "reports": {"en": "Reports of similar images:", "zh": "相似图像的报告："},
    "labels": {"en": "Findings that are probable from the image: ", "zh": "根据图像可能的表现："},
}
_STOPS = {"en": ". ", "zh": "；"}
_ENDS = {"en": ".", "zh": "。"}


@dataclass(frozen=True)
class Neighbour:
    """A training report whose image is like the query's.

    Attributes:
        id: Of the training pair.
        text: Its report, in the language of the query where it has one.
        similarity: Cosine of the two images' embeddings.
    """

    id: str
    text: str
    similarity: float


@dataclass(frozen=True)
class LabelEvidence:
    """How probable the values of one label are.

    Attributes:
        task: Its name.
        probabilities: Value -> calibrated probability; they sum to 1.
        statement: Language -> words that state the most probable value.
    """

    task: str
    probabilities: Mapping[str, float]
    statement: Mapping[str, str] = field(default_factory=dict)

    @property
    def best(self) -> str:
        """The most probable value."""
        return max(self.probabilities, key=lambda value: self.probabilities[value])

    @property
    def probability(self) -> float:
        """Of the most probable value, in [0, 1]."""
        return self.probabilities[self.best]

    def stated(self, language: str) -> str:
        """The most probable value, in words, without a full stop."""
        return (self.statement.get(language) or f"{self.task.replace('_', ' ')}: {self.best}").rstrip(".。")

    def words(self, language: str) -> str:
        """The most probable value, in words, with its probability."""
        return f"{self.stated(language)} ({100 * self.probability:.0f}%)"


@dataclass(frozen=True)
class Evidence:
    """What is known of an image besides its pixels.

    Attributes:
        neighbours: Nearest first; empty where none is near enough.
        labels: One for each label that the encoder was asked for.
    """

    neighbours: Sequence[Neighbour] = ()
    labels: Sequence[LabelEvidence] = ()

    def to_dict(self) -> dict[str, Any]:
        """As JSON can hold it."""
        return {
            "neighbours": [asdict(neighbour) for neighbour in self.neighbours],
            "labels": [asdict(label) for label in self.labels],
        }

    @classmethod
    def from_dict(cls, given: Mapping[str, Any]) -> "Evidence":
        """The inverse of `to_dict`."""
        return cls(
            tuple(Neighbour(**item) for item in given.get("neighbours", ())),
            tuple(LabelEvidence(**item) for item in given.get("labels", ())),
        )


def evidence_words(evidence: Evidence, kind: EvidenceKind, language: str, min_probability: float = 0.0) -> str:
    """The text that goes before the question; empty where there is nothing to say.

    Args:
        evidence: Of one image.
        kind: Which parts are told.
        language: Of the words, `en` or `zh`; any other is written as `en`.
        min_probability: Labels whose most probable value is less probable than this are not told, in [0, 1].
    """
    language = language if language in _ENDS else "en"
    parts = []
    if kind in ("reports", "both") and evidence.neighbours:
        reports = [f"{i}. {' '.join(near.text.split())}" for i, near in enumerate(evidence.neighbours, start=1)]
        parts.append("\n".join([_HEADS["reports"][language], *reports]))
    told = [label.words(language) for label in evidence.labels if label.probability >= min_probability]
    if kind in ("labels", "both") and told:
        parts.append(f"{_HEADS['labels'][language]}{_STOPS[language].join(told)}{_ENDS[language]}")
    return "\n".join(parts)


def with_evidence(messages: Sequence[Mapping[str, Any]], words: str) -> list[dict[str, Any]]:
    """A chat with evidence before the words of its last user turn, behind the turn's images.

    Behind the images, so that the text can attend to them under either attention rule; before the question, so that
    a prompt that is too long loses evidence first. Words before an image stay there, evidence or not.

    Args:
        messages: Turns as in `chat_instructions.jsonl`; they are left as they are.
        words: From `evidence_words`; nothing is changed where it is empty.
    """
    turns = [dict(turn) for turn in messages]
    places = [i for i, turn in enumerate(turns) if turn["role"] == "user"]
    if not words or not places:
        return turns
    turn = turns[places[-1]]
    if isinstance(turn["content"], str):
        turn["content"] = f"{words}\n{turn['content']}"
        return turns
    parts = [dict(part) for part in turn["content"]]
    behind = 1 + max((i for i, part in enumerate(parts) if part["type"] == "image"), default=-1)
    first = next((i for i in range(behind, len(parts)) if parts[i]["type"] == "text"), None)
    if first is None:
        parts.append({"type": "text", "text": words})
    else:
        parts[first]["text"] = f"{words}\n{parts[first]['text']}"
    turn["content"] = parts
    return turns
