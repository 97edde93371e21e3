"""Splits by group: no patient, image or study stands on two sides."""

import hashlib
from array import array
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby

from medfinetune.data.ledger import Ledger
from medfinetune.data.schema import SOURCES, SPLITS

_TRAIN, _VALIDATION, _TEST = range(len(SPLITS))
# So many pairs are left to be picked when the search for an exact sum begins; before, groups are taken as they come.
_RESERVE = 512


@dataclass(slots=True)
class Group:
    """Pairs that must stay on one side.

    Attributes:
        id: Made of the group's keys alone, so that it is the same in every run.
        size: Number of pairs.
        stratum: What is to be as frequent in every split: the label that most of its pairs carry, and their languages.
    """

    id: str
    size: int
    stratum: str


def join(links: Iterable[tuple[str, int]], size: int) -> array:
    """Joins what shares a key, also through others: a union over every link.

    Args:
        links: Keys with the number of what they belong to, sorted by key.
        size: One more than the greatest number.

    Returns:
        For each number the smallest one of its group.
    """
    parents = array("q", range(size))

    def find(n: int) -> int:
        while parents[n] != n:
            parents[n] = parents[parents[n]]
            n = parents[n]
        return n

    for _, same in groupby(links, key=lambda link: link[0]):
        (_, first), *others = same
        for _, other in others:
            low, high = sorted((find(first), find(other)))
            parents[high] = low
    return array("q", (find(n) for n in range(size)))


def link_groups(ledger: Ledger) -> None:
    """Gives each pair the id of its group: pairs that share an image, a patient or a study, also through others."""
    for n, pair in ledger.pairs():
        ledger.change("INSERT INTO links VALUES (?, ?)", ((key, n) for key in pair.links))
    size = ledger.number("SELECT MAX(n) FROM pairs") + 1
    roots = join(ledger.query("SELECT key, n FROM links ORDER BY key, n"), size)
    ledger.change("UPDATE pairs SET root = ? WHERE n = ?", ((root, n) for n, root in enumerate(roots)))
    ledger.change("CREATE INDEX by_root ON pairs (root)", [()])
    ledger.define("hash_of", _hash, 1)
    # Named after the smallest key, whatever the order of the pairs.
    ledger.change(
        "UPDATE pairs SET group_id = ? WHERE root = ?",
        (
            (f"group-{digest[:16]}", root)
            for root, digest in ledger.query(
                "SELECT root, hash_of(MIN(key)) FROM links JOIN pairs USING (n) GROUP BY root"
            ).fetchall()
        ),
    )
    ledger.change("CREATE INDEX by_group ON pairs (group_id)", [()])


def draw_splits(ledger: Ledger, validation_fraction: float, test_fraction: float, seed: int) -> tuple[int, int]:
    """Gives each pair a split.

    A group with a published split takes it whole; of several, test beats validation, and validation beats train. The
    others are drawn within their source (of several, the first in `SOURCES`); see `draw`.

    Returns:
        How many pairs gave up their published split for a stronger one in their group, and how many that had none
        took that of their group.
    """
    by_source: dict[str, list[Group]] = defaultdict(list)
    for group, source in _undecided(ledger):
        by_source[source].append(group)
    for groups in by_source.values():
        chosen = draw(groups, validation_fraction, test_fraction, seed)
        ledger.change(
            "UPDATE pairs SET split = ? WHERE group_id = ?", ((s, group_id) for group_id, s in chosen.items())
        )
    ledger.change(
        "UPDATE pairs SET split = ? WHERE group_id = ?",
        ledger.query("SELECT MAX(given), group_id FROM pairs GROUP BY group_id HAVING MAX(given) >= 0").fetchall(),
    )
    num_moved = ledger.number("SELECT COUNT(*) FROM pairs WHERE given != split")
    num_followed = ledger.number(
        "SELECT COUNT(*) FROM pairs WHERE given IS NULL AND group_id IN (SELECT group_id FROM pairs WHERE given >= 0)"
    )
    return num_moved, num_followed


def _undecided(ledger: Ledger) -> Iterable[tuple[Group, str]]:
    """The groups without a published split, and the source that each is drawn in."""
    rows = ledger.query(
        "SELECT group_id, source, language, COALESCE(label, ''), COUNT(*), MAX(given) FROM pairs "
        "GROUP BY 1, 2, 3, 4 ORDER BY 1, 2, 3, 4"
    )
    for group_id, members in groupby(rows, key=lambda row: row[0]):
        kinds = list(members)
        if any(given is not None for *_, given in kinds):
            continue
        labels: Counter[str] = Counter()
        for _, _, _, label, count, _ in kinds:
            labels[label] += count
        label = min(labels, key=lambda label: (-labels[label], label))
        languages = "+".join(sorted({language for _, _, language, *_ in kinds}))
        source = min((source for _, source, *_ in kinds), key=SOURCES.index)
        yield Group(group_id, sum(count for *_, count, _ in kinds), f"{label} {languages}"), source


def draw(groups: Sequence[Group], validation_fraction: float, test_fraction: float, seed: int) -> dict[str, int]:
    """Draws the splits of one source's groups, each stratum in its share as far as the groups allow.

    A group's place in the draw depends on `seed` and its own id alone, so that other sources, and most further groups,
    do not reshuffle the others. The splits get `round(fraction * pairs)` pairs wherever the groups' sizes allow.
    (scikit-learn's `StratifiedGroupKFold`, with which the tests compare, gives only whole folds and reshuffles all.)

    Returns:
        Group id to place in `SPLITS`.
    """
    total = sum(group.size for group in groups)
    free = sorted(groups, key=lambda group: _hash(f"{seed}:{group.id}"))
    chosen = {}
    for split, fraction in ((_TEST, test_fraction), (_VALIDATION, validation_fraction)):
        picked = _pick_by_stratum(free, round(fraction * total), seed)
        chosen |= dict.fromkeys(picked, split)
        free = [group for group in free if group.id not in picked]
    return chosen | {group.id: _TRAIN for group in free}


def _pick_by_stratum(groups: Sequence[Group], wanted: int, seed: int) -> set[str]:
    strata: dict[str, list[Group]] = defaultdict(list)
    for group in groups:
        strata[group.stratum].append(group)
    sizes = {name: sum(group.size for group in members) for name, members in strata.items()}
    picked: dict[str, int] = {}
    for name, quota in _quotas(sizes, wanted, seed).items():
        picked |= {group.id: group.size for group in _pick(strata[name], quota)}
    # What the strata could not fill, because their groups are large, any group may that is left.
    left = [group for group in groups if group.id not in picked]
    picked |= {group.id: group.size for group in _pick(left, wanted - sum(picked.values()))}
    return set(picked)


def _quotas(sizes: dict[str, int], wanted: int, seed: int) -> dict[str, int]:
    """Parts `wanted` by the sizes of the strata: whole numbers, what is left over to the largest remainders."""
    total = max(sum(sizes.values()), 1)
    quotas = {name: wanted * size // total for name, size in sizes.items()}
    order = sorted(sizes, key=lambda name: (-(wanted * sizes[name] % total), _hash(f"{seed}:{name}")))
    for name in order[: wanted - sum(quotas.values())]:
        quotas[name] += 1
    return quotas


def _pick(groups: Sequence[Group], wanted: int) -> list[Group]:
    """Picks groups, early ones first, whose sizes add up to `wanted`, or to the nearest sum below it."""
    picked, start = [], 0
    while start < len(groups) and wanted - groups[start].size >= _RESERVE:
        picked.append(groups[start])
        wanted -= groups[start].size
        start += 1
    rest = [group for group in groups[start:] if group.size <= wanted]
    # Bit s of reachable[k]: the last k groups can make the sum s.
    mask = (1 << (wanted + 1)) - 1 if wanted > 0 else 1
    reachable = [1]
    for group in reversed(rest):
        sums = (reachable[-1] | reachable[-1] << group.size) & mask
        # One shared object once every sum is reachable: memory stays small.
        reachable.append(reachable[-1] if sums == reachable[-1] else sums)
    left = reachable[-1].bit_length() - 1
    for i, group in enumerate(rest):
        # A group is passed over only if the later ones could not complete the sum with it.
        if group.size <= left and reachable[len(rest) - i - 1] >> (left - group.size) & 1:
            picked.append(group)
            left -= group.size
    return picked


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
