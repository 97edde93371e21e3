"""How much of a text's wording another one shares: BLEU, chrF, ROUGE-L, exact match and token F1.

None of them knows what a word means: "no effusion" and "effusion" differ by one token. Finding F1 is for that.
"""

import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import sacrebleu.metrics
from rapidfuzz.distance import LCSseq

from medfinetune.errors import InputError

_CHINESE = "々〇㐀-䶿一-鿿豈-﫿\U00020000-\U000323af"
# A decimal is one token, and so is a comparison with a number: else 1.5 cm equals 15 cm, and <5 mm equals >5 mm.
_TOKENS = re.compile(rf"[<>≤≥](?=\s*\d)|\d+(?:\.\d+)+|[{_CHINESE}]|[^\W_{_CHINESE}]+")
_ARTICLES = {"a", "an", "the"}


def text_tokens(text: str) -> list[str]:
    """Lower-cased words and numbers; a Chinese character is a token of its own, also in the midst of other writing.

    Full-width forms count as the plain ones (NFKC). Punctuation is left out, but not the point of a decimal, nor a
    comparison before a number.
    """
    return _TOKENS.findall(unicodedata.normalize("NFKC", text).lower())


def answer_tokens(text: str, language: str = "en") -> list[str]:
    """`text_tokens` without `a`, `an` and `the`, as answers to questions are compared (Rajpurkar et al. 2016).

    In Chinese nothing is left out: an `A` there is a name.
    """
    tokens = text_tokens(text)
    return tokens if _is_chinese(language) else [token for token in tokens if token not in _ARTICLES]


def rouge_l(prediction: str, reference: str) -> float:
    """ROUGE-L of one text: F1 by the longest common subsequence of tokens (Lin 2004), in [0, 1].

    Precision is its length over the prediction's tokens, recall over the reference's; the F measure weighs them alike
    (beta 1). Nothing is stemmed. A text without a token scores 0.
    """
    one, other = text_tokens(prediction), text_tokens(reference)
    common = LCSseq.similarity(one, other)
    return 2 * common / (len(one) + len(other)) if common else 0.0


def exact_match(prediction: str, reference: str, language: str = "en") -> float:
    """1 where both texts have the same `answer_tokens` in the same order, else 0 (Rajpurkar et al. 2016)."""
    return float(answer_tokens(prediction, language) == answer_tokens(reference, language))


def token_f1(prediction: str, reference: str, language: str = "en") -> float:
    """F1 of the two bags of `answer_tokens` (Rajpurkar et al. 2016), in [0, 1].

    Where either text has none, it is 1 if both have none, else 0.
    """
    one, other = answer_tokens(prediction, language), answer_tokens(reference, language)
    if not one or not other:
        return float(one == other)
    common = sum((Counter(one) & Counter(other)).values())
    return 2 * common / (len(one) + len(other))


def languages_of(name: str, languages: str | Sequence[str], num_texts: int) -> list[str]:
    """The language of each text: one given as a string is that of all.

    Raises:
        InputError: There is not one for each text; `name` is the score that wants them.
    """
    spoken = [languages] * num_texts if isinstance(languages, str) else list(languages)
    if len(spoken) != num_texts:
        raise InputError(f"{name}: {len(spoken)} languages for {num_texts} references")
    return spoken


def is_mostly_chinese(text: str) -> bool:
    """Whether more of its `text_tokens` are Chinese characters than words of other writing."""
    tokens = text_tokens(text)
    return 2 * sum(re.fullmatch(f"[{_CHINESE}]", token) is not None for token in tokens) > len(tokens)


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
    return _corpus_score("BLEU", bleu_metric(language), predictions, references)


def chrf(predictions: Sequence[str], references: Sequence[str]) -> dict[str, Any]:
    """Corpus chrF of texts in one language: F2 of character 1- to 6-grams, without spaces (Popovic 2015, W15-3049).

    Args:
        predictions: Texts to judge; each belongs to the reference at its place.
        references: One for each prediction.

    Returns:
        `score` in [0, 100], None where there are no texts; sacrebleu's `signature`; `num_texts`.

    Raises:
        InputError: The lists differ in length.
    """
    return _corpus_score("chrF", chrf_metric(), predictions, references)


def bleu_by_language(
    predictions: Sequence[str], references: Sequence[str], languages: Sequence[str]
) -> dict[str, dict[str, Any]]:
    """Language -> `bleu` of its texts. Languages are never mixed: their scores are of different tokens."""
    return _by_language(bleu, predictions, references, languages)


def chrf_by_language(
    predictions: Sequence[str], references: Sequence[str], languages: Sequence[str]
) -> dict[str, dict[str, Any]]:
    """Language -> `chrf` of its texts: six Chinese characters say more than six letters."""
    return _by_language(lambda one, other, language: chrf(one, other), predictions, references, languages)


def bleu_metric(language: str) -> sacrebleu.metrics.BLEU:
    """sacrebleu's BLEU as `bleu` sets it for a language."""
    # Without the effective order, a corpus of perfect one-word answers scores 0.
    return sacrebleu.metrics.BLEU(tokenize="zh" if _is_chinese(language) else "13a", effective_order=True)


def chrf_metric() -> sacrebleu.metrics.CHRF:
    """sacrebleu's chrF as `chrf` sets it."""
    return sacrebleu.metrics.CHRF()


def _corpus_score(name: str, metric: Any, predictions: Sequence[str], references: Sequence[str]) -> dict[str, Any]:
    if len(predictions) != len(references):
        raise InputError(f"{name}: {len(predictions)} predictions for {len(references)} references")
    if not references:
        return {"score": None, "signature": None, "num_texts": 0}
    score = metric.corpus_score(list(predictions), [list(references)]).score
    return {"score": score, "signature": str(metric.get_signature()), "num_texts": len(references)}


def _by_language(
    score: Callable[[list[str], list[str], str], dict[str, Any]],
    predictions: Sequence[str],
    references: Sequence[str],
    languages: Sequence[str],
) -> dict[str, dict[str, Any]]:
    result = {}
    for language in sorted(set(languages)):
        chosen = [i for i, spoken in enumerate(languages) if spoken == language]
        result[language] = score([predictions[i] for i in chosen], [references[i] for i in chosen], language)
    return result


def _is_chinese(language: str) -> bool:
    return language.startswith("zh")
