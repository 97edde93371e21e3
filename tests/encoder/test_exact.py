"""One process with the whole batch = micro-batches = two processes = micro-batches in two processes."""

import json
import os
import subprocess
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model

from medfinetune.encoder.exact import embedding_gradients, exact_backward
from medfinetune.encoder.loss import sigmoid_loss
from medfinetune.encoder.model import load_encoder
from tests.encoder import exact_worker
from tests.processes import TWO_PROCESSES

REPO = Path(__file__).parents[2]
TOLERANCES = {"float64": 1e-12, "float32": 1e-5}


@pytest.fixture(scope="module")
def whole(tiny_siglip, tmp_path_factory):
    """What the plain step gives: one process, one batch of 32 in one piece."""
    folder = tmp_path_factory.mktemp("exact")
    return {dtype: trained(folder / dtype, tiny_siglip, dtype, per_device_train_batch_size=32) for dtype in TOLERANCES}


def trained(output, model, dtype, **changes):
    exact_worker.train(str(model), str(output), dtype, **changes)
    return torch.load(output)


def distance(ours, expected, what):
    """Over all parameters together: single ones, as k_proj.bias, have gradients that are rounding noise."""
    assert ours[what].keys() == expected[what].keys()
    difference = torch.cat([(ours[what][name] - tensor).flatten() for name, tensor in expected[what].items()])
    return difference.norm() / torch.cat([tensor.flatten() for tensor in expected[what].values()]).norm()


def assert_same(ours, expected, tolerance):
    assert distance(ours, expected, "gradients") <= tolerance
    assert distance(ours, expected, "weights") <= tolerance
    torch.testing.assert_close(ours["losses"], expected["losses"], rtol=1e-5, atol=0)


@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("micro_batch_size", [4, 5, 32])
def test_micro_batches_are_the_whole_batch(whole, tiny_siglip, tmp_path, dtype, micro_batch_size):
    ours = trained(
        tmp_path / "x", tiny_siglip, dtype, per_device_train_batch_size=32, micro_batch_size=micro_batch_size
    )
    assert_same(ours, whole[dtype], TOLERANCES[dtype])


def train_in_two_processes(runs, **environment):
    command = [*TWO_PROCESSES, str(REPO / "tests" / "encoder" / "exact_worker.py"), json.dumps(runs)]
    environment |= os.environ | {"PYTHONPATH": str(REPO)}
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]


def test_two_processes_are_the_whole_batch(whole, tiny_siglip, tmp_path):
    runs = []
    for dtype in TOLERANCES:
        for size in (None, 4):
            runs.append({"model": str(tiny_siglip), "output": str(tmp_path / f"{dtype}-{size}"), "dtype": dtype})
            runs[-1] |= {"per_device_train_batch_size": 16, "micro_batch_size": size}
    # Accumulated twice: the mean of two losses of 16 pairs each, 8 from either process.
    accumulated = {"per_device_train_batch_size": 8, "micro_batch_size": 4, "gradient_accumulation_steps": 2}
    runs.append({"model": str(tiny_siglip), "output": str(tmp_path / "sum"), "dtype": "float64"} | accumulated)
    train_in_two_processes(runs)
    for run in runs[:-1]:
        assert_same(torch.load(run["output"]), whole[run["dtype"]], TOLERANCES[run["dtype"]])
    alone = trained(
        tmp_path / "alone", tiny_siglip, "float64", per_device_train_batch_size=16, gradient_accumulation_steps=2
    )
    assert_same(torch.load(tmp_path / "sum"), alone, 1e-12)


@pytest.mark.slow
def test_deepspeed_zero_2_is_the_whole_batch(whole, tiny_siglip, tmp_path):
    """DeepSpeed has no `no_sync`: its accumulation boundary is set instead."""
    settings = {"zero_optimization": {"stage": 2}, "zero_allow_untested_optimizer": True}
    keys = ("train_micro_batch_size_per_gpu", "gradient_accumulation_steps", "train_batch_size", "gradient_clipping")
    settings |= dict.fromkeys(keys, "auto")
    shared = {"model": str(tiny_siglip), "dtype": "float32", "micro_batch_size": 4, "deepspeed": settings}
    runs = [
        shared | {"output": str(tmp_path / "once"), "per_device_train_batch_size": 16},
        shared
        | {"output": str(tmp_path / "twice"), "per_device_train_batch_size": 8, "gradient_accumulation_steps": 2},
    ]
    for run in runs:
        train_in_two_processes([run], DS_ACCELERATOR="cpu", ACCELERATE_USE_DEEPSPEED="true")
    sizes = {"per_device_train_batch_size": 16, "gradient_accumulation_steps": 2}
    alone = {"once": whole["float32"], "twice": trained(tmp_path / "alone", tiny_siglip, "float32", **sizes)}
    for name, expected in alone.items():
        ours = torch.load(tmp_path / name)
        assert distance(ours, expected, "weights") <= 1e-5
        torch.testing.assert_close(ours["losses"], expected["losses"], rtol=1e-5, atol=0)


def test_accumulation_on_top_is_the_mean(tiny_siglip, tmp_path):
    sizes = {"per_device_train_batch_size": 16, "gradient_accumulation_steps": 2}
    plain = trained(tmp_path / "plain", tiny_siglip, "float64", **sizes)
    assert_same(trained(tmp_path / "exact", tiny_siglip, "float64", micro_batch_size=4, **sizes), plain, 1e-12)


def test_plain_accumulation_is_another_loss(whole, tiny_siglip, tmp_path):
    """What exact batches are for: so many negatives are missing that the gradient points elsewhere."""
    sizes = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 8}
    plain = trained(tmp_path / "plain", tiny_siglip, "float64", **sizes)
    towers = [name for name in plain["gradients"] if not name.startswith("logit")]
    one, other = (torch.cat([run["gradients"][name].flatten() for name in towers]) for run in (plain, whole["float64"]))
    assert (one - other).norm() / other.norm() > 0.3


@pytest.mark.parametrize("loss_type", ["softmax_normalized", "sigmoid"])
@pytest.mark.parametrize("duplicates", ["ignore", "negative"])
def test_other_losses_and_labels(tiny_siglip, tmp_path, loss_type, duplicates):
    sizes = {"per_device_train_batch_size": 32, "loss_type": loss_type, "duplicates": duplicates}
    plain = trained(tmp_path / "plain", tiny_siglip, "float64", **sizes)
    assert_same(trained(tmp_path / "exact", tiny_siglip, "float64", micro_batch_size=7, **sizes), plain, 1e-12)


@pytest.mark.parametrize("freeze", ["vision", "text"])
def test_a_frozen_tower(tiny_siglip, tmp_path, freeze):
    sizes = {"per_device_train_batch_size": 32, "freeze": freeze}
    plain = trained(tmp_path / "plain", tiny_siglip, "float64", **sizes)
    assert_same(trained(tmp_path / "exact", tiny_siglip, "float64", micro_batch_size=7, **sizes), plain, 1e-12)
    embeds = [torch.nn.functional.normalize(torch.randn(4, 3), dim=1) for _ in range(2)]
    learns = (freeze == "text", freeze == "vision")
    found = embedding_gradients(*embeds, torch.tensor(2.0), torch.tensor(-3.0), sigmoid_loss, learns)
    assert (found.image is not None, found.text is not None) == learns


def test_checkpointing(tiny_siglip, tmp_path):
    sizes = {"per_device_train_batch_size": 32, "micro_batch_size": 8}
    plain = trained(tmp_path / "plain", tiny_siglip, "float64", **sizes)
    again = {"activation_checkpointing": True, "activation_checkpointing_kwargs": {"use_reentrant": False}}
    assert_same(trained(tmp_path / "again", tiny_siglip, "float64", **sizes, **again), plain, 1e-12)


def test_bf16_differs_by_less_than_its_own_rounding(tiny_siglip, tmp_path):
    sizes = {"per_device_train_batch_size": 32, "learning_rate": 1e-4}
    full = trained(tmp_path / "full", tiny_siglip, "float32", **sizes)
    plain = trained(tmp_path / "plain", tiny_siglip, "float32", bf16=True, **sizes)
    exact = trained(tmp_path / "exact", tiny_siglip, "float32", bf16=True, micro_batch_size=8, **sizes)
    rounding = distance(plain, full, "gradients")
    assert 1e-4 < rounding < 0.05  # autocast is on
    assert distance(exact, plain, "gradients") < rounding


def piecewise(model, inputs, size, loss=sigmoid_loss, scale=1.0):
    """Gradients by `exact_backward`, scaled as a loss scaler does."""

    def embed(piece):
        outputs = model(**piece)
        return outputs.image_embeds, outputs.text_embeds

    value = exact_backward(
        embed,
        inputs,
        size,
        model.logit_scale.squeeze(),
        model.logit_bias.squeeze(),
        loss,
        lambda surrogate, last: (surrogate * scale).backward(),
        nullcontext,
    )
    return value, [p.grad / scale for p in model.parameters() if p.grad is not None]


@pytest.fixture
def lora(tiny_siglip):
    model, _ = load_encoder(str(tiny_siglip))
    torch.manual_seed(0)
    config = LoraConfig(r=4, lora_dropout=0.5, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    model = get_peft_model(model.double(), config).train()
    for name, parameter in model.named_parameters():
        if name.endswith(("logit_scale", "logit_bias")):
            parameter.requires_grad_()
    data = exact_worker.RandomPairs(model.config.text_config.vocab_size, model.config.vision_config.image_size)
    return model, {"pixel_values": data.pixel_values[:12].double(), "input_ids": data.input_ids[:12]}


def test_dropout_is_replayed(lora):
    model, inputs = lora
    torch.manual_seed(7)
    # The reference keeps every graph, and draws the same random numbers piece by piece.
    outputs = [model(**{name: tensor[i : i + 5] for name, tensor in inputs.items()}) for i in (0, 5, 10)]
    images, texts = (torch.cat([getattr(o, name) for o in outputs]) for name in ("image_embeds", "text_embeds"))
    loss = sigmoid_loss(images, texts, model.logit_scale.exp()[0], model.logit_bias[0])
    trainable = [p for p in model.parameters() if p.requires_grad]
    expected = torch.autograd.grad(loss, trainable)
    after = torch.rand(1)
    torch.manual_seed(7)
    value, ours = piecewise(model, inputs, 5)
    # What is drawn next is as if nothing had been drawn twice.
    assert torch.equal(torch.rand(1), after)
    torch.testing.assert_close(value, loss.detach(), rtol=1e-12, atol=0)
    torch.testing.assert_close(ours, list(expected), rtol=1e-9, atol=1e-12)


def test_a_scaled_loss_scales_its_gradients(lora):
    model, inputs = lora
    model.eval()
    _, plain = piecewise(model, inputs, 12)
    for parameter in model.parameters():
        parameter.grad = None
    _, scaled = piecewise(model, inputs, 5, scale=2.0**16)
    torch.testing.assert_close(scaled, plain, rtol=1e-9, atol=1e-12)


def test_one_graph_at_a_time(lora):
    """Every piece is embedded once without a graph and once with one, but the last, which keeps its graph."""
    model, inputs = lora
    graphs = []
    model.register_forward_pre_hook(lambda *_: graphs.append(torch.is_grad_enabled()))
    piecewise(model, inputs, 4)
    assert graphs == [False, False, True, True, True]
