"""Training images turned, cropped, brightened and mirrored, on the cache's pixels; texts follow their sides."""

import math
from collections.abc import Callable
from typing import Any

import datasets
import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from medfinetune.encoder.cache import PairCache
from medfinetune.encoder.config import SigLIPConfig
from medfinetune.encoder.sides import swap_sides

_OFF = {"rotation_degrees": 0, "crop_scale_min": 1, "brightness": 0, "contrast": 0, "horizontal_flip_probability": 0}


def augment_pairs(
    pairs: datasets.Dataset, make_cache: Callable[[datasets.Dataset], PairCache], args: SigLIPConfig
) -> Any:
    """The training pairs, decoded once and altered anew in each epoch where the settings ask for it.

    Args:
        pairs: As `load_pairs` gives them.
        make_cache: Makes a `PairCache` of pairs; called again with swapped texts where images may be mirrored.
        args: The run's settings.

    Returns:
        The `PairCache` itself where no strength is set; else `AugmentedPairs` around it.
    """
    cache = make_cache(pairs)
    if not augments(args):
        return cache
    if not args.horizontal_flip_probability:
        return AugmentedPairs(cache, args)
    mirrored_pairs, can_mirror = mirror_texts(pairs)
    if args.process_index == 0:
        print(
            f"horizontal_flip_probability: {sum(can_mirror):,} of {len(pairs):,} training pairs may be mirrored; the "
            "others name a side that cannot be swapped safely"
        )
    return AugmentedPairs(cache, args, make_cache(mirrored_pairs), can_mirror)


def augments(args: SigLIPConfig) -> list[str]:
    """The settings that alter training images, by name; none where they are used as they are."""
    return [key for key, off in _OFF.items() if getattr(args, key) != off]


def mirror_texts(pairs: datasets.Dataset) -> tuple[datasets.Dataset, list[bool]]:
    """The pairs with left and right swapped in `text` and `label`, and which of them it could be done for."""
    can_mirror = [True] * len(pairs)
    for column in ("text", "label"):
        if column in pairs.column_names:
            before = list(pairs.select_columns([column])[column])
            swapped = [None if value is None else swap_sides(value) for value in before]
            for i, (old, new) in enumerate(zip(before, swapped, strict=True)):
                if old is not None and new is None:
                    can_mirror[i], swapped[i] = False, old
            feature = pairs.features[column]
            pairs = pairs.remove_columns(column).add_column(column, swapped, feature=feature)
    return pairs, can_mirror


class AugmentedPairs(torch.utils.data.Dataset):
    """A `PairCache` whose images are altered by chance.

    What happens to a pair follows from the run's seed, the epoch and the pair alone: the same in every number of
    processes and workers, and in a resumed run.
    """

    def __init__(
        self,
        cache: PairCache,
        args: SigLIPConfig,
        mirrored: PairCache | None = None,
        can_mirror: list[bool] | None = None,
    ):
        """
        Args:
            cache: The pairs as they are.
            args: The strengths.
            mirrored: The same pairs in the same order, with the sides in their texts swapped.
            can_mirror: For which of them that was safe; the others are never mirrored.
        """
        self._cache, self._args, self._mirrored, self._can_mirror = cache, args, mirrored, can_mirror
        self.texts, self.languages, self.image_keys = cache.texts, cache.languages, cache.image_keys
        self.input_ids = cache.input_ids
        self.collate = cache.collate
        # Shared, so that workers that live longer than an epoch see it too.
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()

    def set_epoch(self, epoch: int) -> None:
        """Draws anew; called before each epoch."""
        self._epoch.fill_(epoch)

    def __len__(self) -> int:
        return len(self._cache)

    def __getitem__(self, i: int) -> dict[str, Any]:
        args = self._args
        rng = np.random.default_rng((args.seed, int(self._epoch), i))
        degrees, x, y, brightness, contrast = rng.uniform(-1, 1, size=5)
        chance, area = rng.uniform(size=2)
        row = dict(self._cache[i])
        mirror = chance < args.horizontal_flip_probability and self._mirrored is not None and self._can_mirror[i]
        if mirror:
            row = self._mirrored[i] | {"pixels": row["pixels"]}
            if "group_ids" in row:
                # The mirrored image is another one: the texts of its twin are not true of it.
                row["group_ids"] = torch.cat([-row["group_ids"][:1], row["group_ids"][1:]])
        pixels = alter(
            row["pixels"],
            degrees=degrees * args.rotation_degrees,
            side=math.sqrt(1 - area * (1 - args.crop_scale_min)),
            x=x,
            y=y,
            mirror=mirror,
            brightness=1 + brightness * args.brightness,
            contrast=1 + contrast * args.contrast,
        )
        return row | {"pixels": pixels}


def alter(
    pixels: np.ndarray,
    *,
    degrees: float = 0.0,
    side: float = 1.0,
    x: float = 0.0,
    y: float = 0.0,
    mirror: bool = False,
    brightness: float = 1.0,
    contrast: float = 1.0,
) -> np.ndarray:
    """Mirrors an image, turns it about its middle, cuts a window out, scales that up (bilinear) and changes its light.

    All of it in one pass over where the pixels come from and one over their values.

    Args:
        pixels: `(H, W, 3)`, uint8; quickest as a view of planes, and where these are equal (grey).
        degrees: Anticlockwise. What comes in from outside repeats the edge.
        side: Length of the window's sides over the image's, in (0, 1].
        x: Where the window lies, from -1 (left) to 1 (right).
        y: The same, from -1 (top) to 1 (bottom).
        mirror: Left and right are exchanged, before all else.
        brightness: Factor of every value, after the contrast.
        contrast: Factor of the distance to the image's mean.

    Returns:
        `(H, W, 3)`, uint8, cut off at 0 and 255; the same pixels where nothing is asked for.
    """
    turned, lit = degrees != 0 or side != 1, brightness != 1 or contrast != 1
    if mirror and not turned:
        pixels = pixels[:, ::-1]
    if not turned and not lit:
        return pixels
    planes = pixels.transpose(2, 0, 1)
    grey = (planes[1:] == planes[0]).all()
    values = torch.from_numpy(planes[: 1 if grey else 3].astype(np.float32, order="C"))
    if turned:
        grid = _sources(*values.shape[1:], degrees, side, x, y, mirror)
        values = F.grid_sample(values[None], grid, mode="bilinear", padding_mode="border", align_corners=False)[0]
    # ((value - mean) * contrast + mean) * brightness; and a half, as whole numbers are made by cutting off.
    offset = values.mean() * ((1 - contrast) * brightness) + 0.5
    values = values.mul_(contrast * brightness).add_(offset).clamp_(0, 255)
    altered = values.numpy().astype(np.uint8)
    return (altered.repeat(3, axis=0) if grey else altered).transpose(1, 2, 0)


def _sources(height: int, width: int, degrees: float, side: float, x: float, y: float, mirror: bool) -> Tensor:
    """Where each pixel comes from, `(1, H, W, 2)`, -1 to 1: as `F.affine_grid`, in a fraction of its time."""
    cos, sin = side * math.cos(math.radians(degrees)), side * math.sin(math.radians(degrees))
    across, down = ((torch.arange(number) * 2 + 1) / number - 1 for number in (width, height))
    sign = -1 if mirror else 1
    # A complex number is an (x, y): what the columns and what the rows give is added up in one pass.
    of_columns = torch.complex(across * (sign * cos), across * (sin * width / height))
    of_rows = torch.complex((x * (1 - side) - down * (sin * height / width)) * sign, down * cos + y * (1 - side))
    return torch.view_as_real(of_rows[:, None] + of_columns)[None]
