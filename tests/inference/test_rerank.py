"""The choice among candidates."""

import math

import pytest
import torch

from medfinetune.evaluation.lexicon import load_lexicon
from medfinetune.inference.rerank import rank_candidates, token_f1


class Embedder:
    """Texts at given cosines of the image."""

    scale, bias = 10.0, -5.0

    def __init__(self, cosines):
        self._cosines = cosines

    def texts(self, texts):
        return torch.tensor([[self._cosines[text], 0.0] for text in texts])

    def match_probability(self, cosine):
        return 1 / (1 + math.exp(-(self.scale * cosine + self.bias)))


IMAGE = torch.tensor([1.0, 0.0])


def test_token_f1():
    assert token_f1(["a", "b", "b"], ["b", "b", "c", "c"]) == pytest.approx(2 * 2 / 7)
    assert token_f1([], []) == 1.0
    assert token_f1(["a"], []) == 0.0


def test_scores_are_those_of_the_formula():
    cosines = {"Heart normal.": 0.3, "Heart enlarged.": 0.1, "heart normal": 0.3, "Clear.": 0.2}
    texts = ["Heart enlarged.", "Heart normal.", "heart normal", "Clear."]
    ranked = rank_candidates(texts, IMAGE, Embedder(cosines), weight=0.25)
    assert [(c.text, c.count) for c in ranked] == [("Heart normal.", 2), ("Clear.", 1), ("Heart enlarged.", 1)]
    total = math.exp(3) + math.exp(2) + math.exp(1)
    normal, clear, enlarged = ranked
    # One other says the same, one shares a word of two, one shares none.
    assert normal.agreement == pytest.approx((1 + 0.5 + 0) / 3, abs=1e-6)
    assert enlarged.agreement == pytest.approx((0.5 + 0.5 + 0) / 3, abs=1e-6)
    assert clear.agreement == 0
    assert normal.score == pytest.approx(0.75 * math.exp(3) / total + 0.25 * 0.5, abs=1e-6)
    assert normal.match_probability == pytest.approx(1 / (1 + math.exp(2)), abs=1e-6)


def test_either_side_may_decide_alone():
    cosines = {"Fluid left.": 0.1, "Fluid right.": 0.1, "Clear lungs.": 0.5}
    texts = ["Fluid left.", "Fluid right.", "Clear lungs."]
    assert rank_candidates(texts, IMAGE, Embedder(cosines), weight=0.0)[0].text == "Clear lungs."
    assert rank_candidates(texts, IMAGE, Embedder(cosines), weight=1.0)[0].text == "Fluid left."  # the earlier


def test_a_single_no_is_never_merged_away():
    texts = ["The heart is normal and there is no effusion.", "The heart is normal and there is effusion."]
    texts += ["气胸。", "无气胸。", "Size 1.5 cm", "Size 15 cm", "<5 mm", ">5 mm"]
    ranked = rank_candidates(texts, IMAGE, Embedder(dict.fromkeys(texts, 0.1)))
    assert len(ranked) == len(texts)
    same = ["No effusion.", "no  effusion", "NO EFFUSION!"]
    assert len(rank_candidates(same, IMAGE, Embedder(dict.fromkeys(same, 0.1)))) == 1


def test_with_a_lexicon_it_is_findings_that_agree():
    """Two say the same in other words; a third takes the first one's words and turns one finding."""
    texts = [
        "No pleural effusion. Heart enlarged.",
        "Heart enlarged. Left pleural effusion.",
        "Enlarged heart. No effusion.",
    ]
    flat = Embedder(dict.fromkeys(texts, 0.1))
    found = {c.text: c.agreement for c in rank_candidates(texts, IMAGE, flat, 1.0, load_lexicon("phantom"))}
    assert found[texts[0]] == pytest.approx((1 / 2 + 1) / 2)
    assert found[texts[1]] == pytest.approx(1 / 2)
    # And where nothing is stated, words.
    silent = ["Something.", "Something else."]
    found = rank_candidates(silent, IMAGE, Embedder(dict.fromkeys(silent, 0.1)), 1.0, load_lexicon("phantom"))
    assert found[0].agreement == pytest.approx(2 / 3, abs=1e-6)


def test_one_text_agrees_with_itself():
    only = rank_candidates(["Clear."], IMAGE, Embedder({"Clear.": 0.3}))[0]
    assert (only.agreement, only.score, only.count) == (1.0, 1.0, 1)
