"""The pairwise sigmoid loss, with its gradient written out so that no N x N graph is kept."""

import torch
from torch import Tensor
from torch.nn import functional as F


def sigmoid_loss(
    image_embeds: Tensor,
    text_embeds: Tensor,
    logit_scale: Tensor,
    logit_bias: Tensor,
    targets: Tensor | None = None,
    weights: Tensor | None = None,
    chunk_rows: int = 256,
) -> Tensor:
    """Pairwise sigmoid loss of SigLIP (Zhai et al. 2023, arXiv:2303.15343, equation 1).

    Computed in fp32 (fp64 inputs stay fp64), whatever the autocast.

    Args:
        image_embeds: `(B, D)`, unit norm.
        text_embeds: `(N, D)`, unit norm; row `i` belongs to image `i`.
        logit_scale: Scalar, already exponentiated (checkpoints store the log).
        logit_bias: Scalar; about -10 when trained from scratch.
        targets: `(B, N)` in [0, 1]; the diagonal where left out.
        weights: `(B, N)`, 0 ignores a pair; ones where left out.
        chunk_rows: Rows handled at once; memory grows with `chunk_rows * N`.

    Returns:
        Scalar in nats, summed over texts and averaged over images.

    Raises:
        ValueError: Shapes that do not fit each other, or `targets` left out with fewer texts than images.
    """
    num_images, num_texts = image_embeds.shape[0], text_embeds.shape[0]
    if image_embeds.ndim != 2 or text_embeds.ndim != 2 or image_embeds.shape[1] != text_embeds.shape[1]:
        raise ValueError(f"embeddings of shapes {tuple(image_embeds.shape)} and {tuple(text_embeds.shape)} do not fit")
    if targets is None and num_texts < num_images:
        raise ValueError(f"{num_images} images have only {num_texts} texts: give `targets`")
    for name, matrix in (("targets", targets), ("weights", weights)):
        if matrix is not None and matrix.shape != (num_images, num_texts):
            raise ValueError(f"{name} has shape {tuple(matrix.shape)}, not {(num_images, num_texts)}")
    with torch.autocast(image_embeds.device.type, enabled=False):
        dtype = torch.promote_types(torch.promote_types(image_embeds.dtype, text_embeds.dtype), torch.float32)
        floats = [tensor.to(dtype) for tensor in (image_embeds, text_embeds, logit_scale, logit_bias)]
        return _SigmoidLoss.apply(*floats, targets, weights, chunk_rows)


class _SigmoidLoss(torch.autograd.Function):
    """With logits Z = scale * X Y^T + bias: dL/dZ = weights * (sigmoid(Z) - targets) / B, made by blocks of rows.

    Beside three matrix products a block costs five passes over its `chunk_rows * N` entries: factors are put on the
    embeddings, which are smaller, and dL/dscale is read off the gradient of the images.
    """

    @staticmethod
    def forward(ctx, image_embeds, text_embeds, scale, bias, targets, weights, chunk_rows):
        num_images = image_embeds.shape[0]
        image_grad, text_grad = torch.empty_like(image_embeds), torch.zeros_like(text_embeds)
        bias_grad = torch.zeros_like(bias)
        loss = image_embeds.new_zeros(())
        for start in range(0, num_images, chunk_rows):
            rows = slice(start, min(start + chunk_rows, num_images))
            scaled = image_embeds[rows] * scale
            logits = (scaled @ text_embeds.T).add_(bias)
            if targets is None:
                # -log sigmoid(-z) is the loss of a negative pair; a positive one differs from it by -z.
                block = F.softplus(logits)
                block.diagonal(start).sub_(logits.diagonal(start))
                grad = logits.sigmoid_()
                grad.diagonal(start).sub_(1)
            else:
                block_targets = targets[rows].to(logits.dtype)
                block = F.softplus(logits).addcmul_(logits, block_targets, value=-1)
                grad = logits.sigmoid_().sub_(block_targets)
            if weights is not None:
                block_weights = weights[rows].to(logits.dtype)
                block.mul_(block_weights)
                grad.mul_(block_weights)
            loss += block.sum()
            bias_grad += grad.sum()
            image_grad[rows] = grad @ text_embeds
            text_grad.addmm_(grad.T, scaled)
        # So far dL/dZ was without its 1 / B, and dZ/dX without the scale.
        scale_grad = (image_grad * image_embeds).sum() / num_images
        grads = image_grad.mul_(scale / num_images), text_grad.div_(num_images), scale_grad, bias_grad / num_images
        ctx.save_for_backward(*grads)
        return loss / num_images

    @staticmethod
    def backward(ctx, grad_output):
        return (*[grad * grad_output for grad in ctx.saved_tensors], None, None, None)


def softmax_normalized_loss(
    image_embeds: Tensor,
    text_embeds: Tensor,
    logit_scale: Tensor,
    logit_bias: Tensor,
    targets: Tensor | None = None,
    weights: Tensor | None = None,
) -> Tensor:
    """Cross-entropy of each image over all texts, a softmax.

    `L = -(1/B) sum_i [z_ii - log sum_j exp(z_ij)]`, `z_ij = scale * cos(image_i, text_j) + bias`, `j` over all texts.

    This is how we read the formula with a log-sum-exp that the project's first note printed under the name of the
    sigmoid loss; here for comparison. The bias stands in both terms and cancels: it learns nothing. Unrelated
    embeddings cost ln N. With several right texts an image, their share of the probability is what is learned, each as
    much.

    Args:
        image_embeds: `(B, D)`, unit norm.
        text_embeds: `(N, D)`, unit norm; row `i` belongs to image `i`.
        logit_scale: Scalar, already exponentiated.
        logit_bias: Scalar.
        targets: `(B, N)` in [0, 1], at least one above 0 in each row; the diagonal where left out.
        weights: `(B, N)`, 0 leaves a text out of the sum; ones where left out.

    Returns:
        Scalar in nats, averaged over images.
    """
    with torch.autocast(image_embeds.device.type, enabled=False):
        dtype = torch.promote_types(torch.promote_types(image_embeds.dtype, text_embeds.dtype), torch.float32)
        images, texts, scale, bias = (t.to(dtype) for t in (image_embeds, text_embeds, logit_scale, logit_bias))
        logits = images @ texts.T * scale + bias
        if weights is not None:
            logits = logits.masked_fill(weights == 0, -torch.inf)
        if targets is None:
            return F.cross_entropy(logits, torch.arange(len(logits), device=logits.device))
        share = targets.to(dtype) if weights is None else targets.to(dtype) * (weights != 0)
        share = share / share.sum(dim=1, keepdim=True)
        log_probability = logits.log_softmax(dim=1)
        return -log_probability.masked_fill(share == 0, 0).mul(share).sum(dim=1).mean()
