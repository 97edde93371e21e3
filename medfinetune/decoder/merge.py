"""Merges a LoRA adapter into its base model, and looks whether both say the same."""

import gc
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from transformers.integrations.deepspeed import unset_hf_deepspeed_config

from medfinetune.decoder.collator import MllamaCollator
from medfinetune.decoder.model import load_decoder
from medfinetune.errors import InputError
from medfinetune.training import saving_to

NUM_ROWS = 8
TOLERANCES = {"float32": 1e-5, "bfloat16": 0.05, "float16": 0.01}
"""Largest relative difference of the logits: merged weights are rounded, and 40 layers add up what that does.

With the tiny model of 4 layers 4e-7, 9e-3 and 1e-3 were measured.
"""
ROUNDING = {"float32": 1e-6, "bfloat16": 0.02, "float16": 2e-3}
"""An adapter that changes the logits by more must come through: twice what was measured."""


@dataclass
class MergeConfig:
    """What `recipes/merge.py` takes."""

    adapter_dir: str = field(metadata={"help": "Folder that a run with use_peft saved."})
    data_dir: str = field(metadata={"help": "Folder that recipes/prepare.py wrote; 8 of its chats are compared."})
    output_dir: str = field(default="", metadata={"help": "Where it goes; merged/ below adapter_dir where left out."})
    dtype: Literal["float32", "bfloat16", "float16"] = field(
        default="bfloat16", metadata={"help": "Precision in which the base model is loaded, merged and saved."}
    )
    max_length: int = field(default=512, metadata={"help": "Tokens of a chat at most."})


@dataclass(frozen=True, slots=True)
class MergeReport:
    """How a merged model compares.

    Attributes:
        difference: Norm of the difference of merged and adapter's logits over the norm of the adapter's.
        effect: The same of the base model without adapter: what a lost merge would show.
        num_rows: Chats that were compared.
    """

    difference: float
    effect: float
    num_rows: int

    def __str__(self) -> str:
        return (
            f"merged model against adapter on {self.num_rows} chats: logits differ by {self.difference:.1e} of their "
            f"norm (the base model alone: {self.effect:.1e})"
        )


def merge_adapter(
    adapter_dir: str | Path,
    output_dir: str | Path,
    chats: Sequence[dict[str, Any]],
    dtype: str = "bfloat16",
    max_length: int = 512,
    tolerance: float | None = None,
) -> MergeReport:
    """Writes a whole checkpoint with the adapter merged in, and the processor beside it.

    The base model is loaded unquantised, in `dtype`, also where the adapter was trained on a quantised one.

    Args:
        adapter_dir: What a run with `use_peft` saved.
        output_dir: Where the merged model goes.
        chats: Rows with `images` and `messages`; the first 8 are compared.
        dtype: `float32`, `bfloat16` or `float16`.
        max_length: Tokens of a chat at most.
        tolerance: Largest relative difference of the logits; by dtype where left out.

    Raises:
        InputError: There is no adapter, or merged model and adapter say different things, by more than the tolerance
            or half of what the adapter does; nothing is written then.
    """
    if not (Path(adapter_dir) / "adapter_config.json").is_file():
        raise InputError(f"{adapter_dir}: holds no adapter")
    # After a run under ZeRO-3 transformers would go on sharing out what it loads, and wait for the other processes.
    unset_hf_deepspeed_config()
    # What was trained before lies in cycles that nobody has collected yet: a second model of 21 GB.
    gc.collect()
    model, processor = load_decoder(str(adapter_dir), dtype=dtype)
    _move_where_there_is_room(model)
    collator = MllamaCollator(processor, max_length)
    rows = [chats[i] for i in range(min(NUM_ROWS, len(chats)))]
    adapted = _logits(model, collator, rows)
    with model.disable_adapter():
        base = _logits(model, collator, rows)
    merged = model.merge_and_unload()
    ours = _logits(merged, collator, rows)
    report = MergeReport(_distance(ours, adapted), _distance(base, adapted), len(rows))
    limit = TOLERANCES[dtype] if tolerance is None else tolerance
    if report.effect > ROUNDING[dtype]:
        limit = min(limit, report.effect / 2)
    lost = report.effect > 0 and all(map(torch.equal, ours, base))
    if lost or not report.difference <= limit:
        why = "it still says what the base model says" if lost else f"more than {limit:.2g} is allowed in {dtype}"
        raise InputError(
            f"{report}; {why}; nothing was written. "
            "The adapter itself is unharmed; merge it in float32 with recipes/merge.py --dtype float32"
        )
    with saving_to(output_dir):
        merged.save_pretrained(output_dir)
        processor.save_pretrained(output_dir)
    return report


def _move_where_there_is_room(model: Any) -> None:
    """To the accelerator if its free memory holds the model and a tenth more; else it stays on the slow host."""
    if not torch.accelerator.is_available():
        return
    torch.accelerator.empty_cache()
    free, _ = torch.accelerator.get_memory_info()
    if free > 1.1 * sum(tensor.numel() * tensor.element_size() for tensor in model.parameters()):
        model.to(torch.accelerator.current_accelerator())


@torch.no_grad()
def _logits(model: Any, collator: MllamaCollator, rows: list[dict[str, Any]]) -> list[Tensor]:
    """Of each chat `(T, V)`; one at a time, for those of a batch would take gigabytes."""
    model.eval()
    found = []
    for row in rows:
        batch = {name: tensor.to(model.device) for name, tensor in collator([row]).items() if name != "labels"}
        found.append(model(**batch).logits[0].float().cpu())
    return found


def _distance(ours: list[Tensor], expected: list[Tensor]) -> float:
    difference = sum((a - b).square().sum().item() for a, b in zip(ours, expected, strict=True))
    return math.sqrt(difference / sum(b.square().sum().item() for b in expected))
