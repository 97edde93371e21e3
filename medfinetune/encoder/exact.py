"""The loss of a whole batch, of all processes, at the memory of a micro-batch.

The gradient of a contrastive loss needs every embedding of the batch, but not every graph at once: embed without
graphs, take the gradient with respect to the embeddings, embed again piece by piece and hand each piece its part (Gao
et al. 2021, arXiv:2101.06983).
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor

from medfinetune.distributed import gather, rank, sum_over_processes
from medfinetune.encoder.labels import Duplicates, labels_from_groups
from medfinetune.encoder.loss import sigmoid_loss, softmax_normalized_loss

Loss = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
"""`(B, D)` own images, `(N, D)` texts of all processes, scale (exponentiated), bias -> mean over the own images."""


def whole_batch_loss(
    groups: Tensor | None,
    all_groups: Tensor | None,
    first_text: int = 0,
    duplicates: Duplicates = "positive",
    loss_type: Literal["sigmoid", "softmax_normalized"] = "sigmoid",
) -> Loss:
    """The loss of the own images against all processes' texts; targets and weights are made as their rows come up.

    Args:
        groups: `(B, 5)`, see `group_ids_of`; where there are none, only the pairs themselves are positive.
        all_groups: `(N, 5)`, those of all processes.
        first_text: Where the own texts begin among all.
        duplicates: See `labels_from_groups`.
        loss_type: `sigmoid_loss` or `softmax_normalized_loss`.
    """
    function = sigmoid_loss if loss_type == "sigmoid" else softmax_normalized_loss
    if groups is None or all_groups is None or duplicates == "negative":
        return partial(function, first_text=first_text)

    def labels(rows: slice) -> tuple[Tensor, Tensor]:
        return labels_from_groups(groups[rows], all_groups, first_text + rows.start, duplicates)

    return partial(function, labels=labels)


@dataclass(frozen=True, slots=True)
class EmbeddingGradients:
    """The loss of the own images and its gradients.

    Attributes:
        loss: Scalar.
        image: `(B, D)`; none for a frozen tower, as with `text`.
        text: `(B, D)`: of the own texts, summed over all processes' images.
        log_scale: Scalar, own images only, as is `bias`.
        bias: Scalar.
    """

    loss: Tensor
    image: Tensor | None
    text: Tensor | None
    log_scale: Tensor
    bias: Tensor


def embedding_gradients(
    image_embeds: Tensor,
    text_embeds: Tensor,
    log_scale: Tensor,
    bias: Tensor,
    loss: Loss,
    towers_learn: tuple[bool, bool] = (True, True),
) -> EmbeddingGradients:
    """Takes the gradient of the loss of this process's images against every process's texts.

    The mean of all processes' gradients is the gradient of the loss of the whole batch, so that what DDP and
    DeepSpeed do (averaging) is right as it is.

    Args:
        image_embeds: `(B, D)`, unit norm, as `text_embeds`; the same B in every process.
        log_scale: Scalar, the log of the temperature.
        bias: Scalar.
        towers_learn: Whether the images' and the texts' gradients are wanted; the same in every process.
    """
    tensors = (image_embeds, gather(text_embeds), log_scale, bias)
    leaves = [
        t.detach().to(torch.promote_types(t.dtype, torch.float32)).requires_grad_(learns)
        for t, learns in zip(tensors, (*towers_learn, True, True), strict=True)
    ]
    with torch.enable_grad():
        value = loss(leaves[0], leaves[1], leaves[2].exp(), leaves[3])
    value.backward()
    image, text, *scalars = (
        leaf.grad if leaf.grad is not None or not leaf.requires_grad else torch.zeros_like(leaf) for leaf in leaves
    )
    if text is not None:
        text = sum_over_processes(text)[rank() * len(image_embeds) : (rank() + 1) * len(image_embeds)]
    return EmbeddingGradients(value.detach(), image, text, *scalars)


def exact_backward(
    embed: Callable[[dict[str, Tensor]], tuple[Tensor, Tensor]],
    inputs: dict[str, Tensor],
    micro_batch_size: int,
    log_scale: Tensor,
    bias: Tensor,
    loss: Loss,
    backward: Callable[[Tensor, bool], None],
    no_sync: Callable[[], AbstractContextManager],
) -> Tensor:
    """Gradients of the whole batch's loss, with the graphs of `micro_batch_size` pairs alive at a time.

    Args:
        embed: Inputs -> image and text embeddings, `(b, D)` each, unit norm.
        inputs: Tensors with B rows each.
        micro_batch_size: Pairs embedded at a time.
        log_scale: The model's own parameter, scalar; as is `bias`.
        loss: See `Loss`.
        backward: Called with a scalar to go backward from, and with whether it is the last of this batch.
        no_sync: Keeps DDP from reducing; entered for all but the last piece.

    Returns:
        The loss of this process's images, without a graph.
    """
    pieces = _split(inputs, micro_batch_size)
    states, embedded = [], []
    for piece in pieces[:-1]:
        states.append(_RandomState(piece))
        with torch.no_grad():
            embedded.append(embed(piece))
    # The last piece keeps its graph and goes backward first: it need not be embedded again.
    alone = len(pieces) == 1
    with _nothing() if alone else no_sync():
        kept = embed(pieces[-1])
    images, texts = (torch.cat([*(pair[i] for pair in embedded), kept[i].detach()]) for i in (0, 1))
    del embedded
    grads = embedding_gradients(images, texts, log_scale, bias, loss, tuple(embeds.requires_grad for embeds in kept))
    split_grads = [None if grad is None else grad.split(micro_batch_size) for grad in (grads.image, grads.text)]
    scalars = log_scale * grads.log_scale + bias * grads.bias

    def go_back(embeds: tuple[Tensor, Tensor], i: int, last: bool) -> None:
        # Its gradient is the loss's own, whatever its value.
        towers = zip(embeds, split_grads, strict=True)
        surrogate = sum((embeds * grads[i]).sum() for embeds, grads in towers if grads is not None)
        backward(surrogate + scalars if last else surrogate, last)

    if alone:
        go_back(kept, -1, last=True)
        return grads.loss
    with no_sync():
        go_back(kept, -1, last=False)
    del kept
    for i, (piece, state) in enumerate(zip(pieces[:-1], states, strict=True)):
        last = i == len(states) - 1
        with _nothing() if last else no_sync():
            with state.replay():
                embeds = embed(piece)
            go_back(embeds, i, last)
            del embeds
    return grads.loss


def _split(inputs: dict[str, Tensor], size: int) -> list[dict[str, Tensor]]:
    parts: dict[str, Sequence[Tensor]] = {name: tensor.split(size) for name, tensor in inputs.items()}
    return [dict(zip(parts, values, strict=True)) for values in zip(*parts.values(), strict=True)]


class _RandomState:
    """The random numbers that a piece will draw, so that dropout is the same when it is embedded again."""

    def __init__(self, piece: dict[str, Tensor]):
        device = next(iter(piece.values())).device
        self._accelerator = None if device.type == "cpu" else device
        self._cpu = torch.get_rng_state()
        if self._accelerator is not None:
            self._device = self._module().get_rng_state(self._accelerator)

    @contextmanager
    def replay(self):
        devices = [] if self._accelerator is None else [self._accelerator]
        kind = self._accelerator.type if self._accelerator else "cuda"
        with torch.random.fork_rng(devices, device_type=kind):
            torch.set_rng_state(self._cpu)
            if self._accelerator is not None:
                self._module().set_rng_state(self._device, self._accelerator)
            yield

    def _module(self) -> Any:
        return getattr(torch, self._accelerator.type)


@contextmanager
def _nothing():
    yield
