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
    "possible": " possible ",
    "plus": " plus ",
    "minus": " minus ",
    "equals": " equals ",
    "point": " point ",
    "percent": r"\1 percent ",
    "to": " to ",
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
    "possible": "疑似",
    "plus": "加",
    "minus": "负",
    "equals": "等于",
    "point": "点",
    "percent": r"百分之\1",
    "to": "至",
    "by": "乘",
    "slash": "斜杠",
    "ratio": "比",
    "power": "的幂",
    "and": "和",
    "number": "第",
}

_OTHER_MARKS = re.escape("".join(set(string.punctuation) - set("'-_")))
_RULES: tuple[tuple[re.Pattern, str], ...] = tuple(
    (re.compile(pattern), words)
    for pattern, words in (
        # Dates would read as ranges.
        (r"(?<!\d)(\d{4})[-/.](\d{1,2})[-/.](\d{1,2})(?!\d)", r"\1 \2 \3"),
        (r"<\s*=|≤|⩽", "at_most"),
        (r">\s*=|≥|⩾", "at_least"),
        (r"\+\s*/\s*-|±", "plus_minus"),
        (r"(?<=\S)\s*-+>\s*", "to"),
        (r"<+", "less"),
        (r">+", "more"),
        # Signs that stand for a result: ER+, HER2-, (+), (-).
        (r"\(\s*\+\s*\)", "positive"),
        (r"\(\s*[-−]\s*\)", "negative"),
        (r"(?<=[A-Za-z])\+(?![\w+])|(?<=[A-Z]\d)\+(?![\w+])", "positive"),
        (r"(?<=[A-Z]{2})-(?=[\s,;.)/]|$)(?!-?\s+(?:AND|OR|TO|and|or|to)\b)", "negative"),
        (r"(?<=[A-Z]{2}\d)-(?=[\s,;.)/]|$)", "negative"),
        (r"(?<![^\s,;.!(])\?(?=\w)", "possible"),
        (r"(?<=\d)\s*[-–—~～]\s*(?=\d)", "to"),
        (r"[~≈]\s*(?=[-−]?\.?\d)", "about"),
        (r"(?<![\w)\]])[-−](?=\d|\.\d)", "minus"),
        (r"(\d+(?:[.,]\d+)*)\s*%", "percent"),
        # The comma of 1,000 goes; any other between digits parts two numbers.
        (r"(?<=\d),(?=\d{3}(?!\d))", ""),
        (r"(?<![\w.])\.(?=\d)", "0."),
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


def normalize_text(text: str) -> str:
    """Says in words what punctuation says: `<5 mm` becomes `less than 5 mm`, `1.5 cm` becomes `1 point 5 cm`.

    Everything that goes into the encoder passes through this: training texts, indexed reports, prompts and queries. The
    words are Chinese where the text holds Chinese characters, and English otherwise. Applied twice it changes nothing
    more.
    """
    words = _CHINESE_WORDS if _CHINESE.search(text) else _ENGLISH
    before, text = None, fold_width(text)
    # Signs heaped upon signs take more than one round.
    while text != before:
        before = text
        for pattern, replacement in _RULES:
            text = pattern.sub(words.get(replacement, replacement), text)
        text = re.sub(r" +(?=[.,;:!?]+(?: |$))", "", " ".join(text.split()))
    return text
