"""Finding F1 on real answers, and on pairs of reports that BLEU hardly tells apart."""

from collections import Counter

import pytest
import yaml

from medfinetune.evaluation.findings import read_statements
from medfinetune.evaluation.lexicon import load_lexicon
from tests.benchmarks.slake_findings import (
    PAIRS,
    TRUTH,
    closed_figures,
    pair_figures,
    print_pairs,
    read_pairs,
    score_pair,
    slake_figures,
)
from tests.real_data import REAL_DATA, REPO


def test_pairs_differ_by_one_change():
    pairs = read_pairs()
    assert len({(pair["reference"], pair["prediction"]) for pair in pairs}) == 50
    assert Counter(pair["language"] for pair in pairs) == {"en": 25, "zh": 25}
    assert {pair["kind"] for pair in pairs} == {"no", "side", "grade"}
    assert {pair["lexicon"] for pair in pairs} == {"chest", "knee", "skin", "phantom"}
    for entry in yaml.safe_load(PAIRS.read_text(encoding="utf-8")):
        for change in entry["changes"]:
            assert entry["report"].count(change["old"]) == 1, change


@pytest.mark.parametrize("language", ["en", "zh"])
def test_finding_f1_drops_in_every_pair(language):
    for pair in read_pairs():
        if pair["language"] == language:
            assert score_pair(pair)["finding F1"] < 1.0, pair
            assert score_pair(pair | {"prediction": pair["reference"]})["finding F1"] == 1.0
            statements = read_statements(pair["reference"], load_lexicon(pair["lexicon"]))
            assert len(statements) >= 4, statements


def test_the_docs_show_the_scores_of_the_pairs(capsys):
    print_pairs(pair_figures())
    table = capsys.readouterr().out.strip()
    assert len(table.splitlines()) == 2 + 6
    assert table in (REPO / "docs" / "findings.md").read_text(encoding="utf-8")


def test_a_wrong_reading_counts_as_wrong():
    rows = [
        {"question": "Is it normal?", "answer": "Yes"},
        {"question": "Which organ?", "answer": "Pancreas"},
        {"question": "Which side?", "answer": "Left, right"},
        {"question": "Which one?", "answer": "Gallbladder"},
    ]
    figures = closed_figures(rows, load_lexicon("slake"))
    assert (figures["num_closed"], figures["num_read_alone"], figures["num_right_alone"]) == (4, 3, 1)
    assert figures["num_without_truth"] == 3
    assert figures["unread"] == {"Gallbladder": 1}


def test_no_answer_has_two_meanings():
    answers = [answer for listed in TRUTH.values() for answer in listed]
    assert len(answers) == len(set(answers)) == 88


@pytest.mark.skipif(not (REAL_DATA / "slake").is_dir(), reason="SLAKE is not there (MEDFINETUNE_DATA_DIR)")
def test_real_answers():
    figures = slake_figures()
    for language, num_closed, num_open in (("en", 2781, 4252), ("zh", 2780, 4215)):
        closed, opened = figures[language]["closed"], figures[language]["open"]
        assert (closed["num_closed"], opened["num_open"]) == (num_closed, num_open)
        assert closed["num_without_truth"] == 0
        assert closed["num_right_alone"] == closed["num_right_behind_question"] == num_closed
        assert closed["num_right_for_another_question"] < 0.4 * num_closed
        assert opened["num_read"] > 0.9 * num_open
        # What it cannot read: what organs do, symptoms and treatments.
        assert opened["unread"]["Breathe" if language == "en" else "呼吸"] >= 70
