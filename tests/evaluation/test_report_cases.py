import datasets
import pytest

from medfinetune.errors import InputError
from medfinetune.evaluation.report_cases import ReportCase, report_cases


def test_cases_are_those_of_the_pairs_and_chats(pairs, chats):
    cases = report_cases(pairs, chats)
    assert len(cases) == 40
    assert cases[1] == ReportCase(
        "case-0-zh",
        "zh",
        "第0例,left积液。",
        pixels=("sha0",),
        metadata={"side": "left"},
    )
    assert cases[0].cluster == cases[1].cluster != cases[2].cluster
    assert cases[0].answer_type is None


def test_patients_are_clusters_where_they_are_known():
    one, same = (ReportCase(name, "en", "x", "knee", patient="7", pixels=(name,)) for name in "ab")
    assert one.cluster == same.cluster
    # Two sources may both have a patient 7.
    assert ReportCase("c", "en", "x", "slake", patient="7").cluster != one.cluster
    assert ReportCase("d", "en", "x").cluster != ReportCase("e", "en", "x").cluster


def test_answer_types_are_of_questions():
    closed = ReportCase("a", "en", "Liver", task="question", metadata={"answer_type": "CLOSED"})
    assert closed.answer_type == "closed"
    assert ReportCase("a", "en", "Yes", task="question").answer_type == "closed"
    assert ReportCase("a", "en", "Yes").answer_type is None


def test_what_does_not_fit_is_named(pairs, chats):
    with pytest.raises(InputError, match="not of the same cases"):
        report_cases(pairs, chats.select(range(39)))
    rows = pairs.select(range(1)).to_list()
    for metadata, message in (
        ("{", "pair case-0-en: its metadata are no JSON: "),
        ("[1]", "no JSON object, but '.1.'"),
    ):
        rows[0]["metadata"] = metadata
        broken = datasets.Dataset.from_list(rows, features=pairs.features)
        with pytest.raises(InputError, match=message):
            report_cases(broken, chats.select(range(1)))
