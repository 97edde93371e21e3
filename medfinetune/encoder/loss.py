"""The pairwise sigmoid loss, with its gradient written out so that no N x N graph is kept."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

Labels = Callable[[slice], tuple[Tensor, Tensor]]
"""Some of the images, as a slice with start and stop -> their `targets` and `weights`, `(stop - start, N)` each."""


def sigmoid_loss(
    image_embeds: Tensor,
    text_embeds: Tensor,
    logit_scale: Tensor,
    logit_bias: Tensor,
    targets: Tensor | None = None,
    weights: Tensor | None = None,
    chunk_rows: int = 256,
    first_text: int = 0,
    labels: Labels | None = None,
) -> Tensor:
    """Pairwise sigmoid loss of SigLIP (Zhai et al. 2023, arXiv:2303.15343, equation 1).

    Computed in fp32 (fp64 inputs stay fp64), whatever the autocast. Differentiable once.

    Args:
        image_embeds: `(B, D)`, unit norm.
        text_embeds: `(N, D)`, unit norm; row `first_text + i` belongs to image `i`.
        logit_scale: Scalar, already exponentiated (checkpoints store the log).
        logit_bias: Scalar; about -10 when trained from scratch.
        targets: `(B, N)` in [0, 1]; each image's own text where left out.
        weights: `(B, N)`, 0 ignores a pair; ones where left out.
        chunk_rows: Rows handled at once; memory grows with `chunk_rows * N`.
        first_text: The text of image 0; those of the other images follow it.
        labels: In the place of `targets` and `weights`: makes them for some rows when their turn comes, so that no
            table of `(B, N)` is ever there.

    Returns:
        Scalar in nats, summed over texts and averaged over images.

    Raises:
        ValueError: Shapes that do not fit each other, too few texts for the images where `targets` are left out, or
            `labels` beside `targets` or `weights`.
    """
    _check_shapes(image_embeds, text_embeds, targets, weights, first_text, labels)
    with torch.autocast(image_embeds.device.type, enabled=False):
        dtype = torch.promote_types(torch.promote_types(image_embeds.dtype, text_embeds.dtype), torch.float32)
        floats = [tensor.to(dtype) for tensor in (image_embeds, text_embeds, logit_scale, logit_bias)]
        if not torch.is_grad_enabled():
            # The function is told which of its inputs want a gradient, but not that nobody will ask.
            floats = [tensor.detach() for tensor in floats]
        return _SigmoidLoss.apply(*floats, targets, weights, chunk_rows, first_text, labels)


def _check_shapes(
    image_embeds: Tensor,
    text_embeds: Tensor,
    targets: Tensor | None,
    weights: Tensor | None,
    first_text: int,
    labels: Labels | None,
) -> None:
    num_images, num_texts = image_embeds.shape[0], text_embeds.shape[0]
    if image_embeds.ndim != 2 or text_embeds.ndim != 2 or image_embeds.shape[1] != text_embeds.shape[1]:
        raise ValueError(f"embeddings of shapes {tuple(image_embeds.shape)} and {tuple(text_embeds.shape)} do not fit")
    if labels is not None and (targets is not None or weights is not None):
        raise ValueError("labels make targets and weights: give one or the other")
    if labels is None and targets is None and num_texts < first_text + num_images:
        raise ValueError(f"{num_images} images have only {num_texts - first_text} texts: give `targets`")
    for name, matrix in (("targets", targets), ("weights", weights)):
        if matrix is not None and matrix.shape != (num_images, num_texts):
            raise ValueError(f"{name} has shape {tuple(matrix.shape)}, not {(num_images, num_texts)}")


class _SigmoidLoss(torch.autograd.Function):
    """With logits Z = scale * X Y^T + bias: dL/dZ = weights * (sigmoid(Z) - targets) / B, made by blocks of rows.

    Beside three matrix products a block costs five passes over its `chunk_rows * N` entries: factors are put on the
    embeddings, which are smaller, and dL/dscale is read off the gradient of the images.
    """

    @staticmethod
    def forward(ctx, image_embeds, text_embeds, scale, bias, targets, weights, chunk_rows, first_text, labels):
        num_images = image_embeds.shape[0]
        of_images, of_texts, of_scale, of_bias = ctx.needs_input_grad[:4]
        of_images = of_images or of_scale  # dL/dscale is read off it
        image_grad = torch.empty_like(image_embeds) if of_images else None
        text_grad = torch.zeros_like(text_embeds) if of_texts else None
        bias_grad, loss = torch.zeros_like(bias), image_embeds.new_zeros(())
        for start in range(0, num_images, chunk_rows):
            rows = slice(start, min(start + chunk_rows, num_images))
            scaled = image_embeds[rows] * scale
            logits = (scaled @ text_embeds.T).add_(bias)
            if labels is None:
                block_targets, block_weights = (None if table is None else table[rows] for table in (targets, weights))
            else:
                block_targets, block_weights = labels(rows)
            block, grad = _block(logits, block_targets, block_weights, first_text + start)
            loss += block.sum()
            if of_bias:
                bias_grad += grad.sum()
            if of_images:
                image_grad[rows] = grad @ text_embeds
            if of_texts:
                text_grad.addmm_(grad.T, scaled)
            del logits, grad, block, block_targets, block_weights  # before the next rows need as much
        # So far dL/dZ was without its 1 / B, and dZ/dX without the scale.
        scale_grad = (image_grad * image_embeds).sum() / num_images if of_scale else None
        ctx.save_for_backward(
            image_grad.mul_(scale / num_images) if of_images else None,
            text_grad.div_(num_images) if of_texts else None,
            scale_grad,
            bias_grad / num_images,
        )
        return loss / num_images

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_output):
        pairs = zip(ctx.saved_tensors, ctx.needs_input_grad[:4], strict=True)
        return (*[grad * grad_output if wanted else None for grad, wanted in pairs], *[None] * 5)


def _block(logits: Tensor, targets: Tensor | None, weights: Tensor | None, first_text: int) -> tuple[Tensor, Tensor]:
    """Loss of each pair and its derivative by the logit, `(rows, N)` both; `logits` are used up."""
    # -log sigmoid(-z) is the loss of a negative pair; a positive one differs from it by -z.
    loss = F.softplus(logits)
    if targets is None:
        loss.diagonal(first_text).sub_(logits.diagonal(first_text))
        grad = logits.sigmoid_()
        grad.diagonal(first_text).sub_(1)
    else:
        targets = targets.to(logits.dtype)
        loss.addcmul_(logits, targets, value=-1)
        grad = logits.sigmoid_().sub_(targets)
    if weights is not None:
        weights = weights.to(logits.dtype)
        loss.mul_(weights)
        grad.mul_(weights)
    return loss, grad


def softmax_normalized_loss(
    image_embeds: Tensor,
    text_embeds: Tensor,
    logit_scale: Tensor,
    logit_bias: Tensor,
    targets: Tensor | None = None,
    weights: Tensor | None = None,
    first_text: int = 0,
    labels: Labels | None = None,
) -> Tensor:
    """Cross-entropy of each image over all texts, a softmax.

    `L = -(1/B) sum_i [z_ii - log sum_j exp(z_ij)]`, `z_ij = scale * cos(image_i, text_j) + bias`, `j` over all texts.

    This is how we read the formula with a log-sum-exp that the project's first note printed under the name of the
    sigmoid loss; here for comparison. The bias stands in both terms and cancels: it learns nothing. Unrelated
    embeddings cost ln N. With several right texts an image, their share of the probability is what is learned, each as
    much.

    Args:
        image_embeds: `(B, D)`, unit norm.
        text_embeds: `(N, D)`, unit norm; row `first_text + i` belongs to image `i`.
        logit_scale: Scalar, already exponentiated.
        logit_bias: Scalar.
        targets: `(B, N)` in [0, 1], at least one above 0 in each row; each image's own text where left out.
        weights: `(B, N)`, 0 leaves a text out of the sum; ones where left out.
        first_text: The text of image 0; those of the other images follow it.
        labels: In the place of `targets` and `weights`, as in `sigmoid_loss`; asked once, for all rows.

    Returns:
        Scalar in nats, averaged over images.
    """
    with torch.autocast(image_embeds.device.type, enabled=False):
        dtype = torch.promote_types(torch.promote_types(image_embeds.dtype, text_embeds.dtype), torch.float32)
        images, texts, scale, bias = (t.to(dtype) for t in (image_embeds, text_embeds, logit_scale, logit_bias))
        logits = images @ texts.T * scale + bias
        if labels is not None:
            targets, weights = labels(slice(0, len(images)))
        if weights is not None:
            logits = logits.masked_fill(weights == 0, -torch.inf)
        if targets is None:
            return F.cross_entropy(logits, first_text + torch.arange(len(logits), device=logits.device))
        share = targets.to(dtype) if weights is None else targets.to(dtype) * (weights != 0)
        share = share / share.sum(dim=1, keepdim=True)
        log_probability = logits.log_softmax(dim=1)
        return -log_probability.masked_fill(share == 0, 0).mul(share).sum(dim=1).mean()
