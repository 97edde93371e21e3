import math

import numpy as np
import torch
from scipy.special import expit
from sklearn.metrics import brier_score_loss
from torch.nn import functional as F

from medfinetune.evaluation.embedded import EmbeddedSplit, number_images
from medfinetune.evaluation.matching import match_calibration, matched_and_unmatched


def split_of(size=40, seed=0):
    generator = torch.Generator().manual_seed(seed)
    keys = [f"image {i // 2}" for i in range(size)]
    place, rows = number_images(keys)
    columns = {
        "text": [f"text {i % 12}" for i in range(size)],
        "language": ["en" if i % 2 else "zh" for i in range(size)],
        "source": ["knee" if i < size // 2 else "reports" for i in range(size)],
        "pixel_sha256": [[key] for key in keys],
        "label": [str(i // 2 % 3) if i < size // 2 else None for i in range(size)],
    }
    embeds = F.normalize(torch.randn(len(rows), 6, generator=generator), dim=-1)
    patients = [("knee", str(i // 3)) if i < 9 else None for i in range(len(rows))]
    columns["patient_id"] = [patients[image][1] if patients[image] else None for image in place]
    noise = torch.randn(size, 6, generator=generator)
    texts = F.normalize(embeds[place] + 0.8 * noise, dim=-1)
    return EmbeddedSplit(None, columns, keys, rows, place, embeds, patients), texts


def test_unmatched_pairs_share_nothing_that_could_make_them_match():
    split, _ = split_of()

    def given_texts(seed=0):
        return matched_and_unmatched(split.pair_embeds, texts, split.groups, split.columns["language"], seed)

    size = len(split.keys)
    rows = torch.arange(size, dtype=torch.float32)
    # The image of row i says 1, and its text says i: the products tell which text an image was given.
    split.embeds, texts = torch.ones(len(split.rows), 1), rows[:, None]
    given, matched = given_texts()
    assert matched.sum() == size
    assert given[:size].tolist() == list(range(size))
    assert (~matched).sum() == size
    columns = split.columns
    for row, other in enumerate(given[size:].astype(int)):
        assert columns["language"][row] == columns["language"][other]
        assert columns["text"][row] != columns["text"][other]
        assert split.keys[row] != split.keys[other]
        known = columns["label"][row], columns["label"][other]
        assert None in known or known[0] != known[1] or columns["source"][row] != columns["source"][other]
        patients = [split.patients[split.place[i]] for i in (row, other)]
        assert None in patients or patients[0] != patients[1]
    assert not np.array_equal(given, given_texts(seed=1)[0])


def test_figures_before_and_after_and_nothing_is_fitted_on_what_is_evaluated():
    (test, texts), (validation, other_texts) = split_of(), split_of(seed=1)
    cosines, matched = matched_and_unmatched(test.pair_embeds, texts, test.groups, test.columns["language"])
    result = match_calibration(test, texts, 20.0, -10.0, validation, other_texts)
    assert (result["num_matched"], result["num_unmatched"]) == (40, 40)
    trained, refitted = result["as_trained"], result["refitted"]
    assert math.isclose(trained["brier"], brier_score_loss(matched, expit(20 * cosines - 10)))
    assert math.isclose(
        refitted["brier"], brier_score_loss(matched, expit(refitted["scale"] * cosines + refitted["bias"]))
    )
    assert refitted["brier"] < trained["brier"]
    # Other test texts leave the fit as it is.
    again = match_calibration(test, texts.flip(0), 20.0, -10.0, validation, other_texts)
    assert again["refitted"]["scale"] == refitted["scale"]
    assert "refitted" not in match_calibration(test, texts, 20.0, -10.0)
