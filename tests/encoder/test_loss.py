import math

import pytest
import torch
from torch.nn import functional as F

from medfinetune.encoder.loss import sigmoid_loss, softmax_normalized_loss


def reference(images, texts, scale, bias, targets, weights):
    """Equation 1 of the paper, pair by pair."""
    total = torch.zeros((), dtype=images.dtype)
    for i in range(len(images)):
        for j in range(len(texts)):
            logit = scale * (images[i] * texts[j]).sum() + bias
            pair = targets[i, j] * F.logsigmoid(logit) + (1 - targets[i, j]) * F.logsigmoid(-logit)
            total = total - weights[i, j] * pair
    return total / len(images)


def made(num_images, num_texts, dim, dtype=torch.float64):
    images = F.normalize(torch.randn(num_images, dim, dtype=torch.float64), dim=-1)
    texts = F.normalize(torch.randn(num_texts, dim, dtype=torch.float64), dim=-1)
    scalars = [torch.tensor(value, dtype=torch.float64) for value in (7.3, -2.1)]
    return [tensor.to(dtype).requires_grad_() for tensor in (images, texts, *scalars)]


SHAPES = [(1, 1, 1, 256), (3, 3, 5, 2), (7, 11, 4, 3), (8, 8, 16, 8), (5, 9, 3, 1)]


@pytest.mark.parametrize(("num_images", "num_texts", "dim", "chunk"), SHAPES)
@pytest.mark.parametrize("kind", ["diagonal", "soft"])
def test_equals_the_double_loop(num_images, num_texts, dim, chunk, kind):
    inputs = made(num_images, num_texts, dim)
    targets = torch.eye(num_images, num_texts, dtype=torch.float64)
    weights = torch.ones(num_images, num_texts, dtype=torch.float64)
    if kind == "soft":
        targets, weights = torch.rand_like(targets), torch.rand_like(weights).round(decimals=0)
    given = (targets, weights) if kind == "soft" else (None, None)
    ours = torch.autograd.grad(3 * sigmoid_loss(*inputs, *given, chunk_rows=chunk), inputs)
    theirs = torch.autograd.grad(3 * reference(*inputs, targets, weights), inputs)
    torch.testing.assert_close(
        sigmoid_loss(*inputs, *given, chunk_rows=chunk), reference(*inputs, targets, weights), rtol=1e-12, atol=1e-12
    )
    for one, two in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.bfloat16, 1e-2)])
def test_equals_transformers_formula(dtype, tolerance):
    images, texts, scale, bias = made(6, 6, 8, dtype)
    logits = texts.float() @ images.float().T * scale.float() + bias.float()
    signs = 2 * torch.eye(6) - 1
    expected = -F.logsigmoid(signs * logits).sum(dim=-1).mean()
    torch.testing.assert_close(sigmoid_loss(images, texts, scale, bias), expected, rtol=tolerance, atol=tolerance)


def test_start_of_the_paper():
    """At log 10 and -10, unrelated embeddings cost about 10 nats: the positive pair's."""
    images, texts, _, _ = made(64, 64, 512, torch.float32)
    loss = sigmoid_loss(images, texts, torch.tensor(10.0), torch.tensor(-10.0)).item()
    assert math.isclose(loss, 10.0, abs_tol=0.3)


@pytest.mark.parametrize("num_texts", [8, 64])
def test_start_of_the_softmax(num_texts):
    """Unrelated embeddings cost ln N whatever the bias, exactly where all cosines are the same."""
    images = F.normalize(torch.ones(num_texts, 16), dim=1)
    for bias in (-10.0, 0.0):
        loss = softmax_normalized_loss(images, images, torch.tensor(10.0), torch.tensor(bias))
        assert math.isclose(loss.item(), math.log(num_texts), rel_tol=1e-5)
    images, texts, _, _ = made(num_texts, num_texts, 4096, torch.float32)
    loss = softmax_normalized_loss(images, texts, torch.tensor(10.0), torch.tensor(-10.0))
    assert math.isclose(loss.item(), math.log(num_texts), abs_tol=0.1)


def test_fp32_under_autocast():
    images, texts, scale, bias = made(8, 8, 16, torch.float32)
    plain = sigmoid_loss(images, texts, scale, bias)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast = sigmoid_loss(images, texts, scale, bias)
    assert cast.dtype == torch.float32
    assert torch.equal(plain, cast)


def test_weight_zero_ignores_a_pair():
    images, texts, scale, bias = made(4, 4, 8)
    weights = torch.ones(4, 4, dtype=torch.float64)
    weights[:, 1] = 0
    (grad,) = torch.autograd.grad(sigmoid_loss(images, texts, scale, bias, weights=weights), texts)
    assert torch.equal(grad[1], torch.zeros(8, dtype=torch.float64))
    assert (grad[[0, 2, 3]] != 0).all()


def test_large_logits_stay_finite():
    images, texts, _, bias = made(4, 4, 8, torch.float32)
    loss = sigmoid_loss(images, texts, torch.tensor(1e4), bias)
    assert torch.isfinite(loss)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"text_embeds": torch.ones(2, 5)}, "do not fit"),
        ({"text_embeds": torch.ones(2, 4)}, "3 images have only 2 texts"),
        ({"targets": torch.ones(3, 2)}, r"targets has shape \(3, 2\)"),
        ({"weights": torch.ones(3)}, r"weights has shape \(3,\)"),
    ],
)
def test_wrong_shapes(changes, message):
    given = {"image_embeds": torch.ones(3, 4), "text_embeds": torch.ones(3, 4)} | changes
    with pytest.raises(ValueError, match=message):
        sigmoid_loss(**given, logit_scale=torch.tensor(1.0), logit_bias=torch.tensor(0.0))


@pytest.mark.parametrize("seed", range(4))
def test_softmax_normalized_against_loops(seed):
    random = torch.Generator().manual_seed(seed)
    images, texts = (F.normalize(torch.randn(n, 5, generator=random, dtype=torch.float64), dim=1) for n in (3, 7))
    scale, bias = torch.tensor(8.0, dtype=torch.float64), torch.tensor(-3.0, dtype=torch.float64)
    targets = (torch.rand(3, 7, generator=random) < 0.4).double()
    targets.diagonal().fill_(1)
    weights = (torch.rand(3, 7, generator=random) < 0.7).double()
    weights.diagonal().fill_(1)
    total = 0.0
    for i in range(3):
        logits = {j: (scale * images[i] @ texts[j] + bias).item() for j in range(7) if weights[i, j]}
        norm = math.log(sum(math.exp(z) for z in logits.values()))
        right = [j for j in logits if targets[i, j]]
        total -= sum(logits[j] - norm for j in right) / len(right)
    ours = softmax_normalized_loss(images, texts, scale, bias, targets, weights)
    assert math.isclose(ours.item(), total / 3, rel_tol=1e-12)
    plain = softmax_normalized_loss(images, texts, scale, bias)
    expected = F.cross_entropy(scale * images @ texts.T, torch.arange(3))
    torch.testing.assert_close(plain, expected)
