import math

import evaluate
import numpy as np
import pytest

from medfinetune.errors import InputError
from medfinetune.evaluation.calibration import match_figures
from medfinetune.evaluation.number_metrics import Calibration, EncoderSimilarity, Latency, Perplexity

IMAGES = [[1.0, 0.0], [0.0, 2.0], [3.0, 4.0]]
TEXTS = [[1.0, 0.0], [1.0, 0.0], [4.0, 3.0]]
COSINES = [1.0, 0.0, 24 / 25]


@pytest.mark.parametrize("make", [EncoderSimilarity, Perplexity, Calibration, Latency])
def test_each_says_what_it_is_and_takes(make):
    metric = make()
    assert metric.description.endswith(".")
    assert metric.citation.startswith("@")
    assert metric.citation.count("{") == metric.citation.count("}")
    assert "predictions: " in metric.inputs_description
    assert "is better" in metric.inputs_description


def test_similarity_is_the_cosine_and_its_probability():
    found = EncoderSimilarity().compute(predictions=TEXTS, references=IMAGES)
    assert found == {"encoder_similarity": pytest.approx(sum(COSINES) / 3)}
    found = EncoderSimilarity(scale=10.0, bias=-5.0).compute(predictions=TEXTS, references=IMAGES)
    expected = sum(1 / (1 + math.exp(-(10 * cosine - 5))) for cosine in COSINES) / 3
    assert found["match_probability"] == pytest.approx(expected)


def test_similarity_embeds_texts_where_it_can():
    table = dict(zip("abc", TEXTS, strict=True))
    metric = EncoderSimilarity(embed=lambda texts: np.array([table[text] for text in texts]))
    found = metric.compute(predictions=["a", "b", "c"], references=IMAGES)
    assert found["encoder_similarity"] == pytest.approx(sum(COSINES) / 3)


def test_embeddings_that_have_no_angle_are_named():
    with pytest.raises(InputError, match="an embedding is 0"):
        EncoderSimilarity().compute(predictions=[[0.0, 0.0]], references=[[1.0, 0.0]])
    with pytest.raises(InputError, match=r"texts are \(1, 3\), of images \(1, 2\)"):
        EncoderSimilarity().compute(predictions=[[1.0, 0.0, 0.0]], references=[[1.0, 0.0]])


def test_perplexity_is_over_all_tokens():
    found = Perplexity().compute(predictions=[math.log(2) * 10, math.log(8) * 2], references=[10, 2])
    assert found == {"perplexity": pytest.approx(2 ** (16 / 12)), "num_tokens": 12}
    for likelihoods, tokens in (([1.0], [0]), ([-1.0], [1]), ([float("nan")], [1])):
        with pytest.raises(InputError, match="at least one token"):
            Perplexity().compute(predictions=likelihoods, references=tokens)


def test_calibration_is_that_of_match_figures():
    rng = np.random.default_rng(0)
    logits = rng.normal(size=100)
    happened = rng.random(100) < 0.5
    probabilities = 1 / (1 + np.exp(-logits))
    found = Calibration().compute(predictions=probabilities, references=happened)
    expected = match_figures(logits, happened)
    assert found == {name: pytest.approx(value) for name, value in expected.items()}
    with pytest.raises(InputError, match=r"not in \[0, 1\]"):
        Calibration().compute(predictions=[1.5], references=[True])
    with pytest.raises(InputError, match="a reference is neither 0 nor 1"):
        Calibration().compute(predictions=[0.5, 0.1], references=[2, 0])


def test_of_nothing_there_is_no_figure():
    nothing = {"predictions": [], "references": []}
    assert Calibration().compute(**nothing) == {"expected_calibration_error": None, "brier": None}
    assert Perplexity().compute(**nothing) == {"perplexity": None, "num_tokens": 0}


def test_latency_is_by_stage():
    found = Latency().compute(predictions=[1.0, 3.0, 0.5], references=["lookup", "lookup", "embedding"])
    assert list(found) == ["embedding", "lookup"]
    assert found["lookup"]["median_s"] == 2.0
    assert found["lookup"]["p95_s"] == pytest.approx(2.9)


def test_they_are_combined():
    both = evaluate.combine([Perplexity(), Perplexity()])
    found = both.compute(predictions=[1.0], references=[1])
    assert len(found) == 4
    assert {round(value, 3) for name, value in found.items() if name.endswith("_perplexity")} == {2.718}
