import pytest

from medfinetune.evaluation.clauses import read_sentences
from medfinetune.evaluation.lexicon import load_lexicon

LEXICON = load_lexicon("chest")


def _parts(text):
    return [
        (sentence.is_question, [clause.text.strip() for clause in sentence.clauses])
        for sentence in read_sentences(text, LEXICON)
    ]


def test_sentences_without_a_finding_are_left_out():
    assert _parts("Portable film. Left effusion, no mass! Thank you.") == [(False, ["left effusion", "no mass"])]


def test_a_decimal_ends_no_sentence():
    assert _parts("A nodule of 1.5 cm. Mass.") == [(False, ["a nodule of 1.5 cm"]), (False, ["mass"])]


@pytest.mark.parametrize(
    ("text", "questions"),
    [
        ("Effusion?", [True]),
        ("Effusion ?", [True]),
        ("Effusion?? Mass.", [True, False]),
        ("右侧气胸？左侧肿块。", [True, False]),
        ("? effusion", [False]),
        ("Opacity ?pneumonia", [False]),
        ("Opacity (? pneumonia)", [False]),
    ],
)
def test_a_question_mark_ends_a_question_or_opens_one(text, questions):
    assert [is_question for is_question, _ in _parts(text)] == questions


def test_the_longer_of_two_nested_phrases_is_meant():
    (sentence,) = read_sentences("Not only effusion, no pleural effusion", LEXICON)
    first, second = sentence.clauses
    assert [mark.cue.kind for mark in first.marks] == ["no_negation", "finding"]
    assert [sentence.text[mark.start : mark.end] for mark in second.of("finding")] == ["pleural effusion"]


@pytest.mark.parametrize(
    ("text", "carried"),
    [
        ("No mass, effusion or nodule", [set(), {"negation_before"}]),
        ("Possible mass, effusion, or nodule", [set(), {"uncertain"}, {"uncertain"}]),
        ("No mass, effusion", [set(), {"negation_before"}]),
        ("No mass, effusion, and nodule", [set(), {"negation_before"}, {"negation_before"}, {"negation_before"}]),
        ("No mass and effusion", [set(), {"negation_before"}]),
        ("No mass, small effusion", [set(), set()]),
        ("No mass, effusion is seen", [set(), set()]),
        ("Mass, effusion", [set(), set()]),
        ("No mass but effusion, or nodule", [set(), set(), set()]),
    ],
)
def test_a_list_carries_over_commas(text, carried):
    (sentence,) = read_sentences(text, LEXICON)
    assert [clause.carried for clause in sentence.clauses] == carried
