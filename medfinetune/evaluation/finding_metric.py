"""Finding F1 as a metric of `evaluate`, which works without a network."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import datasets
import evaluate

from medfinetune.evaluation.finding_f1 import finding_f1
from medfinetune.evaluation.lexicon import load_lexicon


class FindingF1(evaluate.Metric):
    """`finding_f1` as a metric of `evaluate`.

    Args:
        lexicon: The name of a lexicon that comes with the library, or a YAML file.
    """

    def __init__(self, lexicon: str | Path = "phantom", **kwargs: Any):
        self.lexicon = load_lexicon(lexicon)
        super().__init__(**{"keep_in_memory": True} | kwargs)

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description="Micro F1 over the statements of both texts: finding, present, absent or uncertain, side and "
            "severity, all of which must agree.",
            citation="A rule-based reading as in Irvin et al. 2019, CheXpert, arXiv:1901.07031, with sides and grades",
            inputs_description="predictions and references: texts; languages: optional, one for each text. finding_f1, "
            "precision and recall lie in [0, 1].",
            features=datasets.Features(
                {"predictions": datasets.Value("string"), "references": datasets.Value("string")}
            ),
        )

    def _compute(
        self, predictions: Sequence[str], references: Sequence[str], languages: str | Sequence[str] | None = None
    ) -> dict[str, Any]:
        return finding_f1(predictions, references, self.lexicon, languages)
