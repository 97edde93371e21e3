"""Steps of a SigLIP of the size of ViT-B/16 (224 px, 203 M random parameters) on the CPU, in fp32.

    python tests/benchmarks/encoder_step.py exact       (memory of one contender, JSON: exact or full)

The tensors are noise and are made beforehand, so that nothing but the step is measured.
"""

import json
import statistics
import sys
import tempfile
import time
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import PrinterCallback, SiglipConfig, SiglipModel, Trainer, TrainerCallback, TrainingArguments

REPO = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(REPO))

from medfinetune.encoder.config import SigLIPConfig  # noqa: E402
from medfinetune.encoder.trainer import SigLIPTrainer  # noqa: E402
from tests.benchmarks.alone import measure, ratio, run_alone  # noqa: E402

BATCH, MICRO = 64, 8
STEP_BATCH, STEPS_A_TURN = 16, 3
NUM_TURNS = 3
COMMON = {"use_cpu": True, "remove_unused_columns": False, "dataloader_pin_memory": False, "disable_tqdm": True}
COMMON |= {"save_strategy": "no", "report_to": "none"}


def make_model(config: SiglipConfig | None = None) -> SiglipModel:
    torch.manual_seed(0)
    model = SiglipModel(config or SiglipConfig())
    with torch.no_grad():
        model.logit_scale.fill_(2.3)
        model.logit_bias.fill_(-10.0)
    return model


def make_rows(count: int, image_size_px: int = 224) -> list[dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randn(count, 3, image_size_px, image_size_px, generator=generator)
    ids = torch.randint(0, 32_000, (count, 64), generator=generator)
    return [{"pixel_values": pixels[i], "input_ids": ids[i]} for i in range(count)]


def collate(rows: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    return {name: torch.stack([row[name] for row in rows]) for name in rows[0]}


def make_trainer(model: nn.Module, rows: list, folder: str, plain: bool = False, **values) -> Trainer:
    """Ours, or the library's own, which asks the model for its loss."""
    values = {"output_dir": folder, **COMMON, **values}
    if plain:
        return Trainer(
            model, TrainingArguments(**values), lambda rows: collate(rows) | {"return_loss": True}, train_dataset=rows
        )
    return SigLIPTrainer(model, SigLIPConfig(**values), rows, data_collator=collate)


class Stopwatch(TrainerCallback):
    """Wall-clock seconds of each optimiser step, with the accumulation before it and without the data loader."""

    def __init__(self) -> None:
        self.seconds: list[float] = []

    def on_step_begin(self, *_, **__) -> None:
        synchronise()
        self._started = time.perf_counter()

    def on_step_end(self, *_, **__) -> None:
        synchronise()
        self.seconds.append(time.perf_counter() - self._started)


def synchronise() -> None:
    """Waits for a GPU, which works on after a call returns."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def time_steps(trainer: Trainer) -> list[float]:
    stopwatch = Stopwatch()
    trainer.add_callback(stopwatch)
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    trainer.model.zero_grad(set_to_none=True)
    return stopwatch.seconds


def measure_steps() -> tuple[dict, dict]:
    """`step_time_vs_plain_trainer`: the same model object and tensors, both in turn."""
    model, rows = make_model(), make_rows(STEP_BATCH)
    seconds: dict[str, list[float]] = {"ours": [], "plain Trainer": []}
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(NUM_TURNS):
            for name, kept in seconds.items():
                values = {"per_device_train_batch_size": STEP_BATCH, "max_steps": STEPS_A_TURN}
                trainer = make_trainer(model, rows, folder, plain=name != "ours", **values)
                kept += time_steps(trainer)[1:]  # the first makes the optimiser's state
    middle = {name: statistics.median(kept) for name, kept in seconds.items()}
    lines = {f"step of {STEP_BATCH} pairs, seconds: {name}": f"{value:.2f}" for name, value in middle.items()}
    return {"step_time_vs_plain_trainer": ratio(middle["ours"], middle["plain Trainer"])}, lines


def exact_values(contender: str) -> dict[str, int]:
    """The settings of one way to train on 64 pairs a step."""
    return {
        "full": {"per_device_train_batch_size": BATCH},
        "exact": {"per_device_train_batch_size": BATCH, "micro_batch_size": MICRO},
        "accumulation": {"per_device_train_batch_size": MICRO, "gradient_accumulation_steps": BATCH // MICRO},
    }[contender]


def exact_memory(contender: str) -> dict[str, float]:
    """Memory and time of the forward and backward of 64 pairs, after 8 that load code; the gradients are counted."""
    rows = make_rows(BATCH)
    with tempfile.TemporaryDirectory() as folder:
        trainer = make_trainer(make_model(), rows, folder, max_steps=1, **exact_values(contender))
        trainer.create_optimizer()
        trainer.current_gradient_accumulation_steps = 1  # which train() would set
        figures = {}
        for count in (MICRO, BATCH):
            inputs = collate(rows[:count])
            figures = measure(lambda inputs=inputs: trainer.training_step(trainer.model, inputs))
            trainer.model.zero_grad(set_to_none=True)
    return figures


def measure_exact() -> tuple[dict, dict]:
    """`exact_memory_vs_full` and `exact_time_vs_accumulation`."""
    if "micro_batch_size" not in SigLIPConfig.__dataclass_fields__:
        print("exact batches were not measured: this version has no micro_batch_size")
        return dict.fromkeys(("exact_memory_vs_full", "exact_time_vs_accumulation")), {}
    memory = {name: run_alone("encoder_step.py", name)["mib"] for name in ("full", "exact")}
    model, rows = make_model(), make_rows(BATCH)
    seconds: dict[str, list[float]] = {"exact": [], "accumulation": []}
    with tempfile.TemporaryDirectory() as folder:
        time_steps(make_trainer(model, rows[:2], folder, per_device_train_batch_size=2, max_steps=1, optim="sgd"))
        for _ in range(NUM_TURNS):
            for name, kept in seconds.items():
                # SGD keeps no state, whose making would fall on the one step.
                kept += time_steps(make_trainer(model, rows, folder, max_steps=1, optim="sgd", **exact_values(name)))
    middle = {name: statistics.median(kept) for name, kept in seconds.items()}
    figures = {
        "exact_memory_vs_full": ratio(memory["exact"], memory["full"]),
        "exact_time_vs_accumulation": ratio(middle["exact"], middle["accumulation"]),
    }
    lines = {f"{BATCH} pairs, peak extra memory, MiB: {name}": f"{value:.0f}" for name, value in memory.items()}
    lines |= {f"{BATCH} pairs by {MICRO}, seconds: {name}": f"{value:.1f}" for name, value in middle.items()}
    return figures, lines


if __name__ == "__main__":
    print(json.dumps(exact_memory(sys.argv[1])))
