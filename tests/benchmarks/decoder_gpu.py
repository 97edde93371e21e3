"""Training of the real shape with random weights on one CUDA device, in bf16, batch 1: samples a second and memory.

Where TRL is installed, its trainer and ours take the steps. Where only torch, transformers and PEFT are, a plain loop
does: model, collator and optimiser step, with the settings that TRL would make.
"""

import gc
import importlib.util
import statistics
import tempfile
import time
from collections.abc import Callable
from typing import Any

import torch

from medfinetune.decoder.collator import MllamaCollator
from medfinetune.decoder.recompute import GIB
from tests.benchmarks.decoder_flops import count, stored_by_real
from tests.benchmarks.decoder_shape import (
    make_model,
    make_processor,
    make_rows,
    our_loss,
    real_config,
    stock_loss,
    train_as_ours,
    train_as_stock,
)

CASES = [(tiles, tokens) for tiles in (1, 4) for tokens in (256, 512)]
NUM_STEPS, NUM_WARM_UP = 12, 4
MATRIX_SIDE = 8192


def matrix_rate() -> float:
    """Floating-point operations a second of a square bf16 product of random numbers."""
    one, other = (torch.randn(MATRIX_SIDE, MATRIX_SIDE, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    seconds = time_calls(lambda: one @ other, 30)
    return 2 * MATRIX_SIDE**3 / statistics.median(seconds[10:])


def time_calls(work: Any, times: int) -> list[float]:
    seconds = []
    for _ in range(times):
        _synchronise()
        started = time.perf_counter()
        work()
        _synchronise()
        seconds.append(time.perf_counter() - started)
    return seconds


def plain_step(
    way: str, model: Any, processor: Any, rows: list[dict], num_tokens: int, recomputed: int
) -> Callable[[], None]:
    """A step without TRL: collator, forward, backward and AdamW; in bf16 on a GPU, as it is on a CPU."""
    collator = MllamaCollator(processor, num_tokens)
    model = train_as_ours(model, recomputed) if way == "ours" else train_as_stock(model)
    device = next(model.parameters()).device
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-4)
    turn = iter(range(10**9))

    def step() -> None:
        batch = {name: tensor.to(device) for name, tensor in collator([rows[next(turn) % len(rows)]]).items()}
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            loss = (our_loss if way == "ours" else stock_loss)(model, batch)
        loss.backward()
        torch.nn.utils.clip_grad_norm_([p for p in model.parameters() if p.requires_grad], 1.0)
        optimizer.step()
        optimizer.zero_grad()

    return step


def time_trainer(way: str, model: Any, processor: Any, rows: list[dict], num_tokens: int) -> list[float]:
    """Seconds of steps of TRL's trainer, or of ours."""
    import datasets

    from tests.benchmarks.decoder_time import Stopwatch, make_trainer

    stopwatch = Stopwatch()
    with tempfile.TemporaryDirectory() as folder:
        values = {"max_length": num_tokens, "max_steps": NUM_STEPS, "dataloader_num_workers": 2, "bf16": True}
        table = datasets.Dataset.from_list(rows)
        trainer = make_trainer(way, model, table, processor, folder, dataloader_pin_memory=True, **values)
        trainer.add_callback(stopwatch)
        trainer.train()
    return stopwatch.seconds[NUM_WARM_UP:]


def measure_gpu() -> tuple[dict[str, float], dict[str, str]]:
    """Lines for the table; the JSON gets none, for its keys have no bar on a GPU."""
    if not torch.cuda.is_available():
        return {}, {"GPU": "not run: torch sees no CUDA device"}
    with_trl = importlib.util.find_spec("trl") is not None
    config, rate = real_config(), matrix_rate()
    processor = make_processor(config)
    lines = {
        "GPU": torch.cuda.get_device_name(),
        "timed": "TRL's trainer and ours" if with_trl else "model, collator and optimiser step: TRL is not installed",
        "TFLOP/s of a bf16 matrix product": f"{rate / 1e12:.0f}",
    }
    for tiles, tokens in CASES:
        stored = stored_by_real(tokens)
        recomputed = stored.num_recomputed(stored.budget)
        rows = make_rows(config, tiles, 4)
        middle = {}
        for way in ("stock", "ours"):
            gc.collect()
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
            model = make_model(config, "cuda", torch.bfloat16)
            if with_trl:
                seconds = time_trainer(way, model, processor, rows, tokens)
            else:
                step = plain_step(way, model, processor, rows, tokens, recomputed)
                seconds = time_calls(step, NUM_STEPS)[NUM_WARM_UP:]
                del step
            del model
            middle[way] = statistics.median(seconds)
            share = count(way, tiles, tokens, recomputed=recomputed) / middle[way] / rate
            lines[f"{tiles} tile, {tokens} tokens, {way}: samples/s, peak GiB, share of the rate"] = (
                f"{1 / middle[way]:.2f}, {torch.cuda.max_memory_allocated() / GIB:.1f}, {share:.0%}"
            )
        lines[f"{tiles} tile, {tokens} tokens: times stock"] = f"{middle['stock'] / middle['ours']:.2f}"
    return {}, lines


def _synchronise() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
