import pytest

from medfinetune.data.text import fold_width, language_of, meaning, siglip_canonical, tidy


def test_width_and_comma_variants_are_folded():
    assert fold_width("左肺，右肺﹐心脏､５ｍｍ（ＣＴ）") == "左肺,右肺,心脏,5mm(CT)"
    assert fold_width("10⁵，½、。") == "10⁵,½、。"
    assert fold_width("35，120HU，１２０") == "35, 120HU,120", "two values, not one of thousands"


def test_tidy_keeps_words_and_line_breaks():
    assert tidy(" \ufeffA\u3000 b \r\n\r\n\r\n\r\n c\u200b ") == "A b\n\nc"
    assert tidy("　\u00a0") == ""


def test_siglip_sees_neither_case_nor_ascii_punctuation():
    assert siglip_canonical("Nodule <5 mm, L-side.") == siglip_canonical("nodule >5 mm lside") == "nodule 5 mm lside"
    assert siglip_canonical("无骨折。") == "无骨折。"


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("<5 mm", ">5 mm"),
        ("1.5 cm", "15 cm"),
        ("ER+", "ER-"),
        ("-2", "2"),
        ("1/2", "12"),
        ("5-10", "510"),
        ("-.5", "5"),
        ("grade I-II", "grade III"),
        ("CINI-II", "CINIII"),
        ("T值-25", "T值25"),
        ("50%-70%", "50%70%"),
    ],
)
def test_signs_carry_meaning(one, other):
    assert siglip_canonical(one) == siglip_canonical(other)
    assert meaning(one) != meaning(other)


@pytest.mark.parametrize(
    ("one", "other"),
    [("No fracture.", "no fracture"), ("X-ray, left", "Xray left"), ("A: b", "a b"), ("anti-viral", "antiviral")],
)
def test_sentence_marks_carry_none(one, other):
    assert meaning(one) == meaning(other)


def test_one_chinese_character_makes_it_chinese():
    assert [language_of(text) for text in ("", "No fracture.", "KL分级 2", "élargi")] == ["en", "en", "zh", "en"]
