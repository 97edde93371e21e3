import random
from collections import Counter

import pytest

from medfinetune.data.images import StoredImage
from medfinetune.data.schema import Pair, Record
from medfinetune.data.split import draw_splits, link_groups


def pair(name: str, *keys: str, source: str = "reports", pixels: tuple[str, ...] = (), split=None) -> Pair:
    shas = pixels or (f"sha-{source}-{name}",)
    record = Record(name, source, name, list(shas), "text", "en", "caption", group_keys=list(keys), split=split)
    return Pair(record, [StoredImage(sha, f"{sha}.png", 1, 1) for sha in shas])


def draw(pairs, validation=0.05, test=0.0, seed=0):
    return draw_splits(pairs, link_groups(pairs), validation, test, seed)


def test_links_are_transitive():
    pairs = [
        pair("a", "patient:1"),
        pair("b", "patient:1", "study:9"),
        pair("c", "study:9", pixels=("x", "y")),
        pair("d", pixels=("y",)),
        pair("e", "patient:2"),
    ]
    groups = link_groups(pairs)
    assert len(set(groups[:4])) == 1
    assert groups[4] != groups[0]


def test_group_ids_do_not_depend_on_the_order():
    pairs = [pair(str(i), f"patient:{i // 3}", f"study:{i // 2}") for i in range(40)]
    expected = dict(zip((p.record.id for p in pairs), link_groups(pairs), strict=True))
    random.Random(1).shuffle(pairs)
    assert dict(zip((p.record.id for p in pairs), link_groups(pairs), strict=True)) == expected


@pytest.mark.parametrize("seed", [0, 1, 42])
def test_the_original_mix_splits_into_2201_and_116(seed):
    counts = {"knee": 1500, "pad_ufes": 400, "slake": 300, "reports": 117}
    pairs = [pair(str(i), source=source) for source, count in counts.items() for i in range(count)]
    assert Counter(draw(pairs, seed=seed).splits) == {"train": 2201, "validation": 116}


@pytest.mark.parametrize("seed", range(5))
def test_totals_are_exact_wherever_groups_allow(seed):
    rng = random.Random(seed)
    pairs = []
    for source in ("knee", "pad_ufes", "slake", "reports"):
        for group in range(60):
            size = rng.choice([1, 2, 2, 3, 7, 20])
            pairs += [pair(f"{group}-{i}", f"{source}-{group}", source=source) for i in range(size)]
    outcome = draw(pairs, 0.05, 0.1, seed)
    counts = Counter(outcome.splits)
    assert counts["validation"] == round(0.05 * len(pairs))
    assert counts["test"] == round(0.1 * len(pairs))
    by_group = {}
    for group, split in zip(link_groups(pairs), outcome.splits, strict=True):
        assert by_group.setdefault(group, split) == split


@pytest.mark.parametrize("seed", range(8))
def test_a_group_that_would_spoil_the_sum_is_passed_over(seed):
    pairs = [pair(f"{group}-{i}", f"patient:{group}") for group in range(20) for i in range(7 if group % 2 else 4)]
    assert Counter(draw(pairs, 8 / len(pairs), seed=seed).splits)["validation"] == 8


def test_groups_too_large_give_the_nearest_below():
    pairs = [pair(f"{group}-{i}", f"patient:{group}") for group in range(10) for i in range(7)]
    assert Counter(draw(pairs, 0.15).splits) == {"train": 63, "validation": 7}


def test_seed_decides_and_a_later_source_does_not_reshuffle():
    knee = [pair(str(i), source="knee") for i in range(200)]
    reports = [pair(str(i), source="reports") for i in range(100)]
    alone = draw(knee).splits
    assert draw(knee).splits == alone
    assert draw(knee, seed=1).splits != alone
    assert draw(knee + reports).splits[:200] == alone


def test_published_splits_are_kept_and_take_their_group():
    pairs = [
        pair("a", "patient:1", split="train"),
        pair("b", "patient:1", split="validation"),
        pair("c", "patient:2", split="validation"),
        pair("d", "patient:2", split="test"),
        pair("e", "patient:2"),
        pair("f", split="train"),
    ]
    outcome = draw(pairs, 0.9)
    assert outcome.splits == ["validation", "validation", "test", "test", "test", "train"]
    assert (outcome.num_moved, outcome.num_followed) == (2, 1)
