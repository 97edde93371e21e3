import random
from collections import Counter

import numpy as np
import pytest
from sklearn.model_selection import StratifiedGroupKFold

from medfinetune.data.images import StoredImage
from medfinetune.data.ledger import Ledger
from medfinetune.data.schema import SPLITS, Pair, Record
from medfinetune.data.split import Group, draw, draw_splits, link_groups


def pair(name, *keys, source="reports", pixels=(), split=None, label=None, language="en", patient=None) -> Pair:
    shas = pixels or (f"sha-{source}-{name}",)
    record = Record(name, source, name, list(shas), "text", language, "caption", label=label, patient_id=patient)
    record.group_keys, record.split = list(keys), split
    return Pair(record, [StoredImage(sha, f"{sha}.png", 1, 1) for sha in shas])


def enter(pairs) -> Ledger:
    ledger = Ledger()
    for n, item in enumerate(pairs, start=1):
        ledger.add(item.record)
        ledger.save(n, item)
    link_groups(ledger)
    return ledger


def groups_of(pairs) -> list[str]:
    return [group for (group,) in enter(pairs).query("SELECT group_id FROM pairs ORDER BY n")]


def splits_of(pairs, validation=0.05, test=0.0, seed=0) -> list[str]:
    ledger = enter(pairs)
    draw_splits(ledger, validation, test, seed)
    return [SPLITS[split] for (split,) in ledger.query("SELECT split FROM pairs ORDER BY n")]


def test_links_are_transitive():
    pairs = [
        pair("a", patient="1"),
        pair("b", "study:9", patient="1"),
        pair("c", "study:9", pixels=("x", "y")),
        pair("d", pixels=("y",)),
        pair("e", patient="2"),
        pair("f", source="knee", patient="1"),
    ]
    groups = groups_of(pairs)
    assert len(set(groups[:4])) == 1
    # Another source's patient 1 is another person.
    assert len(set(groups)) == 3


def test_a_long_chain_is_one_group():
    pairs = [pair(str(i), f"study:{i}", f"study:{i + 1}") for i in range(300)]
    random.Random(0).shuffle(pairs)
    assert len(set(groups_of(pairs))) == 1


def test_a_patient_in_the_header_ties_too():
    pairs = [pair("a"), pair("b"), pair("c")]
    for item, patient in zip(pairs, ("p", "p", "q"), strict=True):
        item.images[:] = [StoredImage(item.images[0].sha256, "x", 1, 1, patient=patient)]
    first, second, third = groups_of(pairs)
    assert first == second != third


def test_group_ids_do_not_depend_on_the_order():
    pairs = [pair(str(i), f"patient:{i // 3}", f"study:{i // 2}") for i in range(40)]
    expected = dict(zip((p.record.id for p in pairs), groups_of(pairs), strict=True))
    random.Random(1).shuffle(pairs)
    assert dict(zip((p.record.id for p in pairs), groups_of(pairs), strict=True)) == expected


@pytest.mark.parametrize("seed", [0, 1, 42])
def test_the_original_mix_splits_into_2201_and_116(seed):
    counts = {"knee": 1500, "pad_ufes": 400, "slake": 300, "reports": 117}
    pairs = [pair(str(i), source=source) for source, count in counts.items() for i in range(count)]
    assert Counter(splits_of(pairs, seed=seed)) == {"train": 2201, "validation": 116}


def random_groups(seed, num_groups=120, labels="aaaabbc") -> list[Group]:
    rng = random.Random(seed)
    return [Group(f"g{i}", rng.choice([1, 2, 2, 3, 7]), rng.choice(labels)) for i in range(num_groups)]


@pytest.mark.parametrize("seed", range(8))
def test_totals_are_exact_wherever_groups_allow(seed):
    groups = random_groups(seed)
    total = sum(group.size for group in groups)
    chosen = draw(groups, 0.1, 0.2, seed)
    sizes = Counter()
    for group in groups:
        sizes[SPLITS[chosen[group.id]]] += group.size
    assert sizes["validation"] == round(0.1 * total)
    assert sizes["test"] == round(0.2 * total)


@pytest.mark.parametrize("seed", range(8))
def test_a_group_that_would_spoil_the_sum_is_passed_over(seed):
    groups = [Group(str(i), 7 if i % 2 else 4, "") for i in range(20)]
    chosen = draw(groups, 8 / 110, 0, seed)
    assert sum(group.size for group in groups if chosen[group.id] == 1) == 8


def test_groups_too_large_give_the_nearest_below():
    chosen = draw([Group(str(i), 7, "") for i in range(10)], 0.15, 0, 0)
    assert Counter(chosen.values()) == {0: 9, 1: 1}


def test_many_groups_are_drawn_at_once():
    groups = [Group(str(i), 2, str(i % 3)) for i in range(20_000)]
    chosen = draw(groups, 0.1, 0, 0)
    assert Counter(chosen.values()) == {0: 18_000, 1: 2_000}


def imbalance(groups, in_validation) -> float:
    """The greatest difference of a label's share between validation and all."""
    every, some = Counter(), Counter()
    for group in groups:
        every[group.stratum] += group.size
        some[group.stratum] += group.size * (group.id in in_validation)
    return max(abs(some[s] / some.total() - every[s] / every.total()) for s in every)


def test_strata_are_balanced_at_least_as_well_as_by_scikit_learn():
    ours, theirs = [], []
    for seed in range(10):
        groups = random_groups(seed, 300, "a" * 20 + "b" * 6 + "c" * 3 + "d")
        chosen = draw(groups, 0.1, 0, seed)
        ours.append(imbalance(groups, {name for name, split in chosen.items() if split == 1}))
        rows = [(group.id, group.stratum) for group in groups for _ in range(group.size)]
        names, labels = map(np.array, zip(*rows, strict=True))
        folds = StratifiedGroupKFold(10, shuffle=True, random_state=seed).split(names, labels, names)
        theirs.append(imbalance(groups, set(names[next(iter(folds))[1]])))
    assert np.mean(ours) <= np.mean(theirs)
    assert max(ours) < 0.02


def test_labels_and_languages_are_as_frequent_in_each_split():
    pairs = []
    for i in range(1000):
        label, language = "rare" if i % 10 == 0 else "common", "zh" if i % 4 == 0 else "en"
        pairs.append(pair(str(i), label=label, language=language))
    splits = splits_of(pairs, 0.1, 0.2)
    for of_split, total in (("validation", 100), ("test", 200)):
        inside = [item.record for item, split in zip(pairs, splits, strict=True) if split == of_split]
        assert len(inside) == total
        assert abs(sum(record.label == "rare" for record in inside) - total / 10) <= 1
        assert abs(sum(record.language == "zh" for record in inside) - total / 4) <= 1


def test_seed_decides_and_no_source_reshuffles_another():
    knee = [pair(str(i), source="knee", label=str(i % 5)) for i in range(203)]
    reports = [pair(str(i), source="reports") for i in range(101)]
    knee_alone, reports_alone = splits_of(knee), splits_of(reports)
    assert splits_of(knee) == knee_alone
    assert splits_of(knee, seed=1) != knee_alone
    both = splits_of(knee + reports)
    assert (both[:203], both[203:]) == (knee_alone, reports_alone)


def test_published_splits_are_kept_and_take_their_group():
    pairs = [
        pair("a", "patient:1", split="train"),
        pair("b", "patient:1", split="validation"),
        pair("c", "patient:2", split="validation"),
        pair("d", "patient:2", split="test"),
        pair("e", "patient:2"),
        pair("f", split="train"),
    ]
    ledger = enter(pairs)
    assert draw_splits(ledger, 0.9, 0.0, 0) == (2, 1)
    splits = [SPLITS[split] for (split,) in ledger.query("SELECT split FROM pairs ORDER BY n")]
    assert splits == ["validation", "validation", "test", "test", "test", "train"]
