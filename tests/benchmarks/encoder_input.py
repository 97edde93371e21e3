"""Pairs a second that are ready for the model at 448 px: our cache, plain and augmented, and the image processor."""

import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import datasets
import numpy as np
import yaml
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from medfinetune.data.schema import FEATURES
from medfinetune.encoder.augment import AugmentedPairs
from medfinetune.encoder.cache import PairCache
from medfinetune.encoder.collator import SigLIPCollator
from medfinetune.encoder.config import SigLIPConfig
from medfinetune.encoder.model import load_encoder
from medfinetune.tiny import make_tiny_siglip
from tests.benchmarks.alone import REPO, ratio

NUM_IMAGES = 192
IMAGE_SIZE_PX, MODEL_SIZE_PX = 1024, 448
BATCH = 16
NUM_TURNS, SECONDS_A_TURN = 5, 3
RECIPE = REPO / "recipes" / "encoder" / "siglip_base_448_recommended.yaml"


def write_pairs(folder: Path) -> datasets.Dataset:
    """Photograph-like JPEGs of 1,024 px with a sentence each."""
    folder.mkdir()
    rows = []
    for i in range(NUM_IMAGES):
        rng = np.random.default_rng(i)
        smooth = Image.fromarray(rng.integers(0, 256, (24, 24, 3), dtype=np.uint8))
        smooth = smooth.resize((IMAGE_SIZE_PX, IMAGE_SIZE_PX), Image.Resampling.BICUBIC)
        noise = rng.normal(0, 4, (IMAGE_SIZE_PX, IMAGE_SIZE_PX, 1))
        image = Image.fromarray(np.clip(np.asarray(smooth) + noise, 0, 255).astype(np.uint8))
        image.save(folder / f"{i}.jpg", quality=92)
        text = f"Knee X-ray, Kellgren-Lawrence grade {i % 5}: definite osteophytes, joint space of {i % 7}.{i % 9} mm."
        values = {"id": str(i), "images": [str(folder / f"{i}.jpg")], "pixel_sha256": [f"{i:064}"], "text": text}
        rows.append(dict.fromkeys(FEATURES, "") | values | {"language": "en"})
    return datasets.Dataset.from_list(rows, features=datasets.Features(FEATURES | {"images": [datasets.Image()]}))


def augmented(cache: PairCache, folder: Path) -> AugmentedPairs:
    """The cache's pairs, altered as the recommended recipe does."""
    recipe = yaml.safe_load(RECIPE.read_text(encoding="utf-8"))
    strengths = {key: recipe[key] for key in ("rotation_degrees", "crop_scale_min", "brightness", "contrast")}
    return AugmentedPairs(cache, SigLIPConfig(output_dir=str(folder), use_cpu=True, **strengths))


def rate(rows: Dataset, collate: Callable, num_workers: int) -> float:
    """Pairs a second from the second epoch on, when the workers already run; as many epochs as fill some seconds."""
    options = {"persistent_workers": num_workers > 0, "prefetch_factor": 2 if num_workers else None}
    loader = DataLoader(rows, BATCH, shuffle=True, collate_fn=collate, num_workers=num_workers, **options)
    sum(1 for _ in loader)
    count, started = 0, time.perf_counter()
    while time.perf_counter() - started < SECONDS_A_TURN:
        count += sum(len(batch["input_ids"]) for batch in loader)
    return count / (time.perf_counter() - started)


def measure_input(folder: Path) -> tuple[dict, dict]:
    """Both rates over the processor's, with as many workers as there are cores on all sides."""
    pairs = write_pairs(folder / "jpegs")
    make_tiny_siglip(folder / "siglip")
    _, processor = load_encoder(str(folder / "siglip"), image_size_px=MODEL_SIZE_PX)
    started = time.perf_counter()
    cache = PairCache(pairs, processor, folder / "cache")
    filling = time.perf_counter() - started
    num_workers = len(os.sched_getaffinity(0))
    contenders = {
        "cache": (cache, cache.collate),
        "cache, augmented": (augmented(cache, folder / "run"), cache.collate),
        "processor": (pairs, SigLIPCollator(processor)),
    }
    rates: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(NUM_TURNS):
        for name, (rows, collate) in contenders.items():
            rates[name].append(rate(rows, collate, num_workers))
    middle = {name: statistics.median(values) for name, values in rates.items()}
    lines = {f"pairs a second at {MODEL_SIZE_PX} px: {name}": f"{value:.0f}" for name, value in middle.items()}
    lines["seconds to fill the cache, an image"] = f"{filling / NUM_IMAGES:.3f}"
    figures = {
        "input_rate_vs_pillow": ratio(middle["cache"], middle["processor"], 2),
        "input_rate_augmented_vs_pillow": ratio(middle["cache, augmented"], middle["processor"], 2),
    }
    return figures, lines
