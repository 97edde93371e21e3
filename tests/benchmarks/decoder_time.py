"""Steps of stock's and our trainer on a CPU, by turns, on a model of the 11B's proportions.

Both get the same rows from the same collator: TRL's own crashes on Mllama or mislabels it. Data loading is not timed.
Where TRL is not installed, a plain loop takes the steps.
"""

import copy
import importlib.util
import statistics
import tempfile
import time
from typing import Any

import torch
from peft import get_peft_model
from transformers import PrinterCallback, TrainerCallback

from medfinetune.decoder.collator import MllamaCollator
from medfinetune.decoder.recompute import saved_bytes
from medfinetune.decoder.vision import use_fast_vision
from tests.benchmarks.decoder_flops import count
from tests.benchmarks.decoder_gpu import plain_step
from tests.benchmarks.decoder_shape import lora, make_model, make_processor, make_rows, small_config

NUM_TOKENS = 32
"""An eighth of 256."""
NUM_TURNS, STEPS_A_TURN = 5, 5


class Stopwatch(TrainerCallback):
    """Wall-clock seconds of each optimiser step, without the data loader."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self.cpu_seconds: list[float] = []

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        synchronise()
        self._started, self._cpu_started = time.perf_counter(), time.process_time()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        synchronise()
        self.seconds.append(time.perf_counter() - self._started)
        self.cpu_seconds.append(time.process_time() - self._cpu_started)


def synchronise() -> None:
    """Waits for a GPU, which works on after a call returns."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def make_trainer(way: str, model: Any, rows: list[dict], processor: Any, folder: str, **changes: Any) -> Any:
    """TRL's `SFTTrainer` with its defaults, or ours with its own."""
    from trl import SFTConfig, SFTTrainer

    from medfinetune.decoder.config import MllamaSFTConfig
    from medfinetune.decoder.trainer import MllamaSFTTrainer

    values = {
        "output_dir": folder,
        "max_length": NUM_TOKENS,
        "per_device_train_batch_size": 1,
        "max_steps": STEPS_A_TURN,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "dataloader_pin_memory": False,
    }
    values |= changes
    collator = MllamaCollator(processor, values["max_length"])
    kept = {"train_dataset": rows, "processing_class": processor, "data_collator": collator}
    if way == "ours":
        dtype = {torch.float32: "float32", torch.bfloat16: "bfloat16"}[model.dtype]
        return MllamaSFTTrainer(model, MllamaSFTConfig(use_peft=True, dtype=dtype, **values), **kept)
    options = {"remove_unused_columns": False, "dataset_kwargs": {"skip_prepare_dataset": True}}
    return SFTTrainer(model, SFTConfig(**values, **options), peft_config=lora(), **kept)


def measure_time() -> tuple[dict[str, float], dict[str, str]]:
    """`step_time_ratio_1tile`, and `frozen_saved_bytes` of the same model."""
    config = small_config()
    processor = make_processor(config)
    torch.manual_seed(0)
    model = make_model(config, "cpu", torch.float32)
    with_trl = all(map(importlib.util.find_spec, ("trl", "datasets")))
    seconds, cpu_seconds = (time_trainers if with_trl else time_plain_loops)(model, processor)
    middle = {way: statistics.median(kept) for way, kept in seconds.items()}
    lines = {
        f"seconds of a step, 1 tile, CPU-sized: {way} (least to most)": f"{middle[way]:.2f} "
        f"({min(kept):.2f} to {max(kept):.2f})"
        for way, kept in seconds.items()
    }
    # Where other programs take the cores, this tells more than the clock on the wall.
    cpu = {way: statistics.median(kept) for way, kept in cpu_seconds.items()}
    lines["CPU seconds of a step: stock, ours, ratio"] = (
        f"{cpu['stock']:.2f}, {cpu['ours']:.2f}, {cpu['ours'] / cpu['stock']:.3f}"
    )
    flops = {way: count(way, 1, NUM_TOKENS, config, recomputed=0) for way in seconds}
    lines["FLOP ratio of the CPU-sized model, none recomputed"] = f"{flops['ours'] / flops['stock']:.3f}"
    lines["seconds: of how many steps each, by turns"] = str(len(seconds["ours"]))
    timed = "trainers" if with_trl else "model, collator, AdamW: no TRL"
    lines["seconds: of what"] = timed
    figures = {"step_time_ratio_1tile": round(middle["ours"] / middle["stock"], 3)}
    return figures | {"frozen_saved_bytes": frozen_saved_bytes(model, processor)}, lines


def time_trainers(model: Any, processor: Any) -> tuple[dict[str, list[float]], dict[str, list[float]]]:
    """Seconds and CPU seconds of steps of TRL's trainer and of ours, by turns; each turn's first is left out."""
    import datasets

    rows = datasets.Dataset.from_list(make_rows(model.config, 1, 4))
    seconds: dict[str, list[float]] = {"stock": [], "ours": []}
    cpu_seconds: dict[str, list[float]] = {"stock": [], "ours": []}
    with tempfile.TemporaryDirectory() as folder:
        trainers = {}
        for way in seconds:
            trainers[way] = make_trainer(way, copy.deepcopy(model), rows, processor, folder, use_cpu=True, bf16=False)
            trainers[way].remove_callback(PrinterCallback)
        for _ in range(NUM_TURNS):
            for way, trainer in trainers.items():
                stopwatch = Stopwatch()
                trainer.add_callback(stopwatch)
                trainer.train()
                trainer.remove_callback(stopwatch)
                seconds[way] += stopwatch.seconds[1:]
                cpu_seconds[way] += stopwatch.cpu_seconds[1:]
    return seconds, cpu_seconds


def time_plain_loops(model: Any, processor: Any) -> tuple[dict[str, list[float]], dict[str, list[float]]]:
    """The same without TRL; the collator's work counts too, and of ours no layer is recomputed, as with `auto`."""
    rows = make_rows(model.config, 1, 4)
    steps = {
        way: plain_step(way, copy.deepcopy(model), processor, rows, NUM_TOKENS, recomputed=0)
        for way in ("stock", "ours")
    }
    stopwatches = {way: Stopwatch() for way in steps}
    for _ in range(NUM_TURNS):
        for way, step in steps.items():
            step()
            for _ in range(STEPS_A_TURN - 1):
                stopwatches[way].on_step_begin()
                step()
                stopwatches[way].on_step_end()
    return tuple({way: getattr(s, name) for way, s in stopwatches.items()} for name in ("seconds", "cpu_seconds"))


def frozen_saved_bytes(model: Any, processor: Any) -> int:
    """Activations that our frozen tower keeps for a backward."""
    batch = MllamaCollator(processor, NUM_TOKENS)(make_rows(model.config, 1, 1))
    use_fast_vision(model)
    model = get_peft_model(model, lora()).train()
    model.enable_input_require_grads()
    tower = model.get_base_model().model.vision_model
    inputs = {name: batch[name] for name in ("pixel_values", "aspect_ratio_ids", "aspect_ratio_mask")}
    return saved_bytes(lambda: tower(**inputs), [*tower.parameters(), *inputs.values()])
