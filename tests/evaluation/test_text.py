import pytest
import sacrebleu

from medfinetune.errors import InputError
from medfinetune.evaluation.text import bleu, bleu_by_language


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
