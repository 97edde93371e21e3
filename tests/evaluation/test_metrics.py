import evaluate
import pytest

from medfinetune.errors import InputError
from medfinetune.evaluation.answers import closed_open_accuracy
from medfinetune.evaluation.finding_accuracy import finding_accuracy
from medfinetune.evaluation.finding_metric import FindingF1
from medfinetune.evaluation.lexicon import load_lexicon
from medfinetune.evaluation.metrics import (
    Bleu,
    ChrF,
    ClosedOpenAccuracy,
    ExactMatch,
    FindingAccuracy,
    RougeL,
    TokenF1,
)
from medfinetune.evaluation.text import bleu, chrf, exact_match, rouge_l, token_f1

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
    chosen = slice(1, 2) if language == "zh" else slice(0, 3, 2)
    predictions, references = PREDICTIONS[chosen], REFERENCES[chosen]
    expected = bleu(predictions, references, language)
    assert metric.compute(predictions=predictions, references=references) == expected
    for prediction, reference in zip(predictions, references, strict=True):
        metric.add(prediction=prediction, reference=reference)
    assert metric.compute() == expected


METRICS = [Bleu, ChrF, RougeL, ExactMatch, TokenF1, ClosedOpenAccuracy]


@pytest.mark.parametrize("make", METRICS)
def test_each_says_what_it_is_and_takes(make):
    metric = make()
    assert metric.description.endswith(".")
    assert metric.citation.startswith("@")
    assert metric.citation.count("{") == metric.citation.count("}")
    assert "predictions and references: " in metric.inputs_description
    assert "in [0, 1" in metric.inputs_description
    assert "higher is better" in metric.inputs_description
    assert set(metric.features) == {"predictions", "references"}


def test_the_others_give_what_their_functions_give():
    languages = ["en", "zh", "en"]
    pairs = list(zip(PREDICTIONS, REFERENCES, strict=True))
    given = {"predictions": PREDICTIONS, "references": REFERENCES}
    assert ChrF().compute(**given)["chrf"] == chrf(PREDICTIONS, REFERENCES)["score"]
    assert "nc:6" in ChrF().compute(**given)["chrf_signature"]
    assert RougeL().compute(**given)["rouge_l"] == pytest.approx(sum(rouge_l(*pair) for pair in pairs) / 3)
    rows = [(*pair, language) for pair, language in zip(pairs, languages, strict=True)]
    token = TokenF1().compute(**given, languages=languages)
    assert token["token_f1"] == pytest.approx(sum(token_f1(*row) for row in rows) / 3)
    exact = ExactMatch().compute(predictions=["The lung.", "a"], references=["lung", "b"])
    assert exact == {"exact_match": (exact_match("The lung.", "lung") + 0) / 2} == {"exact_match": 0.5}
    answers = {"predictions": ["Yes", "left"], "references": ["yes", "left lung"]}
    assert ClosedOpenAccuracy().compute(**answers) == closed_open_accuracy(*answers.values())
    as_open = ClosedOpenAccuracy().compute(**answers, answer_types=["open", "open"])
    assert as_open["num_open"] == 2
    assert ClosedOpenAccuracy("zh").compute(predictions=["左肺"], references=["右肺"])["llava_med_open_recall"] == 0.5


def test_they_are_combined():
    both = evaluate.combine([make() for make in METRICS])
    found = both.compute(predictions=REFERENCES[:1], references=REFERENCES[:1], languages=["en"])
    for name in ("score", "chrf", "rouge_l", "exact_match", "token_f1", "lmms_eval_accuracy"):
        assert found[name] == pytest.approx(100.0 if name in ("score", "chrf") else 1.0), name


def test_languages_are_not_mixed():
    given = {"predictions": PREDICTIONS, "references": REFERENCES, "languages": ["en", "zh", "en"]}
    for metric, name in ((Bleu(), "BLEU"), (ChrF(), "chrF")):
        with pytest.raises(InputError, match=f"{name}: texts in en and zh; score each language by itself"):
            metric.compute(**given)
    chinese = Bleu().compute(predictions=PREDICTIONS[1:2], references=REFERENCES[1:2], languages=["zh"])
    assert "tok:zh" in chinese["signature"]
    with pytest.raises(InputError, match="token F1: 1 languages for 3 references"):
        TokenF1().compute(predictions=PREDICTIONS, references=REFERENCES, languages=["en"])
    with pytest.raises(InputError, match="BLEU: reference 2 is in Chinese, not in en; name its language"):
        Bleu().compute(predictions=PREDICTIONS, references=REFERENCES)


def test_one_language_is_that_of_all():
    given = {"predictions": PREDICTIONS[::2], "references": REFERENCES[::2]}
    for metric in (Bleu(), ChrF(), TokenF1(), ExactMatch(), ClosedOpenAccuracy()):
        assert metric.compute(**given, languages="en") == metric.compute(**given, languages=["en", "en"])
    for metric in (FindingAccuracy(), FindingF1()):
        assert list(metric.compute(**given, languages="en")["by_language"]) == ["en"]
        with pytest.raises(InputError, match="1 languages for 2 references"):
            metric.compute(**given, languages=["en"])


def test_answer_types_are_known_in_any_case():
    given = {"predictions": ["yes"], "references": ["Yes"]}
    assert ClosedOpenAccuracy().compute(**given, answer_types=["CLOSED"])["llava_med_closed_accuracy"] == 1.0
    with pytest.raises(InputError, match="answer type 'foo' is neither open nor closed"):
        ClosedOpenAccuracy().compute(**given, answer_types=["foo"])


def test_a_batch_is_added_and_its_languages_are_given_at_the_end():
    metric = FindingF1()
    metric.add_batch(predictions=PREDICTIONS, references=REFERENCES)
    assert list(metric.compute(languages=["en", "zh", "en"])["by_language"]) == ["en", "zh"]
