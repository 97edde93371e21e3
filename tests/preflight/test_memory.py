import json
from pathlib import Path

import pytest
import torch
from torch import nn

from medfinetune.errors import InputError
from medfinetune.preflight.memory import (
    CONTEXT_BYTES,
    Weights,
    Zero,
    count_weights,
    memory_of,
    optimizer_bytes,
    read_zero,
)
from medfinetune.preflight.step import Step

N = 10_000_000
FULL = Weights(N, 0, 0, 4 * N, 4 * N, 1000, 0)
HALF = Weights(N, 0, 0, 2 * N, 2 * N, 1000, 0)
STEP = Step(peak_bytes=5 * N, activation_bytes=3 * N, tflop=1.0)


def on(weights=FULL, optim="adamw_torch_fused", accumulates=False, zero=None, num_gpus=1, on_cpu=False):
    return memory_of(weights, STEP, optim, accumulates, zero, num_gpus, on_cpu)


@pytest.mark.parametrize("optim", ["adamw_torch", "adagrad", "rmsprop", "sgd"])
def test_states_are_those_of_torch(optim):
    """AdamW holds two, in the parameter's dtype."""
    model = nn.Linear(100, 100, dtype=torch.bfloat16)
    make = {
        "adamw_torch": torch.optim.AdamW,
        "adagrad": torch.optim.Adagrad,
        "rmsprop": torch.optim.RMSprop,
        "sgd": torch.optim.SGD,
    }
    optimizer = make[optim](model.parameters())
    model(torch.zeros(1, 100, dtype=torch.bfloat16)).sum().backward()
    optimizer.step()
    held = sum(v.nbytes for state in optimizer.state.values() for v in state.values() if v.ndim)
    assert optimizer_bytes(optim, count_weights(model)) == (held, False)


def test_small_and_unknown_optimisers():
    assert optimizer_bytes("adamw_8bit", FULL)[0] == pytest.approx(2 * N, rel=0.02)
    assert optimizer_bytes("paged_adamw_32bit", HALF) == (8 * N, True)
    assert optimizer_bytes("something_new", HALF) == (4 * N, False)
    paged = on(optim="paged_adamw_32bit")
    assert paged.optimizer == 0
    assert paged.host["paged optimiser states"] == 8 * N


def test_one_gpu():
    """Weights, states and the larger moment: backward, or the optimiser's step with all gradients."""
    assert on().total == 4 * N + 8 * N + 5 * N + CONTEXT_BYTES
    assert on(optim="adamw_torch").total == 4 * N + 8 * N + (4 + 4) * N + CONTEXT_BYTES
    assert on(accumulates=True).total == 4 * N + 8 * N + (4 + 3) * N + CONTEXT_BYTES
    assert on(num_gpus=2).total == on().total + 4 * N  # buckets
    cpu = on(on_cpu=True)
    assert (cpu.total, cpu.host) == (17 * N, {})


def test_zero_shares_by_stage():
    """Rajbhandari et al. 2020 (arXiv:1910.02054), figure 1: 2 + 2 + 12 bytes a parameter, shared by stage."""
    fixed = 3 * N + CONTEXT_BYTES
    auto = {"bucket_numbers": None, "live_numbers": 0}
    totals = [on(HALF, zero=Zero(stage, **auto), num_gpus=4).total - fixed for stage in range(4)]
    assert totals == [16 * N, (2 + 2 + 3) * N, int((2 + 0.5 + 3) * N), 4 * N]
    gathered = on(HALF, zero=Zero(3, live_numbers=N // 2), num_gpus=4)
    assert gathered.weights == N // 2 + N
    assert on(HALF, zero=Zero(2, bucket_numbers=N // 10), num_gpus=4).communication == 2 * 2 * N // 10


def test_offloaded_parts_are_on_the_host():
    memory = on(HALF, zero=Zero(3, True, True, None, N // 10), num_gpus=4)
    assert (memory.optimizer, memory.gradients, memory.weights) == (0, 0, 2 * N // 10)
    assert memory.host["offloaded optimiser states, fp32 weights and gradients"] == 16 * N
    assert memory.host["offloaded weights"] == 2 * N
    # Only the first process reads the checkpoint, and lets it go before there are states.
    assert memory.host["weights while they are loaded"] == 2 * N
    assert memory.host_bytes == (16 + 2) * N
    weights_alone = on(HALF, zero=Zero(3, False, True, None, N // 10), num_gpus=4)
    assert weights_alone.host_bytes == (2 + 2) * N
    assert on(HALF, zero=Zero(2), num_gpus=4).host_bytes == 4 * 2 * N


def test_quantised_weights():
    """4 bits, and 0.127 bits of scales a weight (Dettmers et al. 2023, arXiv:2305.14314, section 3)."""
    with torch.device("meta"):
        model = nn.ModuleDict({"layer": nn.Linear(4096, 4096, bias=False), "lm_head": nn.Linear(4096, 8, bias=False)})
        model["trained"] = nn.Linear(64, 64, bias=False)
    model["layer"].requires_grad_(False)
    model["lm_head"].requires_grad_(False)
    number, rest = 4096 * 4096, 4 * (4096 * 8 + 64 * 64)
    four, plain, eight = count_weights(model, 4), count_weights(model, 4, double_quant=False), count_weights(model, 8)
    assert four.num_quantised == number
    assert four.num_bytes - rest == pytest.approx(number * (4 + 0.127) / 8, rel=1e-3)
    assert plain.num_bytes - rest == pytest.approx(number * 4.5 / 8)
    assert eight.num_bytes - rest == number
    assert (four.num_trained, four.num_frozen, four.dequantised_bytes) == (64 * 64, number + 4096 * 8, 2 * number)
    assert count_weights(model).num_quantised == 0


def test_deepspeed_is_read(tmp_path):
    path = tmp_path / "zero.json"
    options = {"stage": 3, "offload_optimizer": {"device": "cpu"}, "offload_param": {"device": "none"}}
    path.write_text(json.dumps({"zero_optimization": options | {"reduce_bucket_size": "auto"}}))
    assert read_zero(str(path)) == Zero(3, True, False, None)
    assert read_zero({"zero_optimization": {"stage": 2, "reduce_bucket_size": 5e7}}) == Zero(
        2, bucket_numbers=50_000_000
    )
    assert read_zero(None) is None


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("nowhere.json", "deepspeed: nowhere.json: cannot be read"),
        ({"zero_optimization": {"stage": 4}}, "zero_optimization.stage: 4: must be 0, 1, 2 or 3"),
        ({"zero_optimization": {"stage": 2, "offload_param": {"device": "cpu"}}}, "offload_param: needs stage 3"),
        ([1], "deepspeed: must be a JSON file or a mapping"),
    ],
)
def test_refused_deepspeed(given, message):
    with pytest.raises(InputError, match=message):
        read_zero(given)


def test_a_file_that_is_no_json(tmp_path):
    path = Path(tmp_path / "zero.json")
    path.write_text("stage: 3")
    with pytest.raises(InputError, match=r"zero.json: is no JSON"):
        read_zero(str(path))
