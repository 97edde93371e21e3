"""What is done to words: folding of width variants, and what SigLIP's tokenizer leaves of a text."""

import re
import string
from typing import Literal

# Full-width forms of ASCII lie at a fixed distance; the others are written for a comma or a space.
_WIDTH = {code: code - 0xFEE0 for code in range(0xFF01, 0xFF5F)} | {
    ord("\u3000"): " ",
    ord("\u00a0"): " ",
    ord("﹐"): ",",
    ord("､"): ",",
}
_INVISIBLE = dict.fromkeys(map(ord, "\ufeff\u200b\u200c\u200d\u2060\u00ad"))
_PUNCTUATION = str.maketrans("", "", string.punctuation)
_COMMA_OF_A_LIST = re.compile(r"(?<=\d)[，﹐､](?=\d)")
_ROMAN = r"(?:x?(?:i{1,3}|iv|vi{0,3}|ix)|x|[ⅰ-ⅻ])[abc]?"
# Where a sign stands like this, it carries meaning: a comparison, an arithmetic sign, a fraction, a decimal point, a
# negative result, a range of grades (I-II is not III). Letters are lower case.
_MEANINGFUL = re.compile(
    r"[<>=%~^*+/]|(?<=[\d%])[.,:\-](?=\d)|(?<![a-z\d.])[.\-](?=\d)|(?<=\w)-(?=\W|$)|"
    rf"(?<![a-z\d])(?:[cvap]in)?{_ROMAN}\s*-(?=\s*{_ROMAN}(?![a-z\d]))"
)


def fold_width(text: str) -> str:
    """Writes full-width letters, digits and signs, and variants of the comma and the space, in ASCII.

    Chinese marks without an ASCII twin (`。` and `、`) stay. A wide comma between digits parts two numbers: it gets a
    space, as 35,120 would be one. This is less than Unicode's NFKC on purpose: NFKC turns 10⁵ into 105 and ½ into 1⁄2.
    """
    return _COMMA_OF_A_LIST.sub(", ", text).translate(_WIDTH)


def tidy(text: str) -> str:
    """Folds width variants, removes invisible marks, and trims spaces; line breaks and all words stay."""
    text = fold_width(text).translate(_INVISIBLE)
    lines = (re.sub(r"[^\S\n]+", " ", line).strip() for line in re.split(r"\r\n|\r|\n", text))
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).strip()


def siglip_canonical(text: str) -> str:
    """What SigLIP's tokenizer sees of a text: lower case, without ASCII punctuation, single spaces.

    Follows `SiglipTokenizer.canonicalize_text`: `<5 mm` and `>5 mm` give the same.
    """
    return " ".join(text.lower().translate(_PUNCTUATION).split())


def meaning(text: str) -> str:
    """A text without case and sentence marks, but with the signs that carry meaning.

    Two texts with one `siglip_canonical` and different `meaning` are confused by the encoder.
    """
    kept, end = [], 0
    text = text.lower()
    for match in _MEANINGFUL.finditer(text):
        kept += [text[end : match.start()].translate(_PUNCTUATION), match[0]]
        end = match.end()
    kept.append(text[end:].translate(_PUNCTUATION))
    return "".join("".join(kept).split())


def language_of(text: str) -> Literal["en", "zh"]:
    """`zh` where a text has a Chinese character, else `en`."""
    return "zh" if any("\u3400" <= character <= "\u9fff" for character in text) else "en"
