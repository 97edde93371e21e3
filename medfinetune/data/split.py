"""Splits by group: no patient, image or study stands on two sides."""

import hashlib
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from medfinetune.data.schema import SOURCES, SPLITS, Pair, Split


@dataclass
class SplitOutcome:
    """What `draw_splits` did.

    Attributes:
        splits: One for each pair.
        num_moved: Pairs whose published split gave way to a stronger one in their group.
        num_followed: Pairs without a published split that took that of their group.
    """

    splits: list[Split]
    num_moved: int
    num_followed: int


def link_groups(pairs: Sequence[Pair]) -> list[str]:
    """Joins pairs that share an image or a key (patient, study), also through others: a union over every link.

    Returns:
        A group id for each pair, made of its keys alone, so that it is the same in every run.
    """
    parents: dict[str, str] = {}

    def find(key: str) -> str:
        root = key
        while parents.setdefault(root, root) != root:
            root = parents[root]
        while parents[key] != root:
            parents[key], key = root, parents[key]
        return root

    keys_of = [[*pair.record.group_keys, *(f"pixels:{sha256}" for sha256 in pair.pixels)] for pair in pairs]
    for keys in keys_of:
        for key in keys[1:]:
            # The smaller key becomes the root, whatever the order of the pairs.
            low, high = sorted((find(keys[0]), find(key)))
            parents[high] = low
    return [f"group-{_hash(find(keys[0]))[:16]}" for keys in keys_of]


def draw_splits(
    pairs: Sequence[Pair], group_ids: Sequence[str], validation_fraction: float, test_fraction: float, seed: int
) -> SplitOutcome:
    """Gives each pair a split.

    A group with a published split takes it whole; of several, test beats validation, and validation beats train.
    The other groups are drawn within their source (of several, the first in `SOURCES`) in an order that depends on
    `seed` and their own id alone, so that another source does not reshuffle them. Each source gets its share by
    cumulative rounding, so that the totals are `round(fraction * pairs)` wherever the groups' sizes allow.
    """
    members: dict[str, list[Pair]] = defaultdict(list)
    for pair, group_id in zip(pairs, group_ids, strict=True):
        members[group_id].append(pair)
    published: dict[str, Split] = {}
    drawn: dict[str, list[str]] = {source: [] for source in SOURCES}
    for group_id, group in members.items():
        given = [pair.record.split for pair in group if pair.record.split is not None]
        if given:
            published[group_id] = max(given, key=SPLITS.index)
        else:
            drawn[min((pair.record.source for pair in group), key=SOURCES.index)].append(group_id)
    sizes = {group_id: len(group) for group_id, group in members.items()}
    chosen = _draw(drawn, sizes, validation_fraction, test_fraction, seed) | published
    moved = followed = 0
    for pair, group_id in zip(pairs, group_ids, strict=True):
        moved += pair.record.split not in (None, chosen[group_id])
        followed += pair.record.split is None and group_id in published
    return SplitOutcome([chosen[group_id] for group_id in group_ids], moved, followed)


def _draw(
    groups_by_source: dict[str, list[str]],
    sizes: dict[str, int],
    validation_fraction: float,
    test_fraction: float,
    seed: int,
) -> dict[str, Split]:
    chosen: dict[str, Split] = {}
    num_seen = 0
    targets: dict[Split, int] = {"test": 0, "validation": 0}
    taken: dict[Split, int] = {"test": 0, "validation": 0}
    fractions: dict[Split, float] = {"test": test_fraction, "validation": validation_fraction}
    for group_ids in groups_by_source.values():
        free = sorted(group_ids, key=lambda group_id: _hash(f"{seed}:{group_id}"))
        num_seen += sum(sizes[group_id] for group_id in free)
        for split, fraction in fractions.items():
            targets[split] = round(fraction * num_seen)
            # What an earlier source could not fill, because its groups are large, falls to the next.
            picked = set(_pick([sizes[group_id] for group_id in free], targets[split] - taken[split]))
            for i in picked:
                chosen[free[i]] = split
                taken[split] += sizes[free[i]]
            free = [group_id for i, group_id in enumerate(free) if i not in picked]
        chosen |= dict.fromkeys(free, "train")
    return chosen


def _pick(sizes: Sequence[int], wanted: int) -> list[int]:
    """Picks groups, early ones first, whose sizes add up to `wanted`, or to the nearest sum below it.

    A group is passed over only if the later ones could not complete the sum with it.
    """
    wanted = max(wanted, 0)
    mask = (1 << (wanted + 1)) - 1
    # Bit s of reachable[k]: the last k groups can make the sum s.
    reachable = [1]
    for size in reversed(sizes):
        sums = (reachable[-1] | reachable[-1] << size) & mask
        # One shared object once every sum is reachable: memory stays small.
        reachable.append(reachable[-1] if sums == reachable[-1] else sums)
    left = reachable[-1].bit_length() - 1
    picked = []
    for i, size in enumerate(sizes):
        if size <= left and reachable[len(sizes) - i - 1] >> (left - size) & 1:
            picked.append(i)
            left -= size
    return picked


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
