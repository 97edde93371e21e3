"""Left and right in a text, swapped as its image is mirrored; or not at all, where that would make it untrue."""

import re

_SWAP = {"left": "right", "right": "left", "左": "右", "右": "左"}
_SIDE = re.compile(r"(?<![A-Za-z])(left|right)(?=(?:wards?|most|sided|ward)?(?![A-Za-z]))|[左右]", re.IGNORECASE)
# A side word, and what is not in the middle of the body: mirrored, it would be a rare malformation, or another part.
_LOPSIDED = re.compile(
    r"\b(?:heart|cardi|ventric|atri(?:um|a\b|al)|aort|mitral|tricuspid|caval?\b|vena|stomach|gastr|splen|spleen|liver"
    r"|hepat|gallbladder|biliary|pancrea|append|c[ae]+cum|colon|colic|sigmoid|lobe|lobar|lingula|fissure|hemidiaphragm"
    r"|azygos|thoracic duct|recurrent laryngeal|pulmonary art)"
    r"|心|(?<!乳)房|室|主动脉|腔静脉|胃|脾|肝|胆|胰|阑尾|盲肠|结肠|叶|舌段|膈",
    re.IGNORECASE,
)
_NEVER = (
    # The image itself says how its sides lie.
    r"\bsitus\b|\binver(?:sus|sion of)\b|dextro|l[a]?evo|heterotax|isomerism|right[- ]sided (?:aort|heart|stomach)"
    r"|内脏反位|内脏转位|镜[面像]|右位|左位|[左右]旋|异构",
    # A direction, a hand, a marker, a word with another meaning.
    r"(?:left|right)[- ]+(?:to|and|or|/|vs\.?)[- ]+(?:left|right)|(?:left|right)[- ]?hand(?:ed|er)|axis|rotat|mirror"
    r"|marker|flip|shunt",
    r"\bright[- ]+(?:angle|away|after|before|now|then)|\bat right\b|\ball right\b|\b(?:is|was|be|are|were|has|have|had"
    r"|been|he|she|it|they|patient|who|not)\s+left\s+(?!-?(?:sided|lower|upper|mid|knee|lung|arm|leg|hip|eye|breast))"
    r"|\bleft\s+(?:in|the|a|an|alone|untreated|over|behind|open|out|off|by|hospital|against|without)\b|\brights\b",
    r"[左右]向[左右]|左氧|左甲|[左右]撇|[左右]利手|标[记志]|座右",
)
_UNSAFE = re.compile("|".join(_NEVER), re.IGNORECASE)
# Letters for sides, eyes, breast views and lobes: R, OS, RMLO, LLL. L4 is a vertebra and stays.
_LETTERS = re.compile(
    r"(?<![A-Za-z0-9])(?:[LR](?![A-Za-z0-9'])|[LR]t\b\.?|O[DS]\b|[LR](?:CC|MLO|ML|LM)\b|[RL][UML]L\b|[LR](?:LQ|UQ)\b"
    r"|[LR][AV]O?\b|[LR]VEF\b)"
)


def swap_sides(text: str) -> str | None:
    """The text of the mirrored image.

    Args:
        text: In English or Chinese.

    Returns:
        The text with left and right, 左 and 右 exchanged; unchanged where it names no side (左右, about, is none); and
        None where the mirrored image has no true text that can be made so: a shunt from left to right, situs and
        dextrocardia, sides beside organs that only one side has, letters for sides (R, OS, RMLO), words with another
        meaning (left untreated, right angle).
    """
    if _UNSAFE.search(text) or _LETTERS.search(text):
        return None
    plain = text.replace("左右", "")
    if not _SIDE.search(plain):
        return text
    if _LOPSIDED.search(plain):
        return None
    return "左右".join(_SIDE.sub(_other, part) for part in text.split("左右"))


def _other(match: re.Match) -> str:
    word = match[0]
    other = _SWAP[word.lower()]
    if word.isupper():
        return other.upper()
    return other.capitalize() if word[0].isupper() else other
