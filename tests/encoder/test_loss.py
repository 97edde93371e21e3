import math

import pytest
import torch
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from medfinetune.encoder.exact import whole_batch_loss
from medfinetune.encoder.labels import labels_from_groups
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
        ({"first_text": 1}, "3 images have only 2 texts"),
        ({"weights": torch.ones(3, 3), "labels": lambda rows: None}, "give one or the other"),
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


class Largest(TorchDispatchMode):
    """The number of entries of the largest tensor that anything makes."""

    entries = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        made = out if isinstance(out, tuple | list) else [out]
        self.entries = max([self.entries, *(t.numel() for t in made if isinstance(t, torch.Tensor))])
        return out


def groups_of(num_pairs):
    """Texts, labels, images and patients that some pairs share."""
    return torch.stack([torch.randint(int(n == 1), num_pairs // 2 + n, (num_pairs,)) for n in (1, 2, 3, 4, 5)], dim=1)


@pytest.mark.parametrize("kind", ["alone", "positive", "ignore", "negative", "unknown"])
def test_no_table_of_all_pairs_is_made(kind):
    """Neither by the loss nor by what the trainer calls: the largest tensor is of `chunk_rows` rows."""
    num_pairs, chunk_rows = 1024, 256
    inputs, groups = made(num_pairs, num_pairs, 4, torch.float32), groups_of(num_pairs)
    losses = {"alone": sigmoid_loss, "unknown": whole_batch_loss(None, None)}
    loss = losses.get(kind) or whole_batch_loss(groups, groups, 0, kind)
    with Largest() as largest:
        loss(*inputs).backward()
    assert largest.entries == chunk_rows * num_pairs


@pytest.mark.parametrize("duplicates", ["positive", "ignore", "negative"])
@pytest.mark.parametrize("chunk", [1, 3, 256])
def test_labels_made_by_rows_are_the_whole_tables(duplicates, chunk):
    """For images 4 to 11 of 17, as the second of several processes has them."""
    inputs, groups = made(7, 17, 5), groups_of(17)
    targets, weights = labels_from_groups(groups[4:11], groups, 4, duplicates)
    expected = sigmoid_loss(*inputs, targets, weights)
    by_rows = whole_batch_loss(groups[4:11], groups, 4, duplicates)(*inputs, chunk_rows=chunk)
    torch.testing.assert_close(by_rows, expected, rtol=1e-12, atol=0)
    torch.testing.assert_close(expected, reference(*inputs, targets, weights), rtol=1e-12, atol=1e-12)
    for one, two in zip(*(torch.autograd.grad(loss, inputs) for loss in (by_rows, expected)), strict=True):
        torch.testing.assert_close(one, two, rtol=1e-10, atol=1e-13)
    softmax = whole_batch_loss(groups[4:11], groups, 4, duplicates, "softmax_normalized")(*inputs)
    expected = softmax_normalized_loss(*inputs, targets, weights)
    torch.testing.assert_close(softmax, expected, rtol=1e-12, atol=0)


def test_soft_targets_by_rows():
    inputs, targets, weights = made(7, 11, 4), torch.rand(7, 11), torch.rand(7, 11)
    expected = sigmoid_loss(*inputs, targets, weights)
    by_rows = sigmoid_loss(*inputs, labels=lambda rows: (targets[rows], weights[rows]), chunk_rows=3)
    torch.testing.assert_close(by_rows, expected, rtol=1e-12, atol=0)


@pytest.mark.parametrize("loss", [sigmoid_loss, softmax_normalized_loss])
def test_own_texts_begin_where_it_is_said(loss):
    inputs = made(3, 8, 4)
    targets = torch.zeros(3, 8)
    targets.diagonal(5).fill_(1)
    torch.testing.assert_close(loss(*inputs, first_text=5), loss(*inputs, targets), rtol=1e-12, atol=0)


class Products(TorchDispatchMode):
    """How many matrix products are taken."""

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += func.overloadpacket in (torch.ops.aten.mm, torch.ops.aten.addmm, torch.ops.aten.addmm_)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(("frozen", "products"), [((), 3), ((1,), 2), ((0, 2, 3), 2), ((0, 1, 2, 3), 1)])
def test_only_gradients_that_are_asked_for_are_made(frozen, products):
    inputs = made(6, 6, 4)
    expected = torch.autograd.grad(sigmoid_loss(*inputs), inputs)
    for i in frozen:
        inputs[i].requires_grad_(False)
    with Products() as counted:
        loss = sigmoid_loss(*inputs)
    assert counted.count == products
    with torch.no_grad(), Products() as counted:
        assert torch.equal(sigmoid_loss(*inputs), loss.detach())
    assert counted.count == 1
    asked = [i for i in range(4) if i not in frozen]
    if asked:
        for i, grad in zip(asked, torch.autograd.grad(loss, [inputs[i] for i in asked]), strict=True):
            torch.testing.assert_close(grad, expected[i], rtol=1e-12, atol=1e-15)


def test_a_second_derivative_is_refused_and_not_wrong():
    inputs = made(3, 3, 4)
    (grad,) = torch.autograd.grad(sigmoid_loss(*inputs) ** 2, inputs[0], create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        grad.sum().backward()
