"""Rank, world size and sums over processes: the only place that talks to `torch.distributed`."""

import torch
from torch import Tensor
from torch import distributed as dist


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


def leave() -> None:
    """Ends the work together, where there was any: a process that just exits may let the others abort."""
    if dist.is_available() and dist.is_initialized():
        dist.barrier()
        dist.destroy_process_group()
