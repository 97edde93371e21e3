"""Measures pipeline, lookup and bootstrap against plain ways: python tests/benchmarks/report.py

Prints a table, and as its last line JSON. Every contender has one thread. Run it on a machine that does nothing else.
"""

import os

# Before NumPy, torch and FAISS are imported: each would take a thread for each core.
os.environ |= {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "TQDM_DISABLE": "1"}
os.environ |= {"HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1", "TRANSFORMERS_VERBOSITY": "error"}

import importlib
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

REPO = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(REPO))

import datasets  # noqa: E402
import faiss  # noqa: E402
import numpy as np  # noqa: E402
import torch  # noqa: E402
from PIL import Image  # noqa: E402

from medfinetune.data.evidence import evidence_words, with_evidence  # noqa: E402
from medfinetune.data.phantom import Sizes, write_raw_folders  # noqa: E402
from medfinetune.data.prepare import PrepareConfig, prepare  # noqa: E402
from medfinetune.inference.build import build_index  # noqa: E402
from medfinetune.inference.config import IndexConfig  # noqa: E402
from medfinetune.inference.evidence import EvidenceFinder  # noqa: E402
from medfinetune.inference.index import ImageIndex  # noqa: E402
from medfinetune.inference.pipeline import ReportPipeline  # noqa: E402
from medfinetune.inference.report import ReportRequest  # noqa: E402
from medfinetune.inference.rows import FEATURES  # noqa: E402
from medfinetune.tiny import make_tiny_mllama, make_tiny_siglip  # noqa: E402

NUM_REPORTS, BATCH_SIZE, NUM_NEW_TOKENS = 32, 16, 32
NUM_VECTORS, SIZE, NUM_QUERIES, NUM_NEIGHBOURS = 100_000, 768, 64, 3
NUM_TURNS = 7


def main() -> None:
    torch.set_num_threads(1)
    faiss.omp_set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        reports = measure_reports(Path(folder))
    lookup = measure_lookup()
    bootstrap = measure_bootstrap()
    rows = [
        (f"plain loop of model.generate, {NUM_REPORTS} images", f"{reports['loop_per_s']:.1f} reports/s"),
        (f"pipeline, batch {BATCH_SIZE}: embedding, evidence, writing", f"{reports['pipeline_per_s']:.1f} reports/s"),
        (f"NumPy product and argpartition, {NUM_VECTORS:,} x {SIZE}", f"{1000 * lookup['numpy_s']:.1f} ms"),
        (f"evidence from our index, batch {NUM_QUERIES}", f"{1000 * lookup['index_s']:.1f} ms"),
    ]
    for name, value in bootstrap.items():
        rows.append((f"bootstrap: {name}", f"{value:.4g}" if isinstance(value, float) else str(value)))
    for name, value in rows:
        print(f"{name:<60} {value}")
    print(
        json.dumps(
            {
                "reports_speedup_batch16": round(reports["pipeline_per_s"] / reports["loop_per_s"], 2),
                "lookup_vs_numpy": round(lookup["index_s"] / lookup["numpy_s"], 3),
                "bootstrap_vs_loop": bootstrap.get("bootstrap_vs_loop"),
            }
        )
    )


def measure_reports(folder: Path) -> dict[str, float]:
    """Reports a second by the whole pipeline, and by `model.generate` alone on the prompts that the pipeline made.

    Both are given opened images, and must write the same texts.
    """
    make_tiny_siglip(folder / "encoder")
    make_tiny_mllama(folder / "decoder")
    write_raw_folders(folder / "raw", sizes=Sizes(report_train=200, report_validation=16, report_test=NUM_REPORTS))
    reports_file = str(folder / "raw" / "reports.csv")
    prepare(PrepareConfig(reports_file=reports_file, output_dir=str(folder / "data"), num_workers=1))
    index = build_index(IndexConfig(str(folder / "encoder"), str(folder / "data"), str(folder / "index")))
    pipeline = ReportPipeline.from_pretrained(folder / "encoder", folder / "decoder", index, device="cpu")
    images = [opened(path) for path in sorted((folder / "data" / "images").rglob("*.png"))[:NUM_REPORTS]]
    options = {"evidence": "both", "max_new_tokens": NUM_NEW_TOKENS}
    written = pipeline(images, batch_size=BATCH_SIZE, **options)
    prompts = []
    for image, report in zip(images, written, strict=True):
        words = evidence_words(report.evidence, "both", "en")
        messages = with_evidence(ReportRequest([image]).messages("report"), words)
        template = pipeline.decoder_processor.apply_chat_template
        prompts.append(template(messages, add_generation_prompt=True, date_string="26 Jul 2024"))
    assert plain_loop(pipeline, images, prompts) == [report.text for report in written]
    seconds = by_turns(
        {
            "loop": lambda: plain_loop(pipeline, images, prompts),
            "pipeline": lambda: pipeline(images, batch_size=BATCH_SIZE, **options),
        },
        3,
    )
    return {f"{name}_per_s": NUM_REPORTS / taken for name, taken in seconds.items()}


def plain_loop(pipeline: ReportPipeline, images: list[Image.Image], prompts: list[str]) -> list[str]:
    """One image at a time, as the model's own page shows it."""
    model, processor, texts = pipeline.decoder, pipeline.decoder_processor, []
    for image, prompt in zip(images, prompts, strict=True):
        inputs = processor(image, prompt, add_special_tokens=False, return_tensors="pt")
        with torch.no_grad():
            output = model.generate(**inputs, max_new_tokens=NUM_NEW_TOKENS, do_sample=False)
        new = output[0, inputs["input_ids"].shape[1] :]
        texts.append(processor.tokenizer.decode(new, skip_special_tokens=True).strip())
    return texts


def opened(path: Path) -> Image.Image:
    """Decoded, so that neither contender opens a file."""
    with Image.open(path) as image:
        return image.convert("RGB")


def measure_lookup() -> dict[str, float]:
    """Seconds to the evidence of a batch, texts and all, and to the numbers of the nearest in NumPy."""
    random = np.random.default_rng(0)
    vectors = random.standard_normal((NUM_VECTORS, SIZE), dtype=np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    queries = random.standard_normal((NUM_QUERIES, SIZE), dtype=np.float32)
    queries /= np.linalg.norm(queries, axis=1, keepdims=True)
    pair = {"language": "en", "source": "reports", "label": None}
    rows = [
        {
            "pairs": [{"id": str(i), "text": f"Report {i}.", **pair}],
            "patients": [{"source": "reports", "id": f"p{i}"}],
            "pixels": [f"{i:064x}"],
            "known": [],
            "image": f"{i}.png",
        }
        for i in range(NUM_VECTORS)
    ]
    finder = EvidenceFinder(
        ImageIndex.build(vectors, datasets.Dataset.from_list(rows, features=FEATURES)), NUM_NEIGHBOURS
    )
    asked = torch.from_numpy(queries)

    def in_numpy() -> np.ndarray:
        cosines = queries @ vectors.T
        best = np.argpartition(cosines, -NUM_NEIGHBOURS, axis=1)[:, -NUM_NEIGHBOURS:]
        order = np.take_along_axis(cosines, best, axis=1).argsort(axis=1)[:, ::-1]
        return np.take_along_axis(best, order, axis=1)

    def in_index() -> list[list[str]]:
        found = finder.find(asked, [[f"query {i}"] for i in range(NUM_QUERIES)], [("reports", "nobody")] * NUM_QUERIES)
        return [[near.id for near in evidence.neighbours] for evidence in found]

    assert in_index() == [[str(number) for number in row] for row in in_numpy()]
    seconds = by_turns({"numpy": in_numpy, "index": in_index}, NUM_TURNS)
    return {f"{name}_s": taken for name, taken in seconds.items()}


def by_turns(contenders: dict[str, Callable[[], Any]], num_turns: int) -> dict[str, float]:
    """The median of each one's seconds; they take turns, so that what slows the machine slows all."""
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(num_turns):
        for name, work in contenders.items():
            start = time.perf_counter()
            work()
            seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(taken) for name, taken in seconds.items()}


def measure_bootstrap() -> dict[str, Any]:
    """What `report_bootstrap.py` measures."""
    try:
        module = importlib.import_module("tests.benchmarks.report_bootstrap")
    except ModuleNotFoundError:
        return {"bootstrap_vs_loop": None}
    found = module.measure_bootstrap()
    return found if isinstance(found, dict) else {"bootstrap_vs_loop": found}


if __name__ == "__main__":
    main()
