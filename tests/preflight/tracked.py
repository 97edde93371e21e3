"""What torch's own MemTracker sees of a real step on the CPU: the reference for preflight."""

from collections.abc import Callable
from typing import Any

import torch
from torch.distributed._tools.mem_tracker import MemTracker


class _Tracker(MemTracker):
    """Without the hooks that tell gradients from the rest: they fail on frozen parameters, and add no bytes."""

    def _track_module_params_and_buffers(self, module, install_grad_hooks=True):
        return super()._track_module_params_and_buffers(module, install_grad_hooks=False)

    def _pre_fw_hook(self, module, inputs):
        if module in self.memory_tracking and self._mod_tracker.parents == {"Global", type(module).__name__}:
            self.reset_mod_stats()  # or a second forward in one step would be refused
        super()._pre_fw_hook(module, inputs)


def tracked_peak(
    model: Any, optimizer: torch.optim.Optimizer, micro_batch: Callable[[], Any], accumulates: bool = False
) -> int:
    """Peak bytes of weights, states, gradients and activations in the last micro-batch of the second optimiser step."""
    micro_batch()
    optimizer.step()
    optimizer.zero_grad()
    if accumulates:
        micro_batch()
    tracker = _Tracker()
    tracker.track_external(model, optimizer)
    with tracker:
        micro_batch()
        optimizer.step()
    return tracker.get_tracker_snapshot("peak")[torch.device("cpu")]["Total"]
