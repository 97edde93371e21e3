import pytest

from medfinetune.decoder.config import MllamaSFTConfig
from medfinetune.preflight.changes import Machine, Setup, changes_that_fit
from medfinetune.preflight.memory import Weights, Zero
from medfinetune.preflight.plan import plan
from medfinetune.preflight.step import Step
from medfinetune.preflight.table import describe

G = 2**30


def config(tmp_path, **changes):
    defaults = {
        "output_dir": str(tmp_path),
        "use_cpu": True,
        "bf16": False,
        "dtype": "float32",
        "activation_checkpointing": False,
    }
    return MllamaSFTConfig(**(defaults | {"per_device_train_batch_size": 4, "optim": "adamw_torch_fused"} | changes))


def count(args, zero):
    """10 GiB of fp32 weights, 8 GiB of activations a row, a quarter of them with checkpointing."""
    number = 10 * G // 4
    size = 2 if args.dtype == "bfloat16" else 4
    trained = number // 100 if args.use_peft else number
    kept = number * (0.5 if getattr(args, "load_in_4bit", False) else size)
    activations = args.per_device_train_batch_size * 8 * G // (4 if args.activation_checkpointing else 1)
    weights = Weights(trained, number - trained, 0, int(kept), trained * size, 0, 0)
    return weights, Step(activations + weights.trained_bytes, activations, 2.5 * args.per_device_train_batch_size)


def changes(args, gib, **machine):
    machine = Machine(memory_bytes=gib * G, **machine)
    return changes_that_fit(Setup(args, None, machine.num_gpus), machine, count)


def test_a_run_that_fits(tmp_path):
    found = plan(Setup(config(tmp_path), None, 1), Machine(memory_bytes=80 * G, tflops=5.0), count, num_rows=10)
    assert found.fits
    assert found.changes == []
    # 10 rows are 3 micro-batches of 4.
    assert found.seconds_per_epoch == pytest.approx(3 * 10 / 5)
    assert found.memory.total == (10 + 20 + 32 + 10 + 1) * G
    assert "it fits: 73.00 GiB of the GPU's 80.00 GiB" in describe(found)


def test_changes_come_by_their_cost(tmp_path):
    """73 GiB: half the batch is enough for 64, and so is each of the next two."""
    found = changes(config(tmp_path), 64)
    assert [change.name for change in found] == [
        "per_device_train_batch_size: 2, gradient_accumulation_steps: 2",
        "activation_checkpointing: true",
        "dtype: bfloat16",
    ]
    assert [round(change.total / G) for change in found] == [57, 49, 53]


def test_changes_together_where_one_is_not_enough(tmp_path):
    """Nothing alone brings 73 GiB under 14, but ZeRO's share does not count on one GPU."""
    found = changes(config(tmp_path), 14)
    assert found
    assert all("; " in change.name for change in found)
    assert found[0].name.startswith("per_device_train_batch_size: 1, gradient_accumulation_steps: 4; activation_check")
    assert found[0].total <= 14 * G
    assert changes(config(tmp_path), 1) == []


def test_adapters_take_back_what_they_do_not_go_with(tmp_path):
    args = config(
        tmp_path, freeze_vision=False, freeze_projector=False, dtype="bfloat16", activation_checkpointing=True
    )
    args.per_device_train_batch_size, args.activation_checkpointing, args.recompute = 1, True, "all"
    keys = "use_peft: true, freeze_vision: true, freeze_projector: true"
    assert [change.name for change in changes(args, 9)][:2] == [f"{keys} (LoRA)", f"{keys}, load_in_4bit: true (QLoRA)"]
    config(tmp_path, use_peft=True, freeze_vision=True, freeze_projector=True)


def test_a_full_host_is_no_fit(tmp_path):
    setup, machine = Setup(config(tmp_path), Zero(3, True, True), 1), Machine(host_bytes=20 * G)
    found = plan(setup, machine, count)
    assert not found.fits
    assert "it does NOT fit" in describe(found)
    assert found.host_bytes > 20 * G


def test_disk(tmp_path):
    def disk(zero=None, **changed):
        found = plan(Setup(config(tmp_path, **changed), zero, 1), Machine(memory_bytes=900 * G), count)
        return found.checkpoint_bytes // G, found.num_checkpoints, found.final_bytes // G

    assert disk(save_total_limit=2) == (30, 3, 10)
    assert disk(save_total_limit=None, save_only_model=True) == (10, None, 10)
    assert disk(save_strategy="no") == (0, 0, 10)
    assert disk(use_peft=True)[2] == 0
    assert disk(Zero(2))[0] == 2 * 10 + 30
    assert disk(Zero(3))[0] == 10 + 30  # only the frozen ones come twice, and there are none
