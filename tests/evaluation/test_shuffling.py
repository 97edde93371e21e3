import random

import pytest

from medfinetune.errors import InputError
from medfinetune.evaluation.shuffling import derangement


@pytest.mark.parametrize("seed", range(30))
def test_no_case_keeps_its_pixels_and_each_image_is_used_once(seed):
    rng = random.Random(seed)
    keys = [rng.randrange(6) for _ in range(rng.randrange(12, 40))]
    while 2 * max(keys.count(key) for key in keys) > len(keys):
        keys.append(rng.randrange(6, 99))
    permutation = derangement(keys, seed)
    assert sorted(permutation) == list(range(len(keys)))
    assert all(keys[i] != keys[j] for i, j in enumerate(permutation))


def test_half_of_the_cases_may_share_one_image():
    keys = ["a", "b", "a", "c"]
    assert all(keys[i] != keys[j] for i, j in enumerate(derangement(keys)))


def test_strata_keep_to_themselves():
    keys, strata = list("abcdef"), [1, 2, 1, 2, 1, 2]
    permutation = derangement(keys, 3, strata)
    assert all(strata[i] == strata[j] and i != j for i, j in enumerate(permutation))


def test_seeds():
    keys = list(range(50))
    assert derangement(keys, 1) == derangement(keys, 1) != derangement(keys, 2)
    assert derangement([], 0) == []


@pytest.mark.parametrize(("keys", "strata"), [(["a"], None), (["a", "a", "b"], None), (["a", "b", "c"], [1, 1, 2])])
def test_the_impossible_is_said(keys, strata):
    with pytest.raises(InputError, match="images cannot be shuffled among the cases: one image belongs to"):
        derangement(keys, 0, strata)
