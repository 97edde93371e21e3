import pytest
import sacrebleu

from medfinetune.errors import InputError
from medfinetune.evaluation.text import (
    answer_tokens,
    bleu,
    bleu_by_language,
    chrf,
    chrf_by_language,
    exact_match,
    rouge_l,
    text_tokens,
    token_f1,
)


def test_perfect_short_answers_score_100():
    assert bleu(["Yes", "No"], ["Yes", "No"])["score"] == pytest.approx(100)
    assert bleu(["是", "未见骨折"], ["是", "未见骨折"], "zh")["score"] == pytest.approx(100)


def test_chinese_is_cut_into_characters():
    score = bleu(["左侧锁骨骨折，右侧正常。"], ["右侧锁骨骨折，左侧正常。"], "zh")
    assert 20 < score["score"] < 90
    assert "tok:zh" in score["signature"]
    assert "tok:13a" in bleu(["a"], ["a"])["signature"]


def test_equals_sacrebleu():
    predictions = ["The cat sat on the mat today.", "No fracture is seen here."]
    references = ["The cat sat on a mat today.", "No fracture is seen there."]
    expected = sacrebleu.corpus_bleu(predictions, [references]).score
    assert bleu(predictions, references)["score"] == pytest.approx(expected)


def test_languages_are_kept_apart():
    predictions, references = ["No fracture.", "骨折", "Left effusion."], ["No fracture.", "骨折", "Right effusion."]
    result = bleu_by_language(predictions, references, ["en", "zh", "en"])
    assert {language: score["num_texts"] for language, score in result.items()} == {"en": 2, "zh": 1}
    assert result["zh"]["score"] == pytest.approx(100)
    assert result["en"]["score"] < 100


def test_no_texts_give_no_score():
    assert bleu([], []) == {"score": None, "signature": None, "num_texts": 0}
    with pytest.raises(InputError, match="1 predictions for 2"):
        bleu(["a"], ["a", "b"])


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        ("No LEFT-sided effusion.", ["no", "left", "sided", "effusion"]),
        ("左肺T2高信号", ["左", "肺", "t2", "高", "信", "号"]),
        ("大小1.5cm，无积液。", ["大", "小", "1.5", "cm", "无", "积", "液"]),
        ("１．５ ＣＭ", ["1.5", "cm"]),  # full width
        ("< 5 mm", ["<", "5", "mm"]),
        ("heart_size (normal)", ["heart", "size", "normal"]),
        ("Sjögren's 3+", ["sjögren", "s", "3"]),
        (" ,. ", []),
    ],
)
def test_tokens(text, tokens):
    assert text_tokens(text) == tokens


def test_numbers_are_not_run_together():
    for one, other in (("1.5 cm", "15 cm"), ("<5 mm", ">5 mm"), ("grade 2", "grade 3")):
        assert exact_match(one, other) == 0.0
        assert token_f1(one, other) < 1.0
    assert exact_match("1.5 cm.", "1.5 cm") == 1.0


def test_chrf_equals_sacrebleu_and_keeps_languages_apart():
    predictions, references = ["No fracture.", "未见骨折"], ["No fractures.", "右侧骨折"]
    result = chrf_by_language(predictions, references, ["en", "zh"])
    for i, language in enumerate(("en", "zh")):
        expected = sacrebleu.corpus_chrf([predictions[i]], [[references[i]]]).score
        assert result[language]["score"] == pytest.approx(expected, abs=1e-9)
        assert result[language]["num_texts"] == 1
    assert "nc:6" in result["en"]["signature"]
    assert "version:" in result["en"]["signature"]
    assert chrf([], [])["score"] is None
    with pytest.raises(InputError, match="chrF: 1 predictions for 2"):
        chrf(["a"], ["a", "b"])


def test_rouge_l_by_hand():
    # Lin 2004, section 3: "police kill the gunman" shares 3 words in order with the reference, "the gunman kill
    # police" 2.
    reference = "police killed the gunman"
    assert rouge_l("police kill the gunman", reference) == pytest.approx(3 / 4)
    assert rouge_l("the gunman kill police", reference) == pytest.approx(2 / 4)
    assert rouge_l("police", reference) == pytest.approx(2 * 1 / 5)  # precision 1, recall 1/4
    assert rouge_l("右肺未见积液", "左肺未见积液") == pytest.approx(5 / 6)
    assert rouge_l("", "a") == rouge_l(".", ".") == 0.0
    assert rouge_l("POLICE KILLED THE GUNMAN!", reference) == 1.0


def test_exact_match_and_token_f1_by_hand():
    assert exact_match("The left lung.", "left lung") == 1.0
    assert exact_match("lung left", "left lung") == 0.0
    assert token_f1("lung left", "left lung") == 1.0
    assert token_f1("the left left lung", "left lung") == pytest.approx(2 * 2 / 5)
    assert exact_match("T1 A", "T1", "zh") == 0.0  # no article there
    assert exact_match("肺。", "肺", "zh") == 1.0
    assert token_f1("右肺", "左肺", "zh") == 0.5
    assert token_f1("", "yes") == 0.0
    assert token_f1("the", "") == 1.0
    assert answer_tokens("A left lung") == ["left", "lung"]


def test_what_these_scores_cannot_see():
    """They are beside finding F1 because a lost "no" costs them almost nothing."""
    reference = "There is no left pleural effusion. The heart is not enlarged. No fracture is seen."
    wrong = reference.replace("no left", "left")
    assert rouge_l(wrong, reference) > 0.9
    assert token_f1(wrong, reference) > 0.9
    assert chrf([wrong], [reference])["score"] > 90
