"""The control: every case is given the image of another case."""

import random
from collections.abc import Hashable, Sequence

from medfinetune.errors import InputError


def derangement(keys: Sequence[Hashable], seed: int = 0, strata: Sequence[Hashable] | None = None) -> list[int]:
    """A random permutation in which no case keeps its own pixels.

    Args:
        keys: What each case's images are, by content: cases with equal keys never swap among themselves.
        seed: The same seed gives the same permutation.
        strata: Cases swap within a stratum only, e.g. of equally many images; all with all where left out.

    Returns:
        For each case, the place of the case whose images it gets.

    Raises:
        InputError: There is none: one image belongs to more than half of the cases.
    """
    rng = random.Random(seed)
    result = [-1] * len(keys)
    strata = strata if strata is not None else [None] * len(keys)
    for stratum in dict.fromkeys(strata):
        places: dict[Hashable, list[int]] = {}
        for i, key in enumerate(keys):
            if strata[i] == stratum:
                places.setdefault(key, []).append(i)
        groups = list(places.values())
        num_cases, largest = sum(map(len, groups)), max(map(len, groups))
        if 2 * largest > num_cases:
            raise InputError(
                f"images cannot be shuffled among the cases: one image belongs to {largest} of {num_cases} cases"
            )
        rng.shuffle(groups)
        for group in groups:
            rng.shuffle(group)
        # Groups stand side by side, and no step of the largest one's length stays within a group.
        order = [i for group in groups for i in group]
        for place, i in enumerate(order):
            result[i] = order[(place + largest) % num_cases]
    return result
