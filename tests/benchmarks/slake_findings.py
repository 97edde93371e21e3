"""What finding F1 reads of SLAKE's real answers, and what it notices beside BLEU and chrF.

    python tests/benchmarks/slake_findings.py           (SLAKE's answers, MEDFINETUNE_DATA_DIR: a table, then JSON)
    python tests/benchmarks/slake_findings.py --pairs   (50 pairs of reports that differ by one "no", side or grade)

SLAKE: each closed answer is read alone and behind its question. It is *read* where the lexicon finds a statement, and
*right* where it states this one thing and nothing else: what the table `TRUTH` says, which was written by hand from the
list of all closed answers, apart from the lexicon. As a control, what is read is held against the truth of another
question.
"""

import functools
import json
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import sacrebleu.metrics
import yaml

REPO = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(REPO))

from medfinetune.evaluation.finding_f1 import finding_counts  # noqa: E402
from medfinetune.evaluation.findings import read_findings  # noqa: E402
from medfinetune.evaluation.lexicon import Lexicon, load_lexicon  # noqa: E402
from medfinetune.evaluation.text import bleu  # noqa: E402
from tests.real_data import REAL_DATA  # noqa: E402

PAIRS = REPO / "tests" / "evaluation" / "sentences" / "report_pairs.yaml"
LANGUAGES = ("en", "zh")
# (finding, value) -> every closed answer that means it.
TRUTH = {
    ("answer", "yes"): ["Yes", "包含", "是的", "存在", "是", "有", "可以", "包括"],
    ("answer", "no"): ["No", "不包含", "不是", "否", "没有", "不可以", "不包括", "不存在"],
    ("health", "abnormal"): ["不正常"],
    ("health", "normal"): ["健康", "正常", "无异常"],
    ("comparison", "same"): ["Almost the same", "几乎相等"],
    ("organ", "lung"): ["Lung", "肺", "肺脏"],
    ("organ", "left lung"): ["Left Lung", "左肺"],
    ("organ", "right lung"): ["Right Lung", "Right lung", "右肺"],
    ("organ", "heart"): ["Heart", "心脏"],
    ("organ", "liver"): ["Liver", "肝脏"],
    ("organ", "spleen"): ["Spleen", "脾脏"],
    ("organ", "kidney"): ["Kidney", "肾脏"],
    ("organ", "left kidney"): ["Left Kidney", "左肾", "左肾脏"],
    ("organ", "right kidney"): ["Right Kidney"],
    ("organ", "colon"): ["Colon", "结肠"],
    ("organ", "small bowel"): ["Small Bowel", "Small bowel", "小肠"],
    ("organ", "rectum"): ["Rectum", "直肠"],
    ("organ", "bladder"): ["Bladder", "膀胱"],
    ("organ", "esophagus"): ["Esophagus", "食管"],
    ("organ", "duodenum"): ["Duodenum", "十二指肠"],
    ("organ", "stomach"): ["Stomach", "胃"],
    ("organ", "spinal cord"): ["Spinal Cord", "Spinal cord"],
    ("modality", "ct"): ["CT"],
    ("modality", "mri"): ["MRI", "核磁共振"],
    ("modality", "x-ray"): ["X-Ray", "X光"],
    ("weighting", "t1"): ["T1"],
    ("weighting", "t2"): ["T2"],
    ("plane", "transverse"): ["Transverse Plane", "横断面"],
    ("plane", "coronal"): ["Coronal Plane", "冠状面"],
    ("position", "left"): ["Left", "左侧"],
    ("position", "right"): ["Right", "右侧"],
    ("position", "both"): ["Both", "都是"],
    ("position", "top"): ["Top", "顶部"],
    ("position", "lower right"): ["Lower Right", "右下"],
    ("density", "hyperdense"): ["Hyperdense", "高密度"],
    ("density", "hypodense"): ["Hypodense", "低密度"],
    ("colour", "white"): ["White", "白色"],
    ("colour", "gray"): ["Gray", "灰色"],
}


def read_questions(folder: Path = REAL_DATA / "slake") -> list[dict[str, Any]]:
    """All questions of the three files, wherever below `folder` they lie."""
    names = [next(folder.rglob("train.json")).parent / f"{split}.json" for split in ("train", "validate", "test")]
    return [row for name in names for row in json.loads(name.read_text(encoding="utf-8"))]


def closed_figures(rows: list[dict[str, Any]], lexicon: Lexicon) -> dict[str, Any]:
    """How many closed answers of one language are read, and read rightly."""
    meaning = {answer: {name: value} for (name, value), answers in TRUTH.items() for answer in answers}
    truths = [meaning.get(row["answer"].strip()) for row in rows]
    read_once = functools.cache(lambda text: read_findings(text, lexicon))
    alone = [read_once(row["answer"]) for row in rows]
    behind = [read_once(f"{row['question']} {row['answer']}") for row in rows]
    others = truths[len(truths) // 2 :] + truths[: len(truths) // 2]
    unread = Counter(row["answer"] for row, read in zip(rows, alone, strict=True) if not read)
    wrong = Counter(
        (row["question"], row["answer"], str(read))
        for row, read, truth in zip(rows, behind, truths, strict=True)
        if read != truth
    )
    return {
        "num_closed": len(rows),
        "num_distinct": len({row["answer"] for row in rows}),
        "num_without_truth": truths.count(None),
        "num_read_alone": sum(map(bool, alone)),
        "num_right_alone": sum(read == truth for read, truth in zip(alone, truths, strict=True)),
        "num_read_behind_question": sum(map(bool, behind)),
        "num_right_behind_question": sum(read == truth for read, truth in zip(behind, truths, strict=True)),
        "num_right_for_another_question": sum(read == truth for read, truth in zip(alone, others, strict=True)),
        "unread": dict(unread.most_common()),
        "wrong_behind_question": [[*case, count] for case, count in wrong.most_common()],
    }


def open_figures(rows: list[dict[str, Any]], lexicon: Lexicon) -> dict[str, Any]:
    """How many open answers of one language are read at all; whether rightly is not known."""
    unread = Counter(row["answer"].strip() for row in rows if not read_findings(row["answer"], lexicon))
    return {
        "num_open": len(rows),
        "num_read": len(rows) - sum(unread.values()),
        "num_distinct_unread": len(unread),
        "unread": dict(unread.most_common()),
    }


def slake_figures() -> dict[str, dict[str, Any]]:
    """Language -> `closed` and `open` figures."""
    lexicon, questions = load_lexicon("slake"), read_questions()
    by_kind = {
        (language, kind): [row for row in questions if row["q_lang"] == language and row["answer_type"] == kind]
        for language in LANGUAGES
        for kind in ("CLOSED", "OPEN")
    }
    return {
        language: {
            "closed": closed_figures(by_kind[language, "CLOSED"], lexicon),
            "open": open_figures(by_kind[language, "OPEN"], lexicon),
        }
        for language in LANGUAGES
    }


def read_pairs(path: Path = PAIRS) -> list[dict[str, str]]:
    """Each change of each report: `reference`, `prediction`, `kind`, `language` and `lexicon`."""
    return [
        {
            "reference": entry["report"],
            "prediction": entry["report"].replace(change["old"], change["new"]),
            "kind": change["kind"],
            "language": entry["language"],
            "lexicon": entry["lexicon"],
        }
        for entry in yaml.safe_load(path.read_text(encoding="utf-8"))
        for change in entry["changes"]
    ]


def score_pair(pair: dict[str, str]) -> dict[str, float]:
    """Finding F1, BLEU and chrF of one pair, all in [0, 1]."""
    counts = finding_counts(pair["prediction"], pair["reference"], load_lexicon(pair["lexicon"]))
    texts = [pair["prediction"]], [pair["reference"]]
    return {
        "finding F1": 2 * counts.num_right / (counts.num_stated + counts.num_true),
        "BLEU": bleu(*texts, pair["language"])["score"] / 100,
        "chrF": sacrebleu.metrics.CHRF().corpus_score(texts[0], [texts[1]]).score / 100,
    }


def pair_figures() -> dict[str, dict[str, dict[str, float]]]:
    """Group of pairs -> score -> its mean, its least and greatest value."""
    pairs = read_pairs()
    scores = [score_pair(pair) for pair in pairs]
    groups = {"all": list(range(len(pairs)))}
    for key in ("kind", "language"):
        for name in dict.fromkeys(pair[key] for pair in pairs):
            groups[name] = [i for i, pair in enumerate(pairs) if pair[key] == name]
    return {
        f"{group} ({len(chosen)})": {
            name: {
                "mean": sum(scores[i][name] for i in chosen) / len(chosen),
                "min": min(scores[i][name] for i in chosen),
                "max": max(scores[i][name] for i in chosen),
            }
            for name in scores[0]
        }
        for group, chosen in groups.items()
    }


def print_slake(figures: dict[str, dict[str, Any]]) -> None:
    print("| | " + " | ".join(LANGUAGES) + " |\n| --- | " + "--- | " * len(LANGUAGES))
    closed = [figures[language]["closed"] for language in LANGUAGES]
    for key in [key for key in closed[0] if key.startswith("num_")]:
        print(
            f"| closed: {key} | "
            + " | ".join(f"{row[key]} ({row[key] / row['num_closed']:.2%})" for row in closed)
            + " |"
        )
    opened = [figures[language]["open"] for language in LANGUAGES]
    for key in [key for key in opened[0] if key.startswith("num_")]:
        print(f"| open: {key} | " + " | ".join(str(row[key]) for row in opened) + " |")
    for language in LANGUAGES:
        print(f"\n{language}, closed, unread: {figures[language]['closed']['unread'] or 'none'}")
        wrong = figures[language]["closed"]["wrong_behind_question"]
        print(f"{language}, closed, wrong behind the question: {wrong or 'none'}")
        most = list(figures[language]["open"]["unread"].items())
        print(f"{language}, open, unread:")
        print("".join(f"  {count:4} {answer}\n" for answer, count in most))


def print_pairs(figures: dict[str, dict[str, dict[str, float]]]) -> None:
    names = list(figures[next(iter(figures))])
    print("| pairs | " + " | ".join(f"{name}: mean | least | greatest" for name in names) + " |")
    print("| --- |" + " --- |" * 3 * len(names))
    for group, row in figures.items():
        cells = [f"{row[name][key]:.3f}" for name in names for key in ("mean", "min", "max")]
        print(f"| {group} | " + " | ".join(cells) + " |")


def main() -> None:
    if sys.argv[1:] == ["--pairs"]:
        figures = pair_figures()
        print_pairs(figures)
    else:
        figures = slake_figures()
        print_slake(figures)
    print(json.dumps(figures, ensure_ascii=False))


if __name__ == "__main__":
    main()
