"""Chooses among several reports of one image: what the encoder finds likest, and what most of them say."""

import math
import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from torch import Tensor

from medfinetune.evaluation.findings import read_findings
from medfinetune.evaluation.lexicon import Lexicon
from medfinetune.inference.embedder import Embedder

_TOKEN = re.compile(r"[㐀-鿿]|[^\W㐀-鿿]+")


@dataclass(frozen=True)
class Candidate:
    """One report that was written of an image.

    Attributes:
        text: Of the first that reads so.
        count: How many of the texts that were drawn read so.
        similarity: Cosine of image and text.
        match_probability: That the text belongs to the image, by the encoder.
        agreement: Mean agreement with the other texts that were drawn, in [0, 1]; 1 where there is no other.
        score: What candidates are ranked by, in [0, 1].
    """

    text: str
    count: int
    similarity: float
    match_probability: float
    agreement: float
    score: float

    def to_dict(self) -> dict[str, Any]:
        """As JSON can hold it."""
        return asdict(self)


def rank_candidates(
    texts: Sequence[str],
    image_embed: Tensor,
    embedder: Embedder,
    weight: float = 0.5,
    lexicon: Lexicon | None = None,
) -> list[Candidate]:
    """Ranks the reports that were written of one image, the best first.

    The score is `(1 - weight) * likeness + weight * agreement`. Likeness is the share that a text has in the softmax of
    `logit_scale * cosine` over the distinct texts: how probable the encoder finds it that this one of them belongs to
    the image. Agreement is a text's mean agreement with the other texts, so that what most say wins (minimum Bayes
    risk; Kumar & Byrne 2004). Texts that differ in case, width, spaces and punctuation alone are one candidate;
    nearly equal ones are not, for a single "no" may part them. Of equal scores the earlier text wins: the
    greedy one stands first.

    Args:
        texts: At least one.
        image_embed: `(D,)`, unit norm.
        embedder: Of the same encoder.
        weight: Of the agreement, in [0, 1].
        lexicon: Agreement is the share of findings that two texts state alike; of words where it is left out, and where
            neither text states a finding.
    """
    groups: dict[tuple[str, ...], list[str]] = {}
    for text in texts:
        groups.setdefault(_tokens(text), []).append(text)
    firsts, counts = [group[0] for group in groups.values()], [len(group) for group in groups.values()]
    cosines = (embedder.texts(firsts) @ image_embed).tolist()
    exponents = [math.exp(embedder.scale * (cosine - max(cosines))) for cosine in cosines]
    findings = [read_findings(text, lexicon) if lexicon is not None else {} for text in firsts]
    tokens, ranked = list(groups), []
    for i, text in enumerate(firsts):
        others = [count - (i == j) for j, count in enumerate(counts)]
        each = [_agreement(tokens[i], tokens[j], findings[i], findings[j]) for j in range(len(firsts))]
        told = sum(n * a for n, a in zip(others, each, strict=True))
        agreement = told / sum(others) if sum(others) else 1.0
        score = (1 - weight) * exponents[i] / sum(exponents) + weight * agreement
        # Rounded: beyond six digits a score depends on the batch.
        figures = (cosines[i], embedder.match_probability(cosines[i]), agreement, score)
        ranked.append(Candidate(text, counts[i], *(round(figure, 6) for figure in figures)))
    return sorted(ranked, key=lambda candidate: -candidate.score)


def token_f1(one: Sequence[str], other: Sequence[str]) -> float:
    """Harmonic mean of the shares of tokens that two texts have in common, in [0, 1]; 1 for two empty ones."""
    if not one and not other:
        return 1.0
    shared = sum((Counter(one) & Counter(other)).values())
    return 2 * shared / (len(one) + len(other))


def _tokens(text: str) -> tuple[str, ...]:
    """Words, and the characters of Chinese, without case, width and punctuation; signs between digits stay."""
    folded = unicodedata.normalize("NFKC", text).casefold()
    return tuple(re.findall(r"\d+(?:[.,:/-]\d+)+|[<>≤≥±+%=-](?=\s*\d)|" + _TOKEN.pattern, folded))


def _agreement(
    one: Sequence[str], other: Sequence[str], findings: dict[str, str], other_findings: dict[str, str]
) -> float:
    names = findings.keys() | other_findings.keys()
    if not names:
        return token_f1(one, other)
    return sum(findings.get(name) == other_findings.get(name) for name in names) / len(names)
