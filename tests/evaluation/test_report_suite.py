import json
import random

import numpy as np
import pytest

from medfinetune.errors import InputError
from medfinetune.evaluation.finding_f1 import Counts, FindingCounts, finding_f1
from medfinetune.evaluation.lexicon import load_lexicon
from medfinetune.evaluation.page import write_results
from medfinetune.evaluation.paired import read_texts
from medfinetune.evaluation.report_cases import ReportCase
from medfinetune.evaluation.report_figures import kind_of
from medfinetune.evaluation.report_suite import score_reports, worst_first
from medfinetune.evaluation.text import bleu, chrf, rouge_l, token_f1

FINDINGS = {"effusion": "积液", "fracture": "骨折", "nodule": "结节", "mass": "肿块"}


def count(prediction, reference):
    """A plain reading, not that of a lexicon: findings are the words of `FINDINGS` in either language."""
    stated, true = (
        {name for name, word in FINDINGS.items() if name in text or word in text} for text in (prediction, reference)
    )
    by_finding = {name: Counts(name in stated & true, name in stated, name in true) for name in sorted(stated | true)}
    total = Counts(len(stated & true), len(stated), len(true))
    return FindingCounts(*total, by_finding=by_finding, present=total)


def written(names, language):
    if language == "zh":
        return "可见" + "、".join(FINDINGS[name] for name in names) + "。" if names else "未见异常。"
    return f"There is {' and '.join(names)}." if names else "Nothing is seen."


def made(number=60, seed=0):
    rng = random.Random(seed)
    cases, texts = [], {"own": [], "shuffled_everything": [], "no_evidence": []}
    truths = [rng.sample(sorted(FINDINGS), rng.randint(0, 2)) for _ in range(number)]
    for i, truth in enumerate(truths):
        language = "zh" if i % 3 == 0 else "en"
        cases.append(
            ReportCase(
                f"case-{i:02}",
                language,
                written(truth, language),
                source="reports" if i // 2 % 2 else "pad_ufes",
                label="NEV" if i < 5 else "BCC",
                patient=f"p{i // 2}" if i < 20 else "",
                pixels=(f"sha{i}",),
                metadata={"age": str(20 + i), "sex": "male" if i % 2 else "female", "skin_type": "2.0"}
                if i < 50
                else {},
            )
        )
        for name, rightness in (("own", 0.8), ("no_evidence", 0.5), ("shuffled_everything", 0.0)):
            said = truth if rng.random() < rightness else rng.choice(truths)
            texts[name].append(written(said, language))
    return cases, texts


@pytest.fixture(scope="module")
def scored():
    cases, texts = made()
    likelihoods = {"own": ([3.0] * 60, [6] * 60)}
    similarities = {"own": list(np.linspace(0, 1, 60)), "no_evidence": [0.25] * 60}
    evidence = [{"neighbours": [], "labels": []} for _ in cases]
    result, rows = score_reports(
        cases,
        texts,
        count_findings=count,
        similarities=similarities,
        likelihoods=likelihoods,
        evidence=evidence,
        compared_with={"earlier": texts["no_evidence"]},
        latency={"lookup": {"median_s": 0.1}},
        num_resamples=300,
    )
    return cases, texts, result, rows


def test_figures_are_those_of_the_functions(scored):
    cases, texts, result, _ = scored
    own, truths = result["conditions"]["own"], [case.reference for case in cases]
    counts = [count(text, truth) for text, truth in zip(texts["own"], truths, strict=True)]
    right, stated, true = (
        sum(getattr(one, name) for one in counts) for name in ("num_right", "num_stated", "num_true")
    )
    assert own["finding_f1"] == pytest.approx(2 * right / (stated + true))
    assert own["finding_precision"] == pytest.approx(right / stated)
    assert own["finding_recall"] == pytest.approx(right / true)
    assert (own["num_right"], own["num_stated"], own["num_true"]) == (right, stated, true)
    for language in ("en", "zh"):
        rows = [i for i, case in enumerate(cases) if case.language == language]
        chosen = [texts["own"][i] for i in rows], [truths[i] for i in rows]
        assert own[f"bleu_{language}"] == pytest.approx(bleu(*chosen, language)["score"], abs=1e-9)
        assert own[f"chrf_{language}"] == pytest.approx(chrf(*chosen)["score"], abs=1e-9)
        assert result["signatures"][f"bleu_{language}"] == bleu(*chosen, language)["signature"]
        assert result["by_language"][language][f"bleu_{language}"] == pytest.approx(own[f"bleu_{language}"])
        assert result["figures"][f"bleu_{language}"]["num_cases"] == len(rows)
    pairs = list(zip(texts["own"], truths, strict=True))
    assert own["rouge_l"] == pytest.approx(np.mean([rouge_l(*pair) for pair in pairs]))
    assert own["exact_match"] == pytest.approx(np.mean([one == other for one, other in pairs]))
    assert own["encoder_similarity"] == pytest.approx(0.5)
    assert own["perplexity"] == pytest.approx(np.exp(0.5))
    assert not any(name.startswith(("llava", "lmms")) for name in own)  # no questions


def test_every_figure_has_its_interval_and_controls_their_difference(scored):
    _, _, result, _ = scored
    for name, figures in result["conditions"].items():
        for figure in result["figures"]:
            if figure not in figures:
                assert figure in ("encoder_similarity", "perplexity"), (name, figure)
                continue
            low, high = figures[f"{figure}_ci"]
            assert low <= figures[figure] <= high
    for name in ("shuffled_everything", "no_evidence"):
        found = result["differences"][name]["finding_f1"]
        own, control = (result["conditions"][which]["finding_f1"] for which in ("own", name))
        assert found["difference"] == pytest.approx(own - control)
        assert found["difference_ci"][0] > 0
        assert found["p_value"] < 0.05
    assert "perplexity" not in result["differences"]["no_evidence"]
    earlier = result["compared_with"]["earlier"]
    assert earlier["differences"]["rouge_l"] == result["differences"]["no_evidence"]["rouge_l"]
    assert earlier["figures"]["rouge_l"] == result["conditions"]["no_evidence"]["rouge_l"]
    # 20 cases of 10 patients, 40 images.
    assert result["num_clusters"] == 50
    assert result["num_cases_of_known_patients"] == 20


def test_groups_have_counts_and_intervals_and_small_ones_are_marked(scored):
    cases, texts, result, _ = scored
    assert {way for way in result if way.startswith("by_")} == {
        *("by_finding", "by_language", "by_source", "by_label", "by_age", "by_sex", "by_skin_type")
    }
    assert {group: told["num_cases"] for group, told in result["by_label"].items()} == {"BCC": 55, "NEV": 5}
    assert {group: told["is_small"] for group, told in result["by_label"].items()} == {"BCC": False, "NEV": True}
    assert result["by_label"]["NEV"]["num_clusters"] == 3
    assert sum(told["num_cases"] for told in result["by_age"].values()) == 50
    rows = [i for i, case in enumerate(cases) if case.source == "reports"]
    expected = np.mean([token_f1(texts["own"][i], cases[i].reference, cases[i].language) for i in rows])
    told = result["by_source"]["reports"]
    assert told["token_f1"] == pytest.approx(expected)
    assert told["token_f1_ci"][0] < expected < told["token_f1_ci"][1]
    assert result["group_control"] == "shuffled_everything"
    assert told["control"]["token_f1"] < expected
    assert told["differences"]["token_f1"]["difference"] == pytest.approx(expected - told["control"]["token_f1"])
    alone = result["by_language"]["zh"]
    assert "bleu_en" not in alone


def test_rows_hold_the_texts_and_scores_of_each_case(scored, tmp_path):
    cases, texts, result, rows = scored
    assert rows[0] == {
        "id": "case-00",
        "language": "zh",
        "source": "pad_ufes",
        "label": "NEV",
        "task": "report",
        "question": "",
        "reference": cases[0].reference,
        "generated": texts["own"][0],
        "generated_shuffled_everything": texts["shuffled_everything"][0],
        "generated_no_evidence": texts["no_evidence"][0],
        "scores": rows[0]["scores"],
        "finding_counts": rows[0]["finding_counts"],
        "by_finding": {
            name: one._asdict() for name, one in count(texts["own"][0], cases[0].reference).by_finding.items()
        },
        "evidence": {"neighbours": [], "labels": []},
    }
    assert rows[1]["scores"]["chrf"] == pytest.approx(chrf([texts["own"][1]], [cases[1].reference])["score"])
    write_results({"reports": result}, tmp_path, rows)
    loaded = json.loads((tmp_path / "results.json").read_text())["reports"]
    assert loaded == json.loads(json.dumps(result, allow_nan=False))
    ids = [case.id for case in cases]
    assert read_texts(tmp_path / "predictions.jsonl", ids) == texts["own"]
    assert read_texts(tmp_path / "predictions.jsonl", ids, "generated_no_evidence") == texts["no_evidence"]


def test_worst_cases_come_first(scored):
    _, _, result, rows = scored
    in_order = [rows[i] for i in worst_first(rows)]
    assert [row["id"] for row in in_order] == result["worst_cases"]
    f1 = [row["scores"].get("finding_f1", 1.0) for row in in_order]
    assert f1 == sorted(f1)
    assert f1[0] == 0.0
    scores = [{"finding_f1": 0.5, "token_f1": 0.9}, {"token_f1": 0.0}, {"finding_f1": 0.5, "token_f1": 0.1}]
    assert worst_first([{"id": str(i), "scores": one} for i, one in enumerate(scores)]) == [2, 0, 1]


def test_each_finding_has_its_own_f1(scored):
    cases, texts, result, rows = scored
    assert list(result["by_finding"]) == sorted(FINDINGS)
    for name, told in result["by_finding"].items():
        counts = [count(text, case.reference) for text, case in zip(texts["own"], cases, strict=True)]
        alone = [one.by_finding[name] for one in counts if name in one.by_finding]
        right, stated, true = (sum(column) for column in zip(*alone, strict=True))
        assert (told["num_right"], told["num_stated"], told["num_true"]) == (right, stated, true)
        assert told["finding_f1"] == pytest.approx(2 * right / (stated + true))
        assert told["finding_f1_ci"][0] <= told["finding_f1"] <= told["finding_f1_ci"][1]
        assert told["num_cases"] == len(alone)
        lost = told["finding_f1"] - told["control"]["finding_f1"]
        assert told["differences"]["finding_f1"]["difference"] == pytest.approx(lost)
    assert rows[0]["finding_counts"] == {
        name: sum(one[name] for one in rows[0]["by_finding"].values()) for name in Counts._fields
    }


def test_findings_are_read_by_the_lexicon():
    lexicon = load_lexicon("phantom")
    references = ["Left effusion. The heart is enlarged.", "No effusion.", "左侧积液。", "Nothing."]
    written = ["Right effusion. The heart is enlarged.", "Left effusion.", "左侧积液。", ""]
    cases = [ReportCase(str(i), "zh" if i == 2 else "en", text) for i, text in enumerate(references)]
    result, rows = score_reports(cases, {"own": written, "no_evidence": references}, lexicon, num_resamples=50)
    expected = finding_f1(written, references, lexicon)
    own = result["conditions"]["own"]
    assert expected["num_true"] > 3
    assert own["finding_f1"] == expected["finding_f1"] < 1
    assert own["finding_f1_present"] == expected["finding_f1_present"]
    assert (own["finding_precision"], own["finding_recall"]) == (expected["precision"], expected["recall"])
    assert result["lexicon"] == "phantom"
    assert result["conditions"]["no_evidence"]["finding_f1"] == 1.0
    told = {name: figures["finding_f1"] for name, figures in result["by_finding"].items()}
    assert told == {name: one["finding_f1"] for name, one in expected["by_finding"].items() if name in told}
    # A lost "no" and a swapped side come before what is right.
    assert result["worst_cases"][:2] == ["1", "0"]
    assert rows[0]["scores"]["finding_f1"] == 0.5


def test_questions_are_scored_by_both_protocols():
    closed = {"answer_type": "CLOSED"}
    cases = [
        ReportCase("a", "en", "Yes", task="question", metadata=closed, pixels=("1",)),
        ReportCase("b", "en", "left lung", task="question", pixels=("2",)),
        ReportCase("c", "en", "Yes.", task="report", pixels=("3",)),
    ]
    result, _ = score_reports(cases, {"own": ["Yes, there is", "left", "no"]}, num_resamples=20)
    own = result["conditions"]["own"]
    assert own["llava_med_closed_accuracy"] == 1.0
    assert own["llava_med_open_recall"] == 0.5
    assert own["lmms_eval_closed_accuracy"] == own["lmms_eval_open_accuracy"] == own["lmms_eval_accuracy"] == 0.0
    assert result["figures"]["lmms_eval_accuracy"]["num_cases"] == 2
    assert "finding_f1" not in own
    assert result["group_control"] is None


def test_one_patient_has_figures_and_no_intervals():
    cases = [ReportCase(name, "en", "x y", patient="1") for name in "ab"]
    result, _ = score_reports(cases, {"own": ["x y", "x"], "blank_image": ["x", "x"]}, num_resamples=20)
    assert result["conditions"]["own"]["token_f1"] == pytest.approx((1 + 2 / 3) / 2)
    assert result["conditions"]["own"]["token_f1_ci"] is None
    assert result["differences"]["blank_image"]["token_f1"]["p_value"] is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"texts": {"no_evidence": ["x"]}}, "no texts of the system .own., only of no_evidence"),
        ({"texts": {"own": ["x", "y"]}}, "2 texts of own for 1 cases"),
        ({"texts": {"own": [None]}}, "the text of own for the case a is None"),
        ({"similarities": {"own": []}}, "0 similarities of own for 1 cases"),
        ({"similarities": {"blank_image": [1.0]}}, "similarities or likelihoods of blank_image, but no texts"),
        ({"likelihoods": {"own": ([1.0], [])}}, "likelihoods of own: there must be a sum and a count"),
        ({"evidence": []}, "0 times evidence for 1 cases"),
        ({"compared_with": {"own": ["x"]}}, "own is the name of a condition and of another system"),
        ({"cases": []}, "there are no cases"),
        ({"cases": [ReportCase("a", "en", "x")] * 2}, "the case a stands among the cases twice"),
    ],
)
def test_what_does_not_fit_is_named(changes, message):
    given = {"cases": [ReportCase("a", "en", "x")], "texts": {"own": ["x"]}} | changes
    with pytest.raises(InputError, match=message):
        score_reports(**given)


def test_figures_are_told_in_words():
    assert kind_of("bleu_zh").words == "BLEU, zh"
    assert kind_of("chrf_en").highest == 100.0
    assert kind_of("finding_f1").words == "finding F1"
    assert not kind_of("perplexity").higher_is_better
