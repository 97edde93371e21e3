"""A loss that is no number ends a run with the default settings, before anything is learned from it."""

import math
from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch
from transformers import TrainerCallback, TrainerControl, TrainerState

from medfinetune.data.load import load_chats, load_pairs
from medfinetune.decoder.model import load_decoder
from medfinetune.decoder.trainer import MllamaSFTTrainer
from medfinetune.encoder.model import load_encoder
from medfinetune.encoder.trainer import SigLIPTrainer
from medfinetune.errors import InputError
from medfinetune.training import StopOnNonFiniteLoss
from tests.decoder.test_trainer import config as decoder_config
from tests.encoder.test_trainer import config as encoder_config


class Break(TrainerCallback):
    """Makes one weight nan when the third step begins."""

    def __init__(self, weight):
        self.weight = weight

    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step == 2:
            self.weight.data.fill_(math.nan)


@pytest.fixture
def make(phantom_dir, tiny_siglip, tiny_mllama, tmp_path):
    """A trainer with its default settings but a checkpoint a step, of which the last two are kept."""

    def trainer(kind, **changes):
        changes |= {"save_strategy": "steps", "save_steps": 1, "save_total_limit": 2, "max_steps": 4}
        changes |= {"train_sampling_strategy": "sequential", "eval_strategy": "no", "per_device_train_batch_size": 2}
        if kind == "encoder":
            model, processor = load_encoder(str(tiny_siglip))
            rows, args = (
                load_pairs(phantom_dir / "data")["train"].select(range(32)),
                encoder_config(tmp_path, **changes),
            )
            return SigLIPTrainer(model, args, rows, None, processor), rows, model.logit_bias
        model, processor = load_decoder(str(tiny_mllama))
        rows, args = load_chats(phantom_dir / "data")["train"].select(range(32)), decoder_config(tmp_path, **changes)
        return MllamaSFTTrainer(model, args, rows, None, processor), rows, model.lm_head.weight

    return trainer


def is_finite(load, folder):
    return all(parameter.isfinite().all() for parameter in load(str(folder))[0].parameters())


@pytest.mark.parametrize("accumulation", [1, 2])
@pytest.mark.parametrize(("kind", "load"), [("encoder", load_encoder), ("decoder", load_decoder)])
def test_the_run_ends_with_a_whole_checkpoint(make, tmp_path, kind, load, accumulation):
    trainer, rows, weight = make(kind, gradient_accumulation_steps=accumulation)
    assert not trainer.args.logging_nan_inf_filter
    trainer.add_callback(Break(weight))
    with pytest.raises(InputError) as raised:
        trainer.train()
    said = str(raised.value)
    ids = ", ".join(rows["id"][4 * accumulation : 6 * accumulation])
    assert said.startswith(f"step 3: the loss is nan (rows {ids}); lower learning_rate")
    assert said.endswith(f"{tmp_path}/run/checkpoint-2 is whole; go on from it with --resume_from_checkpoint true")
    assert not (tmp_path / "run" / "checkpoint-3").exists()
    assert is_finite(load, tmp_path / "run" / "checkpoint-2")


def test_one_micro_batch_of_several_is_named(make, monkeypatch):
    trainer, rows, _ = make("decoder", gradient_accumulation_steps=2, logging_nan_inf_filter=True)
    compute, calls = trainer.compute_loss, []

    def compute_loss(*args, **kwargs):
        calls.append(1)
        return compute(*args, **kwargs) * (math.inf if len(calls) == 4 else 1)

    monkeypatch.setattr(trainer, "compute_loss", compute_loss)
    with pytest.raises(InputError, match=f"step 2: the loss is inf .rows {', '.join(rows['id'][6:8])}.;"):
        trainer.train()


@pytest.mark.parametrize("kind", ["encoder", "decoder"])
def test_a_gradient_that_is_not_finite_ends_the_run(make, kind):
    trainer, rows, weight = make(kind)
    weight.register_hook(lambda gradient: torch.full_like(gradient, math.inf))
    with pytest.raises(InputError, match=f"step 1: the norm of the gradients is (inf|nan) .rows {rows['id'][0]}, "):
        trainer.train()


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_fp16_may_overflow_while_it_finds_its_scale(tmp_path, precision):
    """GradScaler skips such steps; there is none on a CPU, so an accelerator's name alone stands for it."""
    stop, args = StopOnNonFiniteLoss(), encoder_config(tmp_path)
    stop.watch(torch.tensor(1.0), ["a"])
    stop.watch_gradients(math.inf, SimpleNamespace(mixed_precision=precision))
    expected = pytest.raises(InputError, match="step 1: the norm") if precision == "bf16" else nullcontext()
    with expected:
        stop.on_pre_optimizer_step(args, TrainerState(), TrainerControl())
