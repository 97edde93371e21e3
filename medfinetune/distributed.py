"""Rank, world size and sums over processes: the only place that talks to `torch.distributed`."""

import importlib.util
import json
import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch import distributed as dist

from medfinetune.errors import InputError


def world_size() -> int:
    """How many processes train together; 1 where no process group was made."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """This process's place among them, from 0."""
    return dist.get_rank() if world_size() > 1 else 0


def gather(tensor: Tensor) -> Tensor:
    """Every process's rows, in the order of ranks, without a gradient.

    Args:
        tensor: `(B, ...)`, the same shape and dtype in every process.

    Returns:
        `(world_size * B, ...)`.

    Raises:
        ValueError: The processes hold different numbers of rows.
    """
    tensor = tensor.detach().contiguous()
    if world_size() == 1:
        return tensor
    sizes = torch.zeros(world_size(), dtype=torch.int64, device=tensor.device)
    sizes[rank()] = len(tensor)
    dist.all_reduce(sizes)
    if (sizes != sizes[0]).any():
        raise ValueError(f"the processes hold {sizes.tolist()} rows; all must hold the same number")
    everything = tensor.new_empty((world_size() * tensor.shape[0], *tensor.shape[1:]))
    dist.all_gather(list(everything.split(len(tensor))), tensor)
    return everything


def sum_over_processes(tensor: Tensor) -> Tensor:
    """The sum of every process's tensor, in place."""
    if world_size() > 1:
        dist.all_reduce(tensor)
    return tensor


def gather_objects(item: Any) -> list[Any]:
    """Every process's item, in the order of ranks; an item is anything that can be pickled."""
    items = [item] * world_size()
    if world_size() > 1:
        dist.all_gather_object(items, item)
    return items


def leave() -> None:
    """Ends the work together, where there was any: a process that just exits may let the others abort."""
    if dist.is_available() and dist.is_initialized():
        dist.barrier()
        dist.destroy_process_group()


def check_deepspeed(config: str | dict[str, Any], dry_run: bool = False) -> None:
    """Says plainly what is wrong with the key `deepspeed` of a run.

    Args:
        config: The path of a JSON file, or what such a file holds.
        dry_run: Whether nothing is to be trained, so that DeepSpeed itself may be missing.

    Raises:
        InputError: The file is missing or holds no JSON object, DeepSpeed is not installed, or the run was started
            without a launcher.
    """
    if isinstance(config, str):
        path = Path(config)
        if not path.is_file():
            raise InputError(f"deepspeed: {path}: no such file; those of medfinetune are in ds_configs/")
        try:
            config = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise InputError(f"deepspeed: {path}: is no JSON: {error}") from error
    if not isinstance(config, dict):
        raise InputError("deepspeed: must hold a JSON object")
    if dry_run:
        return
    if importlib.util.find_spec("deepspeed") is None:
        raise InputError("deepspeed: is not installed; install it with: pip install 'medfinetune[deepspeed]'")
    if "RANK" not in os.environ:
        raise InputError(
            "deepspeed: needs a launcher that joins processes, such as accelerate launch --multi_gpu --num_processes 2"
        )


def join_deepspeed_on_cpu() -> None:
    """Joins the processes of a DeepSpeed run where there is no accelerator; before `TrainingArguments` are made."""
    from accelerate import PartialState  # only here: the rest of this module needs torch alone

    # DeepSpeed would look for a GPU, and accelerate takes a state for DeepSpeed's only by this name.
    os.environ["DS_ACCELERATOR"] = "cpu"
    os.environ["ACCELERATE_USE_DEEPSPEED"] = "true"
    PartialState(backend="gloo")
