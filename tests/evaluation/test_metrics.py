import pytest

from medfinetune.evaluation.finding_accuracy import finding_accuracy
from medfinetune.evaluation.lexicon import load_lexicon
from medfinetune.evaluation.metrics import Bleu, FindingAccuracy
from medfinetune.evaluation.text import bleu

PREDICTIONS = ["No left effusion. Heart enlarged.", "左侧锁骨骨折。", "Knee grade 3."]
REFERENCES = ["Left effusion. Cardiomegaly.", "右侧锁骨骨折。", "Kellgren-Lawrence grade 3."]


def test_finding_accuracy_gives_what_the_function_gives():
    languages = ["en", "zh", "en"]
    expected = finding_accuracy(PREDICTIONS, REFERENCES, load_lexicon("phantom"), languages)
    metric = FindingAccuracy("phantom")
    assert metric.compute(predictions=PREDICTIONS, references=REFERENCES, languages=languages) == expected
    assert expected["finding_accuracy"] == 2 / 4
    assert metric.compute(predictions=REFERENCES, references=REFERENCES)["finding_accuracy"] == 1.0


@pytest.mark.parametrize("language", ["en", "zh"])
def test_bleu_gives_what_the_function_gives(language):
    metric = Bleu(language)
    expected = bleu(PREDICTIONS, REFERENCES, language)
    assert metric.compute(predictions=PREDICTIONS, references=REFERENCES) == expected
    for prediction, reference in zip(PREDICTIONS, REFERENCES, strict=True):
        metric.add(prediction=prediction, reference=reference)
    assert metric.compute() == expected
