"""BLEU by sacrebleu, with the tokenisation that each language needs."""

from collections.abc import Sequence
from typing import Any

import sacrebleu.metrics

from medfinetune.errors import InputError


def bleu(predictions: Sequence[str], references: Sequence[str], language: str = "en") -> dict[str, Any]:
    """Corpus BLEU of texts in one language (Papineni et al. 2002; Post 2018, arXiv:1804.08771).

    Args:
        predictions: Texts to judge; each belongs to the reference at its place.
        references: One for each prediction.
        language: `zh...` is cut into characters; any other language by sacrebleu's `13a`.

    Returns:
        `score` in [0, 100], None where there are no texts; sacrebleu's `signature`; `num_texts`.

    Raises:
        InputError: The lists differ in length.
    """
    if len(predictions) != len(references):
        raise InputError(f"BLEU: {len(predictions)} predictions for {len(references)} references")
    # Without the effective order, a corpus of perfect one-word answers scores 0.
    metric = sacrebleu.metrics.BLEU(tokenize="zh" if language.startswith("zh") else "13a", effective_order=True)
    score = metric.corpus_score(list(predictions), [list(references)]).score if references else None
    if score is None:
        return {"score": None, "signature": None, "num_texts": 0}
    return {"score": score, "signature": str(metric.get_signature()), "num_texts": len(references)}


def bleu_by_language(
    predictions: Sequence[str], references: Sequence[str], languages: Sequence[str]
) -> dict[str, dict[str, Any]]:
    """Language -> `bleu` of its texts. Languages are never mixed: their scores are of different tokens."""
    result = {}
    for language in sorted(set(languages)):
        chosen = [i for i, spoken in enumerate(languages) if spoken == language]
        result[language] = bleu([predictions[i] for i in chosen], [references[i] for i in chosen], language)
    return result
