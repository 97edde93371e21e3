import re

import numpy as np
import pytest

from medfinetune.data.phantom.findings import combinations, report
from medfinetune.errors import InputError
from medfinetune.evaluation.finding_accuracy import finding_accuracy, majority_accuracy
from medfinetune.evaluation.lexicon import load_lexicon

LEXICON = load_lexicon("phantom")
RNG = np.random.default_rng(1)
CASES = [(language, findings) for findings in combinations(RNG)[:40] for language in ("en", "zh")]


def _reports(seed):
    rng = np.random.default_rng(seed)
    return [report(findings, language, rng) for language, findings in CASES]


def test_other_words_for_the_same_findings_are_right():
    result = finding_accuracy(_reports(2), _reports(3), LEXICON, [language for language, _ in CASES])
    assert result["finding_accuracy"] == 1.0
    assert result["num_findings"] == 8 * len(CASES)
    assert result["by_language"]["zh"] == {"finding_accuracy": 1.0, "num_findings": 320, "num_right": 320}
    assert {name: share["num_findings"] for name, share in result["by_finding"].items()} == dict.fromkeys(
        LEXICON.findings, 80
    )


@pytest.mark.parametrize(
    ("finding", "pattern", "change"),
    [
        ("fracture", r"No (?=fracture|clavicle)|未见(?=骨折)|无(?=锁骨骨折)", ""),
        ("effusion", r"No (?=effusion|pleural)|未见(?=胸腔)|无(?=积液|胸腔)", ""),
        ("device", r"No (?=pacemaker|implanted)|Without |未见(?=起搏器)|无(?=起搏器|植入)", ""),
        ("heart", r" not(?= enlarged)|未(?=增大)", ""),
        ("lesion_border", r"irregular|不规则", {"irregular": "regular", "不规则": "规则"}),
        ("fracture", r"(left|right)(?= clavicle)|(左侧|右侧)(?=锁骨)", "swap"),
        ("effusion", r"(left|right)(?= pleural|\.| side)|(左侧|右侧)(?=胸腔|可见积液)", "swap"),
        ("knee_grade", r"\d", "grade"),
        ("lesion_colour", r"brown|black|red|褐|黑|红", "colour"),
        ("view", r"frontal|oblique|正|斜", "view"),
    ],
)
def test_one_changed_word_is_noticed_in_every_report(finding, pattern, change):
    swaps = {"left": "right", "right": "left", "左侧": "右侧", "右侧": "左侧"}
    swaps |= {str(grade): str((grade + 1) % 5) for grade in range(5)}
    swaps |= {"brown": "black", "black": "red", "red": "brown", "褐": "黑", "黑": "红", "红": "褐"}
    swaps |= {"frontal": "oblique", "oblique": "frontal", "正": "斜", "斜": "正"}
    table = swaps if isinstance(change, str) else change

    def changed(match):
        return table[match.group().lower()] if change else ""

    num_changed = 0
    for reference in _reports(4):
        # The heart's "正常" is no view, and the border's words hold no colour.
        prediction = re.sub(pattern, changed, reference, count=1, flags=re.IGNORECASE)
        if prediction == reference:
            continue
        num_changed += 1
        result = finding_accuracy([prediction], [reference], LEXICON)
        assert result["num_right"] == 7, (prediction, reference)
        assert result["by_finding"][finding]["finding_accuracy"] == 0.0
    assert num_changed >= 8


def test_what_is_left_out_is_wrong():
    result = finding_accuracy(["Heart enlarged."], ["Heart enlarged. Left pleural effusion."], LEXICON)
    assert (result["num_right"], result["num_findings"]) == (1, 2)
    assert finding_accuracy([""], ["No fracture."], LEXICON)["finding_accuracy"] == 0.0


def test_a_text_that_says_everything_is_wrong():
    everything = "No fracture. Left fracture. Right fracture. Knee grade 0. Knee grade 1."
    assert finding_accuracy([everything], ["Left fracture. Knee grade 1."], LEXICON)["num_right"] == 0
    assert finding_accuracy(["Left and right effusion."], ["Left effusion."], LEXICON)["num_right"] == 0


def test_references_without_findings_give_none_and_a_count():
    result = finding_accuracy(
        ["No fracture.", "x"], ["Follow up in two weeks.", "No fracture. Left fracture."], LEXICON
    )
    assert result["finding_accuracy"] is None
    assert (result["num_findings"], result["num_references_without_findings"]) == (0, 2)
    assert result["by_finding"]["heart"]["finding_accuracy"] is None
    assert finding_accuracy([], [], LEXICON)["finding_accuracy"] is None


def test_unequal_lists_are_refused():
    with pytest.raises(InputError, match="2 predictions for 1 references"):
        finding_accuracy(["a", "b"], ["a"], LEXICON)


def test_majority_is_the_best_constant_answer():
    references = ["No fracture. Knee grade 1.", "无锁骨骨折。", "Left clavicle fracture.", "Nothing to say."]
    result = majority_accuracy(references, LEXICON)
    assert result == {
        "finding_accuracy": 3 / 4,
        "num_findings": 4,
        "num_right": 3,
        "values": {"fracture": "none", "knee_grade": "1"},
    }
    from_training = majority_accuracy(references, LEXICON, sources=["Left fracture."])
    assert from_training["num_right"] == 1
    assert majority_accuracy([], LEXICON)["finding_accuracy"] is None
