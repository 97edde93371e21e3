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
        ("stenosis of 50%-70%", "stenosis of 50 percent to 70 percent"),
        ("狭窄50%-70%", "狭窄百分之50至百分之70"),
        ("狭窄50%～70%", "狭窄百分之50至百分之70"),
        ("50% — 70%", "50 percent to 70 percent"),
        ("5−10, 5‐10, 5‑10 mm", "5 to 10, 5 to 10, 5 to 10 mm"),
        ("5mm-10mm, 5cm～10cm", "5mm to 10mm, 5cm to 10cm"),
        ("3月-5月，-50HU~-20HU", "3月至5月 负50HU至负20HU"),
        ("5--3", "5 to minus 3"),
        ("T值-2.5", "T值负2点5"),
        ("CT值-50HU", "CT值负50HU"),
        ("CT值约-50HU", "CT值约负50HU"),
        ("L2 -2.5, L4-5, L4 -5", "L2 minus 2 point 5, L4 to 5, L4 to 5"),
        ("腰-5椎体", "腰 5椎体"),
        ("约.5cm", "约0点5cm"),
        ("结节<.5cm", "结节小于0点5cm"),
        ("无异常.2个月后", "无异常 2个月后"),
        ("CT值分别为35，120HU", "CT值分别为35, 120HU"),
        ("CT值分别为35,120HU", "CT值分别为35 120HU"),
        ("白细胞12,000", "白细胞12000"),
        ("35，120 and 1,234,567 and 1,2,345", "35, 120 and 1234567 and 1 2 345"),
        ("grade I-II, IIIA–IV", "grade I to II, IIIA to IV"),
        ("CINII-III，Ⅰ-Ⅱ级", "CINII至III Ⅰ至Ⅱ级"),
        ("CK7+/CK20-", "CK7 positive CK20 negative"),
        ("CD117-, CD34+, TTF-1-", "CD117 negative, CD34 positive, TTF 1 negative"),
        ("S100-, Ki67-; p16-", "S100 negative, Ki67 negative; p16 negative"),
        ("PD-L1-, PD-L1+", "PD-L1 negative, PD-L1 positive"),
        ("HBsAg-，Rh-。", "HBsAg negative ,Rh negative 。"),
        ("CK7+、CK20-，乳腺", "CK7阳性、CK20阴性 乳腺"),
        ("Gram- rods, O- blood", "Gram negative rods, O negative blood"),
        ("CD34+CD38- cells", "CD34 positive CD38 negative cells"),
        ("ER- and PR-", "ER negative and PR negative"),
        ("HER2 -, ER +", "HER2 negative, ER positive"),
        ("HIV -ve, Gram +ve", "HIV negative, Gram positive"),
        ("ER-, PR- and HER2-positive", "ER, PR and HER2 positive"),
        ("HER2- positive", "HER2- positive"),
        ("HER2-\nenriched", "HER2 enriched"),
        ("IMPRESSION- No acute finding", "IMPRESSION- No acute finding"),
        ("PSA- 4.5", "PSA- 4 point 5"),
        ("CT-, MR- or US-guided", "CT, MR or US-guided"),
        ("MRI-/CT-guided", "MRI CT-guided"),
        ("MRI-\nguided", "MRI-guided"),
        ("T1-, T2-weighted", "T1, T2 weighted"),
        ("L4-, COVID-19 follow-up", "L4-, COVID 19 follow-up"),
        ("i-v line, anti-viral", "i-v line, anti-viral"),
        ("05-12-2023, 5/12/2023, 20.5.2023", "05 12 2023, 5 12 2023, 20 5 2023"),
        ("05-12-23, 2020-01", "05 12 23, 2020 01"),
        ("at 10:30", "at 10 30"),
        ("10:30复查，下午1:30", "10 30复查 下午1 30"),
        ("1:160", "1 ratio 160"),
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
        ("grade I-II", "grade III"),
        ("T值-2.5", "T值2.5"),
        ("CK20-", "CK20"),
        ("50%-70%", "5070%"),
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


_PIECES = [
    *("CK7", "CD117", "S100", "Ki-67", "PD-L1", "HBsAg", "Rh", "O", "ER", "IMPRESSION", "CT", "MR", "L4", "T1", "CIN"),
    *("guided", "weighted", "positive", "and", "or", "ve", "mm", "HU", "I", "II", "IV", "Ⅱ"),
    *("T值", "CT值", "约", "月", "腰", "血型", "5", "10", "000", "120", "2023", "05"),
    *"---+~～−‐—%.,，、。:/()",
]


@given(st.lists(st.sampled_from([*_PIECES, " ", " ", "\n"]), max_size=12).map("".join))
@settings(deadline=None, max_examples=1500)
def test_twice_is_once_for_medical_words(text):
    once = normalize_text(text)
    assert normalize_text(once) == once


@given(st.sampled_from(["of {}{}{}", "约{}{}{}"]), st.integers(1, 99), st.sampled_from("-−‐‑–—~～"), st.integers(1, 99))
@settings(deadline=None)
def test_a_range_keeps_its_ends(sentence, low, dash, high):
    for unit in ("", "%", "mm", " mm"):
        said = normalize_text(sentence.format(f"{low}{unit}", dash, f"{high}{unit}"))
        assert ("至" if "约" in sentence else " to ") in said
        assert not {"minus", "负", "about", "negative"} & set(said.split())


@given(st.text(alphabet="abc ABC.,'", max_size=30))
def test_plain_words_are_not_touched(text):
    letters = "".join(normalize_text(text).split()).translate(str.maketrans("", "", ".,'"))
    assert letters == "".join(text.split()).translate(str.maketrans("", "", ".,'"))
