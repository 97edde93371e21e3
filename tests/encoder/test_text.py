import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medfinetune.data.text import siglip_canonical
from medfinetune.encoder.text import normalize_text


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Nodule <5 mm.", "Nodule less than 5 mm."),
        ("Nodule ＞5 mm", "Nodule more than 5 mm"),
        ("≤5 mm or >= 7 mm", "at most 5 mm or at least 7 mm"),
        ("A mass of 1.5 cm.", "A mass of 1 point 5 cm."),
        ("T-score -2.5", "T-score minus 2 point 5"),
        (".5 cm", "0 point 5 cm"),
        ("3-5 mm, 10%", "3 to 5 mm, 10 percent"),
        ("1,000 cells; levels 4,5", "1000 cells; levels 4 5"),
        ("about 120/80", "about 120 slash 80"),
        ("~5 mm ± 1", "about 5 mm plus or minus 1"),
        ("ER+/PR-, HER2-", "ER positive PR negative, HER2 negative"),
        ("HBsAg (+), HCV (-)", "HBsAg positive, HCV negative"),
        ("pre- and post-operative X-ray", "pre- and post-operative X-ray"),
        ("fracture(left)and/or effusion", "fracture left and or effusion"),
        ("Fracture.No effusion", "Fracture No effusion"),
        ("?fracture of T12-L1", "possible fracture of T12 L1"),
        ("Is it there? Yes", "Is it there? Yes"),
        ("KL=3, 5*3 mm", "KL equals 3, 5 by 3 mm"),
        ("seen on 2020-01-02", "seen on 2020 01 02"),
        ("结节<5mm。", "结节小于5mm。"),
        ("结节≥1.5 cm，约10%", "结节不少于1点5 cm 约百分之10"),
        ("直径3-5mm，抗体(-)", "直径3至5mm 抗体阴性"),
        ("The patient's knee.", "The patient's knee."),
        ("", ""),
    ],
)
def test_signs_become_words(text, expected):
    assert normalize_text(text) == expected


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("<5 mm", ">5 mm"),
        ("<=5 mm", ">=5 mm"),
        ("<5 mm", "<=5 mm"),
        ("1.5 cm", "15 cm"),
        ("-2.5", "2.5"),
        ("1.05 cm", "1.5 cm"),
        ("5-10 mm", "510 mm"),
        ("ER+", "ER-"),
        ("(+)", "(-)"),
        ("1/2", "12"),
        ("10%", "10"),
        ("左-右", "左右"),
        ("结节<5mm", "结节>5mm"),
        ("长1.5厘米", "长15厘米"),
    ],
)
def test_what_siglip_confuses_stays_apart(one, other):
    assert siglip_canonical(one) == siglip_canonical(other) or "." in other or "<=" in other
    assert siglip_canonical(normalize_text(one)) != siglip_canonical(normalize_text(other))


_NUMBERS = st.decimals(-999, 999, allow_nan=False, allow_infinity=False, places=2).map(lambda x: f"{x.normalize():f}")
_SIGNS = st.sampled_from(["", "<", ">", "≤", ">=", "~", "±"])
_LANGUAGES = st.sampled_from(["nodule of {}{} mm", "结节{}{}毫米"])


@given(_LANGUAGES, _SIGNS, _NUMBERS, _SIGNS, _NUMBERS)
@settings(deadline=None, max_examples=400)
def test_no_two_measures_are_confused(sentence, sign, number, other_sign, other_number):
    one, other = (sentence.format(*values) for values in ((sign, number), (other_sign, other_number)))
    if one.replace("-0 ", "0 ") != other.replace("-0 ", "0 "):
        assert siglip_canonical(normalize_text(one)) != siglip_canonical(normalize_text(other))


@given(st.text(alphabet="aB1 20.,-+<>=/()%~?*:'_&#^约节\n≤±A", max_size=14))
@settings(deadline=None, max_examples=1500)
def test_twice_is_once(text):
    once = normalize_text(text)
    assert normalize_text(once) == once


@given(st.text(alphabet="abc ABC.,'", max_size=30))
def test_plain_words_are_not_touched(text):
    letters = "".join(normalize_text(text).split()).translate(str.maketrans("", "", ".,'"))
    assert letters == "".join(text.split()).translate(str.maketrans("", "", ".,'"))
