"""Whether a question is answered rightly, by the two protocols that published figures follow.

They disagree, and neither is the truth: each figure's name says whose rule it follows.
"""

import re
import string
import unicodedata
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, Literal, get_args

from medfinetune.errors import InputError
from medfinetune.evaluation.text import languages_of, text_tokens

AnswerType = Literal["open", "closed"]
_TYPES = get_args(AnswerType)

_YES = {"yes", "yeah", "yep", "true", "是", "是的", "有", "包含", "可以", "能", "会", "正常"}
_NO = {"no", "nope", "false", "否", "不是", "没有", "无", "不包含", "不能", "不会", "不可以", "不正常", "异常"}
# SLAKE's own, which lmms-eval leaves as they are: they tell what is closed, and no more.
_ALSO_CLOSED = {"存在", "不存在", "包括", "不包括", "不", "对", "不对"}
_FULL_WIDTH = "".join(chr(ord(mark) + 0xFEE0) for mark in string.punctuation if mark != ".") + "｡。、《》【】"
_TO_SPACES = str.maketrans(dict.fromkeys(string.punctuation + _FULL_WIDTH, " "))
_BRACKETS = re.compile(r"\([^)]*\)|（[^）]*）")
_VQA_MARKS = ';/[]"{}()=+\\_-><@`,?!'
_VQA_NUMBERS = {"none": "0", "zero": "0", "one": "1", "two": "2", "three": "3", "four": "4", "five": "5"}
_VQA_NUMBERS |= {"six": "6", "seven": "7", "eight": "8", "nine": "9", "ten": "10"}


def answer_type(reference: str, metadata: Mapping[str, Any] | None = None) -> AnswerType:
    """Whether a question has a closed set of answers.

    Args:
        reference: The right answer.
        metadata: Of the row; its `answer_type` decides where there is one (SLAKE and VQA-RAD: `OPEN`, `CLOSED`).

    Returns:
        `closed` where the metadata say so, or say nothing and the right answer is a yes or a no; else `open`.
    """
    stated = str((metadata or {}).get("answer_type") or "").strip().lower()
    if stated in _TYPES:
        return stated
    return "closed" if lmms_eval_answer(reference) in ("yes", "no", *_ALSO_CLOSED) else "open"


def lmms_eval_answer(text: str) -> str:
    """An answer as lmms-eval's task `slake` compares it (lmms_eval/tasks/slake/utils.py).

    Lower-cased, without what stands in brackets, punctuation turned to spaces; `x ray` is `xray`, and an answer that
    is nothing but one of its words for yes or no, English or Chinese, is `yes` or `no`.
    """
    text = _BRACKETS.sub(" ", text.strip().lower()).translate(_TO_SPACES)
    text = " ".join(text.split())
    if text in ("x ray", "xray"):
        return "xray"
    return "yes" if text in _YES else "no" if text in _NO else text


def lmms_eval_correct(prediction: str, reference: str) -> bool:
    """lmms-eval's protocol for SLAKE, open and closed alike: both are the same `lmms_eval_answer`.

    A whole sentence as an answer is wrong, however right it is: the protocol asks for a word or a phrase.
    """
    return lmms_eval_answer(prediction) == lmms_eval_answer(reference)


def llava_med_answer(text: str) -> str:
    """An answer as LLaVA-Med compares it (llava/eval/eval_metrics/glossary.py, after the VQA evaluation).

    Lower-cased, most punctuation gone, number words as digits, without articles. Its table that puts apostrophes into
    `dont` and the like is left out: it matters only where one of two texts writes them.
    """
    text = text.lower()
    thousands = re.search(r"\d,\d", text) is not None
    kept = text
    for mark in _VQA_MARKS:
        kept = kept.replace(mark, "" if thousands or f"{mark} " in text or f" {mark}" in text else " ")
    words = [_VQA_NUMBERS.get(word, word) for word in re.sub(r"\.(?!\d)", "", kept).split()]
    return " ".join(word for word in words if word not in ("a", "an", "the"))


def llava_med_closed(prediction: str, reference: str) -> bool:
    """LLaVA-Med's protocol for closed questions: the normalised reference stands somewhere in the prediction.

    It is that of llava/eval/run_eval_batch.py (`yes/no accuracy`), by `llava_med_answer`. The rule is generous: letters
    are compared, not words, so that `no` is found in `normal`, and `有` in `没有`.
    """
    return llava_med_answer(reference) in llava_med_answer(prediction)


def llava_med_recall(prediction: str, reference: str, language: str = "en") -> float:
    """LLaVA-Med's protocol for open questions: the share of the reference's words that are in the prediction.

    It is `recall` of llava/eval/eval_metrics/evaluate_metrics.py, in [0, 1], with its way of counting: a shared word
    counts as often as the prediction has it, a missing one as often as the reference has it. Words are what stands
    between spaces; Chinese, of which the script would make one word, is cut into characters here.
    """
    one, other = (Counter(_words(text, language)) for text in (prediction, reference))
    found = sum(count for word, count in one.items() if word in other)
    missing = sum(count for word, count in other.items() if word not in one)
    return found / (found + missing) if found else 0.0


def closed_open_accuracy(
    predictions: Sequence[str],
    references: Sequence[str],
    languages: str | Sequence[str] | None = None,
    answer_types: Sequence[str] | None = None,
) -> dict[str, Any]:
    """The figures of both protocols over questions with short answers.

    Args:
        predictions: Answers to judge; each belongs to the reference at its place.
        references: The right answers.
        languages: Of each, or one for all; English where left out. Decides how `llava_med_open_recall` cuts words.
        answer_types: Of each, `open` or `closed` in any case; told by the references alone where left out.

    Returns:
        `llava_med_closed_accuracy`, `llava_med_open_recall`, `lmms_eval_closed_accuracy`, `lmms_eval_open_accuracy`
        and, over both, `lmms_eval_accuracy`, each in [0, 1], or None without such a question; `num_closed`, `num_open`.

    Raises:
        InputError: The lists differ in length, or an answer type is neither open nor closed.
    """
    languages = languages_of("answers", "en" if languages is None else languages, len(references))
    given = [answer_type(reference) for reference in references] if answer_types is None else answer_types
    types = [str(kind).strip().lower() for kind in given]
    unknown = next((kind for kind, known in zip(given, types, strict=True) if known not in _TYPES), None)
    if unknown is not None:
        raise InputError(f"answers: answer type {unknown!r} is neither open nor closed")
    if not len(predictions) == len(references) == len(languages) == len(types):
        raise InputError(
            f"answers: {len(predictions)} predictions, {len(references)} references, {len(languages)} languages and "
            f"{len(types)} answer types; there must be one of each for each question"
        )
    rows = list(zip(predictions, references, languages, types, strict=True))
    closed, opened = ([row for row in rows if row[3] == kind] for kind in ("closed", "open"))
    return {
        "llava_med_closed_accuracy": _mean([llava_med_closed(one, other) for one, other, *_ in closed]),
        "llava_med_open_recall": _mean([llava_med_recall(one, other, spoken) for one, other, spoken, _ in opened]),
        "lmms_eval_closed_accuracy": _mean([lmms_eval_correct(one, other) for one, other, *_ in closed]),
        "lmms_eval_open_accuracy": _mean([lmms_eval_correct(one, other) for one, other, *_ in opened]),
        "lmms_eval_accuracy": _mean([lmms_eval_correct(one, other) for one, other, *_ in rows]),
        "num_closed": len(closed),
        "num_open": len(opened),
    }


def _words(text: str, language: str) -> list[str]:
    if language.startswith("zh"):
        return text_tokens(text)
    return llava_med_answer(unicodedata.normalize("NFC", text)).split()


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None
