import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from medfinetune.preflight.step import LiveMemory, count_step, mixed_precision, without_memory
from tests.preflight.tracked import tracked_peak

ROWS = 512


def build():
    return nn.Sequential(nn.Linear(128, 512), nn.GELU(), nn.Linear(512, 512), nn.GELU(), nn.Linear(512, 8))


def counted(dtype=torch.float32, autocast=None):
    with without_memory(dtype):
        model = build()
    mixed_precision(model, autocast)
    return count_step(model, lambda: model(torch.zeros(ROWS, 128, dtype=dtype)).sum().backward())


def test_peak_is_torchs_own():
    model = build()
    weights = sum(p.nbytes for p in model.parameters())
    optimizer = torch.optim.SGD(model.parameters())
    measured = tracked_peak(model, optimizer, lambda: model(torch.zeros(ROWS, 128)).sum().backward())
    assert counted().peak_bytes == measured - weights


def test_gradients_are_told_from_activations():
    """A wide layer on one row: nearly all that there is at the peak are gradients."""
    with without_memory():
        model = nn.Sequential(nn.Linear(16, 4096), nn.Linear(4096, 1024))
    step = count_step(model, lambda: model(torch.zeros(1, 16)).sum().backward())
    assert step.peak_bytes > 4 * 4096 * 1024
    assert step.peak_bytes - step.activation_bytes > 0.9 * 4 * 4096 * 16


def test_arithmetic_is_counted():
    """Two operations a weight and row forward, four backward; none for the gradient of the input."""
    forward = 2 * ROWS * (128 * 512 + 512 * 512 + 512 * 8)
    assert counted().tflop * 1e12 == pytest.approx(3 * forward - 2 * ROWS * 128 * 512)


def test_attention_is_counted_and_keeps_no_scores():
    def attend(q):
        return nn.functional.scaled_dot_product_attention(q, q, q, is_causal=True)

    with without_memory():
        model = nn.Linear(64, 64)
    step = count_step(model, lambda: attend(model(torch.zeros(1, 4, 2048, 64))).sum().backward())
    product, scores = 2 * 4 * 2048 * 2048 * 64, 4 * 4 * 2048 * 2048
    assert step.tflop * 1e12 > (2 + 5) * product
    assert step.activation_bytes < scores


def test_half_precision_halves_activations():
    assert counted(torch.bfloat16).activation_bytes == pytest.approx(counted().activation_bytes / 2, rel=0.01)
    assert counted(autocast=torch.bfloat16).activation_bytes < 0.8 * counted().activation_bytes


def test_checkpointed_layers_are_not_held():
    """Fake tensors leave recomputed layers in reference cycles, which must not be counted."""

    class Deep(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = nn.ModuleList(
                nn.Sequential(nn.Linear(128, 512), nn.GELU(), nn.Linear(512, 128)) for _ in range(12)
            )

        def forward(self, x):
            for layer in self.layers:
                x = checkpoint(layer, x, use_reentrant=False)
            return x

    with without_memory():
        model = Deep()
    step = count_step(model, lambda: model(torch.zeros(ROWS, 128)).sum().backward())
    real = Deep()
    with LiveMemory(real) as memory:
        real(torch.zeros(ROWS, 128)).sum().backward()
    assert step.peak_bytes == pytest.approx(memory.peak, rel=0.03)


def test_default_dtype_is_restored_after_an_error():
    with pytest.raises(RuntimeError), without_memory(torch.bfloat16):
        raise RuntimeError
    assert torch.get_default_dtype() == torch.float32
    assert torch.zeros(1).device.type == "cpu"
