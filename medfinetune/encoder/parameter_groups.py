"""Which parameter learns at which rate."""

import re
from collections.abc import Iterable, Mapping

import torch
from torch import nn

SCALE_AND_BIAS = ("logit_scale", "logit_bias")
_LAYER = re.compile(r"\bencoder\.layers\.(\d+)\.")


def place_of(name: str, num_layers: Mapping[str, int]) -> tuple[str, int]:
    """Says where in a SigLIP a parameter stands.

    Args:
        name: As `named_parameters` gives it, with or without the prefixes of adapters and wrappers.
        num_layers: Encoder layers of `vision` and of `text`.

    Returns:
        `vision`, `text` or `logit`, and the steps below the top of its tower: 0 for the last norm and the head, 1 for
        the last layer, and one more than there are layers for the embeddings.

    Raises:
        ValueError: It is none of a SigLIP's parameters.
    """
    if name.endswith(SCALE_AND_BIAS):
        return "logit", 0
    for tower in ("vision", "text"):
        if f"{tower}_model." in name:
            layer = _LAYER.search(name)
            if layer:
                return tower, num_layers[tower] - int(layer[1])
            return tower, num_layers[tower] + 1 if f"{tower}_model.embeddings." in name else 0
    raise ValueError(f"{name} is no parameter of a SigLIP")


def learning_rates(
    names: Iterable[str],
    num_layers: Mapping[str, int],
    learning_rate: float,
    layer_decay: float = 1.0,
    vision_lr: float | None = None,
    text_lr: float | None = None,
    logit_lr: float | None = None,
) -> dict[str, float]:
    """The learning rate of each parameter: its tower's, times `layer_decay` for each step below the top.

    Layer-wise decay as in BEiT (Bao et al. 2021, arXiv:2106.08254, appendix).

    Args:
        names: As `named_parameters` gives them.
        num_layers: Encoder layers of `vision` and of `text`.
        learning_rate: Where the tower has none of its own.
        layer_decay: In (0, 1]; 1 for no decay.
        vision_lr: Of the vision tower's top.
        text_lr: Of the text tower's top.
        logit_lr: Of temperature and bias.
    """
    own = {"vision": vision_lr, "text": text_lr, "logit": logit_lr}
    top = {tower: learning_rate if rate is None else rate for tower, rate in own.items()}
    places = {name: place_of(name, num_layers) for name in names}
    return {name: top[tower] * layer_decay**below for name, (tower, below) in places.items()}


def split_groups(optimizer: torch.optim.Optimizer, model: nn.Module, rates: Mapping[str, float]) -> None:
    """Splits an optimizer's groups by learning rate, in place; weight decay and all else stay as they are.

    Args:
        optimizer: A new one, before its first step and before its schedule, which then scales every group.
        model: Whose parameters it holds.
        rates: The learning rate by parameter name.
    """
    rate_of = {parameter: rates[name] for name, parameter in model.named_parameters()}
    groups = []
    for group in optimizer.param_groups:
        by_rate: dict[float, list[nn.Parameter]] = {}
        for parameter in group["params"]:
            by_rate.setdefault(rate_of[parameter], []).append(parameter)
        # The highest first: the Trainer logs the rate of the first group.
        for rate in sorted(by_rate, reverse=True):
            groups.append(group | {"params": by_rate[rate], "lr": rate})
    optimizer.param_groups = groups
