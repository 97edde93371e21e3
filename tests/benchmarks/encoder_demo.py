"""Recall of the demo's tiny SigLIP: exact batches and accumulation; true labels and the paper's, on templated captions.

    python tests/benchmarks/encoder_demo.py <JSON of one training>      (one training, JSON)

Random weights and generated images: it tells what batches and labels do, nothing about medicine.
"""

import json
import os
import statistics
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
import yaml
from transformers import SiglipModel

REPO = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(REPO))

from medfinetune.data.load import load_pairs  # noqa: E402
from medfinetune.data.phantom import Sizes, write_raw_folders  # noqa: E402
from medfinetune.data.prepare import PrepareConfig, prepare  # noqa: E402
from medfinetune.encoder.cache import PairCache  # noqa: E402
from medfinetune.encoder.config import SigLIPConfig  # noqa: E402
from medfinetune.encoder.labels import COLUMNS, group_ids_of  # noqa: E402
from medfinetune.encoder.metrics import embed_images, embed_texts, recall_at_k, retrieval_metrics  # noqa: E402
from medfinetune.encoder.model import load_encoder  # noqa: E402
from medfinetune.encoder.trainer import SigLIPTrainer  # noqa: E402
from medfinetune.tiny import make_tiny_siglip  # noqa: E402
from tests.benchmarks.alone import run_alone  # noqa: E402

STEPS = 500
EXACT = {"per_device_train_batch_size": 64, "micro_batch_size": 8}
ACCUMULATION = {"per_device_train_batch_size": 8, "gradient_accumulation_steps": 8}
NUM_TEMPLATED = 1500
NUM_TEMPLATED_STEPS = 200
RECIPE = REPO / "recipes" / "encoder" / "demo.yaml"


def make_data(folder: Path, seeds: range) -> None:
    """`reports/` is the demo's; `templated/` is knee images whose captions are five grades in four wordings."""
    write_raw_folders(folder / "raw")
    prepare(PrepareConfig(output_dir=str(folder / "reports"), reports_file=str(folder / "raw" / "reports.csv")))
    write_raw_folders(folder / "raw_knee", sizes=Sizes(NUM_TEMPLATED, 1, 1, 1, 1, 1))
    knee = {"knee_dir": str(folder / "raw_knee" / "knee"), "languages": ["en"]}
    prepare(PrepareConfig(output_dir=str(folder / "templated"), validation_fraction=0, test_fraction=0.2, **knee))
    make_models(folder, seeds, image_size_px=48, data=("reports", "templated"))


def make_models(folder: Path, seeds: range, image_size_px: int, data: tuple[str, ...]) -> None:
    """A tiny model a seed, and the caches, which trainings that start at once would otherwise all make."""
    for seed in seeds:
        make_tiny_siglip(folder / f"siglip{seed}", seed, image_size_px)
    _, processor = load_encoder(str(folder / f"siglip{seeds[0]}"))
    for name in data:
        PairCache(load_pairs(folder / name, "train"), processor, folder / name / "cache")


def train(folder: Path, data: str, seed: int, **values) -> tuple[SiglipModel, object]:
    """The demo's recipe, shorter: the rate falls over the last 3 tenths of the steps. The last step's model is kept."""
    model, processor = load_encoder(str(folder / f"siglip{seed}"))
    cache = PairCache(load_pairs(folder / data, "train"), processor, folder / data / "cache")
    recipe = yaml.safe_load(RECIPE.read_text(encoding="utf-8"))
    recipe |= {"output_dir": str(folder / "runs"), "eval_strategy": "no", "save_strategy": "no", "seed": seed}
    recipe |= {"disable_tqdm": True, "logging_strategy": "no", **values}
    recipe["lr_scheduler_kwargs"] = {"num_decay_steps": round(0.3 * recipe["max_steps"])}
    trainer = SigLIPTrainer(model, SigLIPConfig(**recipe), cache, None, processor, data_collator=cache.collate)
    trainer.train()
    return model.eval(), processor


def recall_of_reports(model: SiglipModel, processor: object, folder: Path) -> dict[str, float]:
    """Recall@1 among the demo's 128 test cases, whose combinations of findings were never shown; mean of both ways."""
    pairs = load_pairs(folder / "reports", "test")
    plain = {name: list(pairs[name]) for name in (*COLUMNS, "language")}
    images = embed_images(model, processor, [row["images"][0] for row in pairs])
    texts = embed_texts(model, processor, plain["text"])
    metrics = retrieval_metrics(images, texts, plain["language"], group_ids_of(plain))
    return {"recall_at_1": metrics["recall_at_1"]}


def recall_of_templated(model: SiglipModel, processor: object, folder: Path) -> dict[str, float]:
    """Recall@1 of test images, where any caption of the same grade is right, and how likely the model calls those."""
    pairs = load_pairs(folder / "templated", "test")
    images = embed_images(model, processor, [row["images"][0] for row in pairs])
    cosine = images @ embed_texts(model, processor, list(pairs["text"])).T
    grades = torch.tensor([int(label) for label in pairs["label"]])
    right = grades[:, None] == grades[None, :]
    both = [recall_at_k(table, right, ks=(1,))["recall_at_1"] for table in (cosine, cosine.T)]
    with torch.no_grad():
        probability = torch.sigmoid(model.logit_scale.exp() * cosine + model.logit_bias)
    return {"recall_at_1": sum(both) / 2, "probability_of_right": probability[right].mean().item()}


def run_trainings(script: str, trainings: list[dict]) -> list[dict]:
    """Each in a process of its own with one thread, as many at once as there are cores."""
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        return list(pool.map(lambda values: run_alone(script, json.dumps(values), OMP_NUM_THREADS="1"), trainings))


def measure_demo(folder: Path, num_seeds: int) -> tuple[dict, dict]:
    """`demo_recall`: mean and standard deviation over the seeds of each way to train."""
    seeds = range(num_seeds)
    make_data(folder, seeds)
    ways = {
        "exact batch": ("reports", STEPS, EXACT),
        "plain accumulation": ("reports", STEPS, ACCUMULATION),
        "templated, duplicates: positive": ("templated", NUM_TEMPLATED_STEPS, {"duplicates": "positive"}),
        "templated, duplicates: negative": ("templated", NUM_TEMPLATED_STEPS, {"duplicates": "negative"}),
    }
    trainings = [
        {"folder": str(folder), "data": data, "seed": seed, "max_steps": steps, **values}
        for data, steps, values in ways.values()
        for seed in seeds
    ]
    done = run_trainings("encoder_demo.py", trainings)
    figures, lines = {}, {}
    for i, (way, (_, steps, _)) in enumerate(ways.items()):
        of_way = done[i * num_seeds : (i + 1) * num_seeds]
        recall = summarise([one["recall_at_1"] for one in of_way])
        figures[way] = recall
        lines[f"recall@1, {64 * steps:,} pairs: {way}"] = f"{recall['mean']:.3f} ± {recall['spread']:.3f}"
        if "probability_of_right" in of_way[0]:
            likely = summarise([one["probability_of_right"] for one in of_way])
            lines[f"probability of a right pair: {way}"] = f"{likely['mean']:.3f} ± {likely['spread']:.3f}"
    return {"demo_recall": figures}, lines


def summarise(values: list[float]) -> dict[str, float]:
    """Mean and sample standard deviation."""
    spread = statistics.stdev(values) if len(values) > 1 else 0.0
    return {"mean": round(statistics.mean(values), 4), "spread": round(spread, 4)}


def run_one(values: dict) -> dict[str, float]:
    folder = Path(values.pop("folder"))
    score = {"reports": recall_of_reports, "templated": recall_of_templated}[values["data"]]
    return score(*train(folder, **values), folder)


if __name__ == "__main__":
    print(json.dumps(run_one(json.loads(sys.argv[1]))))
