"""Left and right in a text, swapped as its image is mirrored; or not at all, where that could make it untrue."""

import re

_SWAP = {"left": "right", "right": "left", "左": "右", "右": "左"}
_SIDE = re.compile(r"left|right|[左右]", re.IGNORECASE)
# Words that hold the letters and name no side.
_ORDINARY = re.compile(r"\b(?:\w*bright\w*|\w*cleft\w*|(?:up|out|copy)right\w*|fright\w*)|左右", re.IGNORECASE)

# What a side may stand before: parts that come in pairs and look alike, and findings that either side can have.
_PARTS = (
    r"sides?|knees?|hips?|wrists?|hands?|foot|feet|ankles?|elbows?|shoulders?|arms?|forearms?|legs?|thighs?|cal(?:f|ves)"
    r"|limbs?|extremit(?:y|ies)|fingers?|thumbs?|toes?|heels?|eyes?|ears?|breasts?|lungs?|pleural?|hemithorax"
    r"|chest|ribs?|hil(?:um|ar)|axill(?:a|ae|ary)|kidneys?|renal|ureters?|ovar(?:y|ies|ian)|test(?:is|icle|icular)|groin"
    r"|buttocks?|cheeks?|orbits?|orbital|maxill(?:a|ary)|mandib(?:le|ular)|clavicles?|scapulae?|humerus|humeral"
    r"|radi(?:us|al)|uln(?:a|ar)|femurs?|femoral|tibiae?|tibial|fibulae?|fibular|patellae?|patellar|metacarpals?|metatarsals?|phalanx"
    r"|meniscus|cruciate|temporal|frontal|parietal|occipital|hemisphere|cerebral|cerebellar|effusions?|pneumothorax|pneumonia"
    r"|opacit(?:y|ies)|consolidation|infiltrates?|atelectasis|nodules?|mass|lesions?|fractures?|weakness"
)
_BETWEEN = (
    r"upper|lower|mid|middle|proximal|distal|anterior|posterior|medial|lateral|inner|outer|superior|inferior|tiny|small|large"
    r"|mild|moderate|severe|minimal|minor|major|old|new|acute|chronic|healed|displaced|undisplaced|total|partial|index|ring"
    r"|big|great|first|second|third|fourth|fifth|sixth|\d+(?:st|nd|rd|th)"
)
_PLAIN = re.compile(
    rf"(?<![A-Za-z])(?:left|right)(?:(?:[- ]?sided)?[- ](?:(?:{_BETWEEN})[- ])*(?:{_PARTS})(?![A-Za-z])"
    r"|(?:wards?|most)(?![A-Za-z]))"
    r"|\A\s*(?:left|right|[左右])(?=\s*\Z)|(?<=\b(?:in|on) the )(?:left|right)(?=\s*(?:[.,;)]|$))"
    r"|[左右](?=[上下中前后内外]*(?:侧(?!卧|位)|边|膝|髋|肩|肘|腕|踝|手|足|脚|腿|臂|肢|眼|耳|乳|肺|肾|胸|颈|腋|股骨|胫|腓|肱|桡骨|尺骨|锁骨"
    r"|肋|髌|跟骨|额|颞|顶|枕|大脑|小脑|卵巢|睾丸|输尿管|腹股沟|臀))",
    re.IGNORECASE,
)
# A side word, and what is not in the middle of the body: mirrored, it would be a rare malformation, or another part.
_LOPSIDED = re.compile(
    r"\b(?:heart|cardi|ventric|atri(?:um|a\b|al)|aort|mitral|tricuspid|caval?\b|vena|stomach|gastr|splen|spleen|liver"
    r"|hepat|gallbladder|biliary|pancrea|append|c[ae]+cum|(?:hemi)?col(?:on|ic|it|ec|os)|sigmoid|lobe|lobar|lingula|fissure"
    r"|hemidiaphragm|azygos|thoracic duct|recurrent laryngeal|pulmonary art|coronar|apex|apical|bundle)"
    r"|心|(?<!乳)房|室|主动脉|腔静脉|冠|束支|胃|脾|肝|胆|胰|阑尾|盲肠|结肠|叶|舌段|膈",
    re.IGNORECASE,
)
_UNSAFE = re.compile(
    # The image itself says how its sides lie, or the text tells a hand, a direction, a turn or an hour.
    r"\bsitus\b|\binver(?:sus|sion of)\b|dext(?:ro|er|ra|rum)|sinist|l[a]?evo|heterotax|isomerism|handed|dominan|axis"
    r"|rotat|mirror|marker|flip|shunt|clockwise|o.?clock"
    r"|内脏反位|内脏转位|镜[面像]|右位|左位|[左右]旋|异构|利手|优势|标[记志]|顺时针|点钟|点方向",
    re.IGNORECASE,
)
# Letters for a side: R, rt, TKA_L, OS, RLE, lbbb, LKNEE, KneeR. L4 is a vertebra and stays.
_LETTERS = re.compile(
    r"(?i:(?<![A-Za-z0-9])(?:[lr]t?(?![A-Za-z0-9])|o[ds]\b|[lr](?:[lu]e|[lu]l|ml|[lu]q|if|hs|bbb|ad|ca|cx|vef|v|vh|mlo|cc)\b"
    r"|[lr]t?(?:knee|hip|wrist|hand|foot|ankle|elbow|shoulder|arm|leg|eye|lung|breast|kidney|chest)s?\b))"
    r"|(?<![A-Za-z])(?!(?:LEFT|RIGHT|LUNGS?|LEGS?|LIMBS?|RIBS?)(?![A-Za-z]))[LR][A-Z]{1,4}(?![A-Za-z])"
    r"|(?<=[a-z0-9])[LR](?![A-Za-z])|(?<![A-Za-z0-9])(?:R\d|L(?![1-6](?!\d))\d)"
)


def swap_sides(text: str) -> str | None:
    """The text of the mirrored image.

    A side is swapped where it plainly stands before a part that comes in pairs (`left lower lung`, 左膝), or alone in
    its clause (`none on the right`) or in the whole text, as a label does. What else may be a side is not guessed at.

    Args:
        text: In English or Chinese.

    Returns:
        The text with left and right, 左 and 右 exchanged; unchanged where it names no side (左右, about, is none); and
        None where the mirrored image has no true text that can surely be made so: a shunt from left to right, situs and
        dextrocardia, sides beside what only one side has, letters for sides (R, rt, OS, RMLO, LBBB), words with another
        meaning (nothing left, right angle), hours on a clock.
    """
    if _UNSAFE.search(text) or _LETTERS.search(text):
        return None
    ordinary = [match.span() for match in _ORDINARY.finditer(text)]
    sides = [
        match
        for match in _SIDE.finditer(text)
        if not any(start <= match.start() and match.end() <= end for start, end in ordinary)
    ]
    if not sides:
        return text
    plain = {match.start() for match in _PLAIN.finditer(text)}
    if _LOPSIDED.search(text) or any(match.start() not in plain for match in sides):
        return None
    for match in reversed(sides):
        text = text[: match.start()] + _other(match) + text[match.end() :]
    return text


def _other(match: re.Match) -> str:
    word = match[0]
    other = _SWAP[word.lower()]
    if word.isupper():
        return other.upper()
    return other.capitalize() if word[0].isupper() else other
