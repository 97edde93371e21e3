import pytest

from medfinetune.errors import InputError
from medfinetune.evaluation.finding_f1 import finding_f1
from medfinetune.evaluation.finding_metric import FindingF1
from medfinetune.evaluation.lexicon import load_lexicon

PREDICTIONS = ["No left effusion. Heart enlarged.", "左侧锁骨骨折。", "Knee grade 3."]
REFERENCES = ["Left effusion. Cardiomegaly.", "右侧锁骨骨折。", "Kellgren-Lawrence grade 3."]


def test_it_gives_what_the_function_gives():
    languages = ["en", "zh", "en"]
    expected = finding_f1(PREDICTIONS, REFERENCES, load_lexicon("phantom"), languages)
    metric = FindingF1("phantom")
    assert metric.compute(predictions=PREDICTIONS, references=REFERENCES, languages=languages) == expected
    assert expected["finding_f1"] == 2 * 2 / (4 + 4)
    for prediction, reference in zip(PREDICTIONS, REFERENCES, strict=True):
        metric.add(prediction=prediction, reference=reference)
    assert metric.compute()["finding_f1"] == expected["finding_f1"]


def test_an_unknown_lexicon_is_refused():
    with pytest.raises(InputError, match="known: chest, knee, phantom"):
        FindingF1("lungs")
