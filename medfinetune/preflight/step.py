"""One training step without data: what it holds at its peak, and its arithmetic.

The step itself is run, on fake tensors, which have shapes, dtypes and lifetimes but no memory. So nothing has to be
known here about layers, adapters, autocast or checkpointing.
"""

import gc
import os
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from accelerate.utils.operations import convert_outputs_to_fp32
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count


def _attention(query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
    return sdpa_flop_count(query, key, value)


def _attention_backward(grad: Any, query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
    return sdpa_backward_flop_count(grad, query, key, value)


# FlopCounterMode knows the attention of GPUs only.
_CPU_ATTENTION = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward,
}


@dataclass(frozen=True, slots=True)
class Step:
    """What one forward and backward of one process takes, besides the weights.

    Attributes:
        peak_bytes: Largest sum of activations, temporaries and parameter gradients at any moment.
        activation_bytes: The same without the gradients of parameters.
        tflop: Arithmetic of matrix products, convolutions and attention, in 1e12 operations (an addition and a
            multiplication are two).
        num_recomputed: Of the decoder's text layers, how many are computed again in the backward.
    """

    peak_bytes: int
    activation_bytes: int
    tflop: float
    num_recomputed: int = 0


class LiveMemory(TorchDispatchMode):
    """Follows the bytes of all tensors that are made while it is entered, and their peak.

    Attributes:
        peak: Bytes at the worst moment.
        peak_without_gradients: Bytes at the worst moment, parameters' gradients left out.
    """

    def __init__(self, model: nn.Module):
        """
        Args:
            model: Its parameters, gradients and buffers are there already and are not counted.
        """
        super().__init__()
        self.peak = self.peak_without_gradients = 0
        self._live = self._gradients = 0
        self._looked_at = [0.0, 0.0]
        self._sizes: dict[weakref.ref, int] = {}
        self._gradient_refs: set[weakref.ref] = set()
        self._model = model

    def __enter__(self) -> "LiveMemory":
        for tensor in (*self._model.parameters(), *self._model.buffers()):
            self._know(tensor, 0)
            if isinstance(tensor, nn.Parameter) and tensor.grad is not None:
                self._know(tensor.grad, 0)
        trained = [p for p in self._model.parameters() if p.requires_grad]
        self._hooks = [p.register_post_accumulate_grad_hook(self._is_gradient) for p in trained]
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        for hook in self._hooks:
            hook.remove()

    def __torch_dispatch__(self, function: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        result = function(*args, **(kwargs or {}))
        for tensor in tree_iter(result):
            if isinstance(tensor, Tensor):
                self._know(tensor)
        self._record()
        return result

    def _record(self) -> None:
        # What a checkpointed layer computes again stands in reference cycles where tensors are fake, which real ones
        # do not: garbage is no memory. Looking for it takes time, so only when the backward sets a record.
        new = any(now > before for now, before in zip(self._sums(), self._looked_at, strict=True))
        if new and torch._C._current_graph_task_id() != -1:
            gc.collect()
            self._looked_at = [max(1.01 * n, b) for n, b in zip(self._sums(), self._looked_at, strict=True)]
        self.peak = max(self.peak, self._live)
        self.peak_without_gradients = max(self.peak_without_gradients, self._live - self._gradients)

    def _sums(self) -> tuple[int, int]:
        return self._live, self._live - self._gradients

    def _know(self, tensor: Tensor, size: int | None = None) -> None:
        storage = tensor.untyped_storage()
        key = weakref.ref(storage, self._forget)
        if key not in self._sizes:
            self._sizes[key] = storage.nbytes() if size is None else size
            self._live += self._sizes[key]

    def _forget(self, key: weakref.ref) -> None:
        size = self._sizes.pop(key, 0)
        self._live -= size
        if key in self._gradient_refs:
            self._gradient_refs.discard(key)
            self._gradients -= size

    def _is_gradient(self, parameter: Tensor) -> None:
        key = weakref.ref(parameter.grad.untyped_storage(), self._forget)
        if key in self._sizes and key not in self._gradient_refs:
            self._gradient_refs.add(key)
            self._gradients += self._sizes[key]


class _ShapesOnly(FakeTensorMode):
    """Fake tensors beside a few real ones, such as masks, whose values decide about what is computed."""

    def __init__(self):
        super().__init__(allow_non_fake_inputs=True)

    def __torch_dispatch__(self, function: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        tensors = [value for value in tree_iter((args, kwargs)) if isinstance(value, Tensor)]
        if tensors and not any(isinstance(tensor, FakeTensor) or tensor.is_meta for tensor in tensors):
            return function(*args, **(kwargs or {}))
        return super().__torch_dispatch__(function, types, args, kwargs or {})


def device_bytes(on_cpu: bool) -> int:
    """Memory of the accelerator that this process uses, or of the host."""
    if on_cpu:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return torch.accelerator.get_memory_info()[1]


@contextmanager
def without_memory(dtype: torch.dtype = torch.float32) -> Iterator[None]:
    """A model that is built inside has weights of `dtype` that take no memory."""
    default = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device("meta"):
            yield
    finally:
        torch.set_default_dtype(default)


def mixed_precision(model: nn.Module, dtype: torch.dtype | None) -> None:
    """Wraps the model's forward as accelerate does: autocast inside, fp32 results.

    Args:
        model: Changed in place.
        dtype: What matrix products are done in; none leaves the model as it is.
    """
    if dtype is not None:
        model.forward = convert_outputs_to_fp32(torch.autocast("cpu", dtype)(model.forward))


def count_step(model: nn.Module, forward_and_backward: Callable[[], None]) -> Step:
    """Runs a step and counts.

    Args:
        model: Built inside `without_memory`; of no use afterwards.
        forward_and_backward: Makes its own large inputs, and leaves the gradients in the model. Tensors from outside
            keep their values.
    """
    flops = FlopCounterMode(display=False, custom_mapping=_CPU_ATTENTION)
    # Fake tensors say that they are on the CPU: autocast and attention's kernels depend on a device.
    with _ShapesOnly():
        model.to_empty(device="cpu")
        gc.collect()
        gc.freeze()  # what is there already is not looked through again
        try:
            with flops, LiveMemory(model) as memory:
                forward_and_backward()
        finally:
            gc.unfreeze()
    return Step(memory.peak, memory.peak_without_gradients, flops.get_total_flops() / 1e12)
