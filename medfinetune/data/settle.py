"""Drops what only the pixels tell: disputed grades and labels, and the same images with the same text."""

from itertools import groupby

from medfinetune.data import kellgren_lawrence
from medfinetune.data.ledger import Ledger
from medfinetune.data.schema import DUPLICATE, Dropped, Pair

_GRADED = ("knee", "chen")


def settle(ledger: Ledger, keep_every_grade: bool) -> None:
    """Leaves one pair for each image, language and grade in the graded sources, then one for each image and text.

    Where the same image and text carry several labels, none is left.

    Args:
        ledger: All pairs, with their images.
        keep_every_grade: Knee images that carry several grades keep one pair for each.
    """
    for source in _GRADED:
        one_for_each = "pixels, language, label" if source == "knee" and keep_every_grade else "pixels, language"
        _settle(ledger, source, one_for_each)
    for (members,) in ledger.query(
        "SELECT group_concat(n) FROM pairs GROUP BY pixels, said, language, task HAVING COUNT(*) > 1"
    ):
        same = list(ledger.pairs(f"n IN ({members})"))
        labels = {pair.record.label for _, pair in same} - {None}
        if len(labels) > 1:
            # Nobody can tell which is right; as with the knees, none is kept.
            given = ", ".join(f"{pair.record.where} (label {pair.record.label})" for _, pair in same)
            for n, pair in same:
                ledger.drop(n, pair.drop("labels disagree", f"same pixels and text: {given}"))
            continue
        (n, kept), *others = same
        kept.record.label = next(iter(labels), None)
        for other, pair in others:
            kept.absorb(pair)
            ledger.drop(other, pair.drop(DUPLICATE, f"same pixels and text as {kept.record.where}"))
        ledger.save(n, kept)


def _settle(ledger: Ledger, source: str, one_for_each: str) -> None:
    keys = ledger.query(f"SELECT {one_for_each}, n FROM pairs WHERE source = ? ORDER BY {one_for_each}, n", source)
    for _, members in groupby(keys, key=lambda row: row[:-1]):
        numbers = ", ".join(str(row[-1]) for row in members)
        same: list[tuple[int, Pair]] = list(ledger.pairs(f"n IN ({numbers})"))
        outcomes = kellgren_lawrence.settle([pair for _, pair in same])
        for (n, _), outcome in zip(same, outcomes, strict=True):
            if isinstance(outcome, Dropped):
                ledger.drop(n, outcome)
            else:
                ledger.save(n, outcome)
