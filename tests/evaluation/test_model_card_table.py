import json

import pytest

from medfinetune.evaluation.lexicon import load_lexicon
from medfinetune.evaluation.model_card_table import model_card_table
from medfinetune.evaluation.report_cases import ReportCase
from medfinetune.evaluation.report_suite import score_reports
from tests.evaluation.test_report_suite import count, made


def cells(line):
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_each_figure_has_its_interval_and_its_control():
    cases, texts = made()
    result, _ = score_reports(cases, texts, count_findings=count, num_resamples=100)
    table = model_card_table(json.loads(json.dumps({"reports": result})))
    lines = table.splitlines()
    assert cells(lines[0]) == ["figure", "value", "95% interval", "control", "value minus control", "cases"]
    assert lines[1] == "| --- | --- | --- | --- | --- | --- |"
    own, control = (result["conditions"][name] for name in ("own", "shuffled_everything"))
    lost = result["differences"]["shuffled_everything"]["finding_f1"]
    assert cells(lines[2]) == [
        "finding F1 ↑",
        f"{own['finding_f1']:.3f}",
        "{:.3f} to {:.3f}".format(*own["finding_f1_ci"]),
        f"{control['finding_f1']:.3f}",
        "{:+.3f} ({:+.3f} to {:+.3f})".format(lost["difference"], *lost["difference_ci"]),
        str(result["figures"]["finding_f1"]["num_cases"]),
    ]
    names = [cells(line)[0] for line in lines[2 : lines.index("")]]
    assert [name.removesuffix(" ↑") for name in names] == [
        *(
            "finding F1",
            "finding F1, absences left out",
            "BLEU, en",
            "BLEU, zh",
            "chrF, en",
            "chrF, zh",
            "ROUGE-L",
            "token F1",
            "exact match",
        )
    ]
    assert lines[-1].startswith("60 cases, of 50 patients or, where unknown, images. The control")
    assert "bootstrap by patient or image, 100 resamples" in lines[-1]
    assert "held-out" not in table
    assert "with shuffled everything" in lines[-1]
    assert "tok:zh" in lines[-1]
    assert model_card_table(result) == table


def test_what_is_not_known_is_said():
    result, _ = score_reports([ReportCase("a", "en", "x y")], {"own": ["x"]}, num_resamples=10)
    table = model_card_table(result)
    assert "| token F1 ↑ | 0.667 | n/a | n/a | n/a | 1 |" in table
    assert "There is no control." in table
    assert model_card_table({"encoder": {}}) == ""


def test_every_condition_and_every_other_system_has_the_main_figure():
    cases, texts = made()
    others = {"runs/earlier": texts["no_evidence"]}
    given = texts | {"evidence_labels": texts["own"]}
    result, _ = score_reports(cases, given, count_findings=count, compared_with=others, num_resamples=100)
    lines = model_card_table(result).splitlines()
    start = lines.index("") + 1
    rows = [cells(line) for line in lines[start : lines.index("", start)]]
    assert rows[0] == ["finding F1 ↑", "value", "95% interval", "system minus this"]
    assert [row[0] for row in rows[2:]] == [
        "the system: own image, own evidence",
        "shuffled everything (the image of another case from the start: search, labels and decoder see that one)",
        "no evidence (own image, and nothing else)",
        "evidence labels",
        "other system: runs/earlier",
    ]
    own, other = result["conditions"]["own"], result["compared_with"]["runs/earlier"]
    lost = other["differences"]["finding_f1"]
    assert rows[2][1:] == [f"{own['finding_f1']:.3f}", "{:.3f} to {:.3f}".format(*own["finding_f1_ci"]), ""]
    assert rows[-1][1:] == [
        f"{other['figures']['finding_f1']:.3f}",
        "{:.3f} to {:.3f}".format(*other["figures"]["finding_f1_ci"]),
        "{:+.3f} ({:+.3f} to {:+.3f})".format(lost["difference"], *lost["difference_ci"]),
    ]
    without, _ = score_reports(cases, texts, num_resamples=10)
    assert "| token F1 ↑ | value | 95% interval | system minus this |" in model_card_table(without)


def test_the_split_is_named_and_the_one_that_was_trained_on_is_told():
    result, _ = score_reports([ReportCase("a", "en", "x y")], {"own": ["x"]}, num_resamples=10)
    assert "1 cases of the split test, of 1 images." in model_card_table(result | {"split": "test"})
    assert "of the split test," in model_card_table({"split": "test", "reports": result})
    assert "have seen" not in model_card_table({"split": "test", "reports": result})
    assert "The models have seen these cases" in model_card_table({"split": "train", "reports": result})


@pytest.mark.parametrize(("patients", "words"), [("pq", "patients"), ("", "images"), ("p", None)])
def test_what_is_drawn_is_named(patients, words):
    cases = [ReportCase(name, "en", "x y", patient=patients[i : i + 1]) for i, name in enumerate("ab")]
    table = model_card_table(score_reports(cases, {"own": ["x", "x"]}, num_resamples=10)[0])
    assert f"2 cases, of 2 {words or 'patients or, where unknown, images'}. There" in table
    assert f"by {words[:-1] if words else 'patient or image'}, 10" in table


def test_a_lexicon_that_reads_nothing_is_told():
    lexicon = load_lexicon("phantom")
    for reference, sentence in (
        ("x y", "The lexicon phantom reads no finding in these references."),
        ("Left effusion.", "Findings are by the lexicon phantom."),
    ):
        result, _ = score_reports([ReportCase("a", "en", reference)], {"own": ["x"]}, lexicon, num_resamples=10)
        assert sentence in model_card_table(result)
        assert model_card_table(result).count("lexicon") == 1
