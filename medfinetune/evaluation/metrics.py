"""The scores as metrics of `evaluate`, which work without a network.

They stand in a file of their own: a script in `recipes/` cannot import the package `evaluate`, because Python looks for
it in the script's folder first and finds `recipes/evaluate.py`.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import datasets
import evaluate

from medfinetune.evaluation.finding_accuracy import finding_accuracy
from medfinetune.evaluation.lexicon import load_lexicon
from medfinetune.evaluation.text import bleu

_TEXTS = datasets.Features({"predictions": datasets.Value("string"), "references": datasets.Value("string")})


class FindingAccuracy(evaluate.Metric):
    """`finding_accuracy` as a metric of `evaluate`; works without a network.

    Args:
        lexicon: The name of a lexicon that comes with the library, or a YAML file.
    """

    def __init__(self, lexicon: str | Path = "phantom", **kwargs: Any):
        self.lexicon = load_lexicon(lexicon)
        super().__init__(**{"keep_in_memory": True} | kwargs)

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description="Share of the references' findings (attribute, negation, side, grade) that the predictions "
            "state rightly; one left out counts as wrong.",
            citation="",
            inputs_description="predictions and references: texts, in [0, 1]; languages: optional, one for each text.",
            features=_TEXTS,
        )

    def _compute(
        self, predictions: Sequence[str], references: Sequence[str], languages: Sequence[str] | None = None
    ) -> dict[str, Any]:
        return finding_accuracy(predictions, references, self.lexicon, languages)


class Bleu(evaluate.Metric):
    """`bleu` as a metric of `evaluate`; works without a network, unlike the hub's.

    Args:
        language: Of the texts; decides how they are cut into tokens.
    """

    def __init__(self, language: str = "en", **kwargs: Any):
        self.language = language
        super().__init__(**{"keep_in_memory": True} | kwargs)

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description="Corpus BLEU of texts in one language, by sacrebleu.",
            citation="Post 2018, A Call for Clarity in Reporting BLEU Scores, arXiv:1804.08771",
            inputs_description="predictions and references: texts; score in [0, 100].",
            features=_TEXTS,
        )

    def _compute(self, predictions: Sequence[str], references: Sequence[str]) -> dict[str, Any]:
        return bleu(predictions, references, self.language)
