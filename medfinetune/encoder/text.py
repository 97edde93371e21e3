"""Rewrites medical text so that SigLIP's tokenizer, which strips ASCII punctuation, loses none of its meaning."""

import re
import string

from medfinetune.data.text import fold_width

_CHINESE = re.compile(r"[\u3400-\u9fff]")

_ENGLISH = {
    "at_most": " at most ",
    "at_least": " at least ",
    "less": " less than ",
    "more": " more than ",
    "about": " about ",
    "plus_minus": " plus or minus ",
    "positive": " positive ",
    "negative": " negative ",
    "marker_positive": r"\1 positive ",
    "marker_negative": r"\1 negative ",
    "possible": " possible ",
    "plus": " plus ",
    "minus": " minus ",
    "equals": " equals ",
    "point": " point ",
    "percent": r"\1 percent ",
    "to": " to ",
    "range": r"\1 to ",
    "by": " by ",
    "slash": " slash ",
    "ratio": " ratio ",
    "power": " to the power of ",
    "and": " and ",
    "number": " number ",
}
_CHINESE_WORDS = {
    "at_most": "不超过",
    "at_least": "不少于",
    "less": "小于",
    "more": "大于",
    "about": "约",
    "plus_minus": "正负",
    "positive": "阳性",
    "negative": "阴性",
    "marker_positive": r"\1阳性",
    "marker_negative": r"\1阴性",
    "possible": "疑似",
    "plus": "加",
    "minus": "负",
    "equals": "等于",
    "point": "点",
    "percent": r"百分之\1",
    "to": "至",
    "range": r"\1至",
    "by": "乘",
    "slash": "斜杠",
    "ratio": "比",
    "power": "的幂",
    "and": "和",
    "number": "第",
}

_ZH = r"\u3400-\u9fff"
_DASH = r"[-−‐‑–—~]"
_NUMBER_AHEAD = r"(?=[-−]?\.?\d)"
_UNIT = (
    r"(?:\s*(?:[mcnμµu]?m|m?[lL]|[mkμµu]?g|HU|Hu|cc|mmHg|kPa|min|[hds]|°)"
    # After a measure word a dash parts two numbers (3月-5月); after these it is a sign (L1值-2.5).
    rf"|\s?(?![值约为是评])[{_ZH}](?:(?![值约为是评])[{_ZH}])?\s?)"
)
_ROMAN = r"(?:X?(?:I{1,3}|IV|VI{0,3}|IX)|X|[Ⅰ-Ⅻ])[A-Ca-c]?"

# What a sign of a result stands behind. A closed list: `CT-`, `IMPRESSION-` and `L4-` say nothing of the kind.
_MARKER = (
    r"(?<![A-Za-z0-9])(?:"
    r"(?!(?:CT|MR|US|KL|SE|IM|TH|NO|FIG|IMG|DAY|RADS)-?\d)"
    r"(?:[A-Z]{2,5}|[Kk]i|[Hh]er|[Bb]cl|[Cc]d|Ig[A-Z]|p)-?\d{1,3}(?:[./]\d{1,2})?[a-z]?|S-?100|PD-?L[12]|"
    r"[A-Za-z]*(?:Ag|Ab|Ig[AEGM])|Rh|[Gg]ram|ER|PR|AR|HIV|HCV|HBV|HAV|HPV|EBV|CMV|HSV|EBER|ALK|EGFR|BRAF|KRAS|"
    r"ANA|ANCA|EMA|SMA|LCA|GFAP|CgA|Syn|Vim|AB|O|"
    r"(?<=type )[AB]|(?<=group )[AB]|(?<=blood )[AB]|(?<=血型)[AB])"
)
_COMPOUND = (
    r"(?:guided|based|weighted|directed|dependent|related|like|mode|assisted|derived|enhanced|enriched|specific|"
    r"induced|mediated|expressing|positive|compatible|operative|contrast|scan|ray)"
)
_AND = r"(?:\s*[,/&]\s*(?:(?:and|or)\s+)?|\s+(?:and|or|to)\s+)"
# `HER2- positive`, `CK7- 12%`: the hyphen joins, or stands for a colon.
_NO_SIGN = rf"-\s*(?:{_COMPOUND}|negative|[阴阳]性|\d)"
_NOT_RESULTS = r"(?:CTA?|CBCT|MR|MRI|MRA|US|EUS|PET|SPECT|DSA|XR|DX|CR|AP|PA|IV|ECG|EKG|EEG|NOTE)"

_OTHER_MARKS = re.escape("".join(set(string.punctuation) - set("'-_")))
_RULES: tuple[tuple[re.Pattern, str], ...] = tuple(
    (re.compile(pattern), words)
    for pattern, words in (
        # A word divided at the end of a line.
        (r"(?<=[A-Za-z0-9])-[^\S\n]*\n\s*(?=[a-z])", "-"),
        # `CT-, MR- or US-guided`: these hyphens wait for the word that comes last.
        (rf"(?<=[A-Z0-9])-(?=(?:{_AND}[A-Za-z]\w*-){{,5}}{_AND}[A-Za-z]\w*-{_COMPOUND}\b)", " "),
        # Dates and times would read as ranges and ratios; titres begin with 1.
        (r"(?<!\d)(\d{4})[-/.](\d{1,2})[-/.](\d{1,2})(?!\d)", r"\1 \2 \3"),
        (r"(?<!\d)(\d{1,2})([-/.])(\d{1,2})\2(\d{4})(?!\d)", r"\1 \3 \4"),
        (r"(?<![\d.-])(\d\d)-(\d\d)-(\d\d)(?![\d-])", r"\1 \2 \3"),
        (r"(?<!\d)((?:19|20)\d\d)-(0[1-9])(?!\d)", r"\1 \2"),
        (r"(?<![\d:.])((?!1:)(?:[01]?\d|2[0-3])|(?<=[午晨晚早])1|(?<=at )1):([0-5]\d)(?![\d:])", r"\1 \2"),
        (r"(?<![\d:.])([01]?\d|2[0-3]):([0-5]\d):([0-5]\d)(?![\d:])", r"\1 \2 \3"),
        (r"<\s*=|≤|⩽", "at_most"),
        (r">\s*=|≥|⩾", "at_least"),
        (r"\+\s*/\s*-|±", "plus_minus"),
        (r"(?<=\S)\s*-+>\s*", "to"),
        (r"<+", "less"),
        (r">+", "more"),
        # Signs that stand for a result: ER+, HER2-, (+), (-).
        (r"\(\s*\+\s*\)|\+ve\b", "positive"),
        (r"\(\s*[-−–—]\s*\)|(?<![a-z])-ve\b", "negative"),
        (
            rf"({_MARKER})(?!{_NO_SIGN})(?:-(?=[\s,;.)/\]、。型]|$|CD\d+[+-])| -(?=\s*(?:[,;)、。]|$)))",
            "marker_negative",
        ),
        (rf"({_MARKER})(?:\+(?![\w+])|\+(?=CD\d|型)| \+(?=\s*(?:[,;)、。]|$)))", "marker_positive"),
        (
            rf"((?<![A-Za-z0-9-])(?!{_NOT_RESULTS}-)[A-Z]{{2,5}})(?!{_NO_SIGN})-(?=[,;.)/、。]|$)",
            "marker_negative",
        ),
        (r"(?<=[A-Za-z])\+(?![\w+])", "positive"),
        (r"(?<![^\s,;.!(])\?(?=\w)", "possible"),
        # Ranges. `L2 -2.5` is a T-score, `L4 -5` a range.
        (r"(?<=[A-Za-z]\d)\s+[-−](?=\d*\.\d)", "minus"),
        (rf"(?<![A-Za-z\d])((?:[CVAP]IN)?{_ROMAN})\s*{_DASH}\s*(?={_ROMAN}(?![A-Za-z\d]))", "range"),
        (rf"(?<=[\d%])\s*{_DASH}\s*{_NUMBER_AHEAD}", "to"),
        (rf"(?<=\d)({_UNIT})\s*{_DASH}\s*{_NUMBER_AHEAD}", "range"),
        (r"[~≈]\s*(?=[-−]?\.?\d)", "about"),
        # Chinese characters are \w, but before a sign they are no part of a number: CT值-50. 腰-5 is a name.
        (r"(?<![A-Za-z0-9)\]颈胸腰骶尾肋图例号表床第期级型段冠])[-−–](?=\.?\d)", "minus"),
        (r"(?<!\d)(\d+(?:\.\d+)?)\s*%", "percent"),
        # Between Chinese words a point may end a sentence; behind these a number is due.
        (r"(?<![\w.])\.(?=\d)|(?<=[约为是近达径长宽厚高深于过至负值加])\.(?=\d)", "0."),
        (r"(?<=\d)\.(?=\d)", "point"),
        (r"(?<=\d)\s*/\s*(?=\d)", "slash"),
        (r"(?<=\d)\s*:\s*(?=\d)", "ratio"),
        (r"(?<=\d)\s*\*\s*(?=\d)", "by"),
        (r"(?<=\d)\s*\^\s*(?=\d)", "power"),
        (r"=+", "equals"),
        (r"\+", "plus"),
        (r"&+", "and"),
        (r"#\s*(?=\d)", "number"),
        # What is left between two words would glue them together; X-ray and patient's stay.
        (rf"(?<=\w)[{_OTHER_MARKS}]+(?=\w)|_|/", " "),
        (r"(?<=[^\W_])['-]+(?=[^\Wa-zA-Z_])|(?<=[^\Wa-zA-Z_])['-]+(?=[^\W_])", " "),
    )
)
_THOUSANDS = re.compile(r"(?<![\d.,])[1-9]\d{0,2}(?:,\d{3})+(?!,?\d)")


def normalize_text(text: str) -> str:
    """Says in words what punctuation says: `<5 mm` becomes `less than 5 mm`, `1.5 cm` becomes `1 point 5 cm`.

    Everything that goes into the encoder passes through this: training texts, indexed reports, prompts and queries. The
    words are Chinese where the text holds Chinese characters, and English otherwise. Applied twice it changes nothing
    more.

    A comma goes out of 12,000 and parts 4,5. Between Chinese words, where `35,120` may be two values (35，120 before
    its comma was folded), only one before a 0 goes: no number of its own begins with it. A `-` behind a known marker,
    or behind capitals before a mark, is a negative result (`CK20-`, `ER-/PR-`); behind a modality it is a hyphen.
    """
    chinese = bool(_CHINESE.search(text))
    words = _CHINESE_WORDS if chinese else _ENGLISH
    before, text = None, fold_width(text)
    # Signs heaped upon signs take more than one round.
    while text != before:
        before = text
        text = _THOUSANDS.sub(lambda match: match[0].replace(",", "" if ",0" in match[0] or not chinese else " "), text)
        for pattern, replacement in _RULES:
            text = pattern.sub(words.get(replacement, replacement), text)
        text = re.sub(r" +(?=[.,;:!?]+(?: |$))", "", " ".join(text.split()))
    return text
