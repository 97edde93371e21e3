"""SigLIP's learnable temperature and bias."""

import math

import torch
from torch import Tensor, nn


def initialise_temperature_and_bias(model: nn.Module, init: str | None, num_texts: int) -> None:
    """Sets the two learnable scalars.

    Args:
        model: A `SiglipModel`.
        init: `keep` leaves the checkpoint's own. `paper` sets log 10 and -10 (Zhai et al. 2023, section 3.1), which
            suits a start from scratch with batches of thousands; `prior` sets log 10 and `-ln(num_texts - 1)`, the
            log odds that a text of the batch belongs to an image. Both undo what a pretrained checkpoint has learned.
            None is `paper` where both are 0, as a new `SiglipModel` has them, and `keep` elsewhere.
        num_texts: How many texts an image is compared with.
    """
    scale, bias = model.logit_scale, model.logit_bias
    if init is None and scale.numel() and not scale.any() and not bias.any():
        init = "paper"
    if init in (None, "keep"):
        return
    with torch.no_grad():
        scale.fill_(math.log(10))
        bias.fill_(-10.0 if init == "paper" else -math.log(max(num_texts - 1, 1)))


def scale_and_bias(model: nn.Module) -> tuple[Tensor, Tensor]:
    """Both parameters as scalars, the scale as its logarithm; of a wrapped model too."""
    model = getattr(model, "module", model)
    return model.logit_scale.squeeze(), model.logit_bias.squeeze()
