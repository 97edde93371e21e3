import numpy as np
import pytest

from medfinetune.data.phantom.draw import draw
from medfinetune.data.phantom.findings import ATTRIBUTES

NORMAL = {attribute: values[0] for attribute, values in ATTRIBUTES.items()}


def drawn(findings, seed=3, **given):
    return np.asarray(draw(findings, np.random.default_rng(seed), **given)).astype(int)


@pytest.mark.parametrize("attribute", ATTRIBUTES)
def test_every_value_is_visible(attribute):
    """The same place, size and noise: only what was said to differ does, and it does."""
    pictures = [drawn(NORMAL | {attribute: value}) for value in ATTRIBUTES[attribute]]
    for i, one in enumerate(pictures):
        for other in pictures[:i]:
            assert (abs(one - other).max(axis=2) > 30).sum() > 20


def test_place_size_contrast_and_noise_vary():
    pictures = [drawn(NORMAL, seed) for seed in range(6)]
    for i, one in enumerate(pictures):
        for other in pictures[:i]:
            assert abs(one - other).mean() > 5


def test_sides_are_the_patients():
    """A radiograph faces the reader: the patient's left is on the image's right."""
    left, right = (drawn(NORMAL | {"effusion": side})[:48].sum(axis=(0, 2)) for side in ("left", "right"))
    brighter_if_left = left - right
    assert brighter_if_left[:48].sum() < -1000
    assert brighter_if_left[48:].sum() > 1000


def test_parts_and_size():
    skin = drawn(NORMAL, parts=("skin",), size_px=64)
    assert skin.shape == (64, 64, 3)
    assert skin[:24, :, :].mean() < 40  # no chest above
