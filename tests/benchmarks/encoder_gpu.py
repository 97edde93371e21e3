"""Training of a SigLIP of the size of ViT-B/16 at 448 px on one CUDA device, in bf16: pairs a second.

Ours in one piece and by exact micro-batches, beside a plain loop with open_clip's `SigLipLoss` on the same model. The
share is that of the rate which the device reaches with one large bf16 matrix product; what exact batches compute
twice does not count as work done.
"""

import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode
from transformers import SiglipConfig, SiglipModel

from medfinetune.errors import InputError
from tests.benchmarks.encoder_loss import load_open_clip
from tests.benchmarks.encoder_step import collate, make_model, make_rows, make_trainer, synchronise, time_steps

IMAGE_SIZE_PX = 448
BATCHES = (64, 128, 256, 512, 1024)
MICRO = 64
NUM_STEPS, NUM_WARM_UP = 8, 3
MATRIX_SIDE = 8192


def matrix_rate(device: str) -> float:
    """Floating-point operations a second of a square bf16 product."""
    one, other = (torch.randn(MATRIX_SIDE, MATRIX_SIDE, device=device, dtype=torch.bfloat16) for _ in range(2))
    return 2 * MATRIX_SIDE**3 / statistics.median(time_calls(lambda: one @ other, 20)[5:])


def time_calls(work: Callable[[], object], count: int) -> list[float]:
    seconds = []
    for _ in range(count):
        synchronise()
        started = time.perf_counter()
        work()
        synchronise()
        seconds.append(time.perf_counter() - started)
    return seconds


def operations_of_a_pair(config: SiglipConfig) -> int:
    """Forward, and twice as much backward, counted without computing anything."""
    with torch.device("meta"):
        model = SiglipModel(config)
        side = config.vision_config.image_size
        ids = torch.zeros(1, config.text_config.max_position_embeddings, dtype=torch.long)
        with FlopCounterMode(display=False) as counter:
            model(input_ids=ids, pixel_values=torch.zeros(1, 3, side, side))
    return 3 * counter.get_total_flops()


def time_ours(model: SiglipModel, rows: list[dict[str, Tensor]], device: str, **values) -> list[float]:
    with tempfile.TemporaryDirectory() as folder:
        options = {"per_device_train_batch_size": len(rows), "max_steps": NUM_STEPS, "bf16": True}
        # One batch an epoch: the same rows at every step.
        trainer = make_trainer(model, rows, folder, use_cpu=device == "cpu", **options, **values)
        return time_steps(trainer)


def time_open_clip(model: SiglipModel, rows: list[dict[str, Tensor]], device: str, loss_file: Path) -> list[float]:
    model.to(device).train()
    loss_function = load_open_clip(loss_file)()
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-5, fused=True)
    inputs = {name: tensor.to(device) for name, tensor in collate(rows).items()}

    def step() -> None:
        with torch.autocast(device, dtype=torch.bfloat16):
            outputs = model(**inputs)
            embeds = outputs.image_embeds, outputs.text_embeds
            loss = loss_function(*embeds, model.logit_scale.exp(), model.logit_bias)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)  # as the Trainer does
        optimizer.step()
        optimizer.zero_grad()

    return time_calls(step, NUM_STEPS)


def measure_gpu(loss_file: Path | None, device: str = "cuda") -> tuple[dict, dict]:
    """Lines for the table; the issue's table has no key for them."""
    if device == "cuda" and not torch.cuda.is_available():
        return {}, {"GPU": "not run: there is no CUDA device here"}
    config = SiglipConfig(vision_config={"image_size": IMAGE_SIZE_PX})
    model, few = make_model(config), make_rows(min(BATCHES), IMAGE_SIZE_PX)
    best, work = matrix_rate(device), operations_of_a_pair(config)
    lines = {"device": torch.cuda.get_device_name() if device == "cuda" else device}
    lines |= {"bf16 matrix product, TFLOP/s": f"{best / 1e12:.1f}", "TFLOP a pair": f"{work / 1e12:.3f}"}
    for batch in BATCHES:
        rows = few * (batch // len(few))
        ways = {"one piece": lambda rows: time_ours(model, rows, device)}
        ways[f"exact by {MICRO}"] = lambda rows: time_ours(model, rows, device, micro_batch_size=MICRO)
        if loss_file is not None:
            ways["open_clip's loss"] = lambda rows: time_open_clip(model, rows, device, loss_file)
        for name, run in ways.items():
            try:
                rate = batch / statistics.median(run(rows)[NUM_WARM_UP:])
                lines[f"pairs a second, batch {batch}: {name}"] = f"{rate:.0f} ({rate * work / best:.0%})"
            except (torch.cuda.OutOfMemoryError, InputError) as error:
                # The trainer says in its own words what would fit.
                if not isinstance(error.__cause__ or error, torch.cuda.OutOfMemoryError):
                    raise
                lines[f"pairs a second, batch {batch}: {name}"] = "does not fit"
            # Said at once: a device is often lent for a short time.
            print(
                f"batch {batch}: {name}: {lines[f'pairs a second, batch {batch}: {name}']} pairs a second", flush=True
            )
            model.zero_grad(set_to_none=True)
            if device == "cuda":
                torch.cuda.empty_cache()
    return {}, lines
