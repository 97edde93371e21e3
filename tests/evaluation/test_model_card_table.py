import json

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
    names = [cells(line)[0] for line in lines[2:] if line.startswith("|")]
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
    assert "60 held-out cases of 50 patients or, where unknown, images." in lines[-1]
    assert "with shuffled everything" in lines[-1]
    assert "tok:zh" in lines[-1]
    assert model_card_table(result) == table


def test_what_is_not_known_is_said():
    result, _ = score_reports([ReportCase("a", "en", "x y")], {"own": ["x"]}, num_resamples=10)
    table = model_card_table(result)
    assert "| token F1 ↑ | 0.667 | n/a | n/a | n/a | 1 |" in table
    assert "There is no control." in table
    assert model_card_table({"encoder": {}}) == ""
