import random

import numpy as np
import pytest
import sacrebleu.metrics

from medfinetune.errors import InputError
from medfinetune.evaluation.bootstrap import Bootstrap
from medfinetune.evaluation.case_statistics import (
    bleu_scores,
    bleu_statistics,
    chrf_scores,
    chrf_statistics,
    exp_of_ratio,
    mean_of_cases,
    ratio_of_sums,
)
from medfinetune.evaluation.text import bleu, chrf
from tests.evaluation.test_bootstrap import resamples

WORDS = {
    "en": ["no", "left", "right", "effusion", "fracture", "heart", "enlarged", "2.5", "cm", "mild", ",", "."],
    "zh": ["未见", "左侧", "右侧", "积液", "骨折", "心影", "增大", "T2", "厘米", "轻度", "，", "。"],
}


def texts(language, number, seed, longest=14):
    rng, joint = random.Random(seed), " " if language == "en" else ""
    return [joint.join(rng.choices(WORDS[language], k=rng.randint(0, longest))) for _ in range(number)]


def corpora(language, longest=14):
    """Pairs of texts that share much, little or nothing, some of them empty."""
    references = texts(language, 40, 1, longest)
    rng, others = random.Random(3), texts(language, 40, 2, longest)
    return [
        rng.choice((one, one[: len(one) // 2], other)) for one, other in zip(references, others, strict=True)
    ], references


@pytest.mark.parametrize("language", ["en", "zh"])
@pytest.mark.parametrize("longest", [1, 3, 14])
def test_many_corpora_at_once_score_as_sacrebleu_scores_them(language, longest):
    predictions, references = corpora(language, longest)
    languages = [language] * 40
    draws = np.random.default_rng(0).integers(40, size=(60, 6))
    for statistics, score in (
        (bleu_statistics, lambda one, other: bleu(one, other, language)),
        (chrf_statistics, chrf),
    ):
        found = statistics(predictions, references, languages, language)
        sums = np.stack([found.values[rows].sum(axis=0) for rows in draws])
        expected = [score([predictions[i] for i in rows], [references[i] for i in rows])["score"] for rows in draws]
        np.testing.assert_allclose(found.formula(sums), expected, rtol=0, atol=1e-9)
        assert found.figure() == pytest.approx(score(predictions, references)["score"], abs=1e-9)
        if longest > 3:
            assert np.std(expected) > 5  # else little is shown


@pytest.mark.parametrize("seed", range(5))
def test_formulas_equal_sacrebleu_on_any_counts(seed):
    rng = np.random.default_rng(seed)
    stated = np.maximum(rng.integers(1, 9) - np.arange(4), 0) * rng.integers(1, 5)
    matched = np.minimum(stated, rng.integers(0, 5, size=4))
    sums = np.r_[stated[0], rng.integers(1, 30), matched, stated]
    expected = sacrebleu.metrics.BLEU.compute_bleu(
        matched.tolist(), stated.tolist(), int(sums[0]), int(sums[1]), "exp", effective_order=True
    ).score
    assert bleu_scores(sums[None].astype(float))[0] == pytest.approx(expected, abs=1e-9)
    pairs = rng.integers(0, 6, size=(6, 2))
    counts = np.c_[pairs, np.minimum(pairs.min(axis=1), rng.integers(0, 6, size=6))].ravel()
    expected = sacrebleu.metrics.CHRF()._compute_f_score(counts.tolist())
    assert chrf_scores(counts[None].astype(float))[0] == pytest.approx(expected, abs=1e-9)


def test_intervals_of_bleu_are_those_of_resampled_corpora():
    predictions, references = corpora("en")
    patients = [i // 2 for i in range(40)]
    bootstrap = Bootstrap(patients, 40)
    statistics = [make(predictions, references, ["en"] * 40, "en") for make in (bleu_statistics, chrf_statistics)]
    found = bootstrap.figures(statistics)
    for figures, score in zip(found, (bleu, chrf), strict=True):
        expected = [
            score([predictions[i] for i in rows], [references[i] for i in rows])["score"]
            for rows in resamples(bootstrap, patients)
        ]
        np.testing.assert_allclose(figures, expected, rtol=0, atol=1e-9)


def test_micro_f1_is_a_ratio_of_sums_and_no_mean_of_ratios():
    right, stated, true = np.array([1, 0, 5, 0]), np.array([1, 2, 5, 0]), np.array([1, 2, 10, 0])
    f1 = ratio_of_sums(2 * right, stated + true)
    assert f1.figure() == 12 / 21
    assert f1.figure([0, 1]) == 2 / 6
    assert f1.figure([3]) is None
    assert f1.num_cases() == 3
    np.testing.assert_array_equal(f1.of_each(), [1.0, 0.0, 10 / 15, np.nan])


def test_ratios_against_plain_resampling():
    rng = np.random.default_rng(0)
    patients = [f"p{i // 3}" for i in range(30)]
    right, stated = rng.integers(0, 3, 30), rng.integers(0, 4, 30)
    values = np.where(rng.random(30) < 0.3, np.nan, rng.random(30))
    bootstrap = Bootstrap(patients, 50)
    some = [0, 1, 5, 17, 28]
    with np.errstate(invalid="ignore"):
        for rows in (None, some):
            drawn = [[i for i in sample if rows is None or i in some] for sample in resamples(bootstrap, patients)]
            expected = (
                [right[i].sum() / stated[i].sum() if stated[i].sum() else np.nan for i in drawn],
                [np.nanmean(values[i]) if np.isfinite(values[i]).any() else np.nan for i in drawn],
            )
            found = bootstrap.figures([ratio_of_sums(right, stated), mean_of_cases(values)], rows)
            np.testing.assert_allclose(found[0], expected[0])
            np.testing.assert_allclose(found[1], expected[1])
    assert bootstrap.num_clusters_of(some) == 4
    assert bootstrap.figures([]) == []


def test_cases_that_do_not_count_leave_no_zero_behind():
    statistics = bleu_statistics(["a b", "骨折"], ["a b", "骨折"], ["en", "zh"], "en")
    assert statistics.counted.tolist() == [True, False]
    assert statistics.figure([1]) is None
    assert bleu_statistics(["a"], ["a"], ["en"], "zh").figure() is None
    values = Bootstrap(["a", "b"], 50).figures([statistics])[0]
    # Where only the Chinese case was drawn there is no English score, not one of 0.
    assert np.isnan(values).any()
    assert set(values[np.isfinite(values)].round(6)) == {100.0}
    with pytest.raises(InputError, match="1 predictions, 2 references, 2 languages"):
        bleu_statistics(["a"], ["a", "b"], ["en", "en"], "en")


def test_perplexity_is_of_all_tokens_together():
    perplexity = exp_of_ratio([np.log(2) * 10, np.log(8) * 2], [10, 2])
    assert perplexity.figure() == pytest.approx(2 ** (16 / 12))
    np.testing.assert_allclose(perplexity.of_each(), [2, 8])
