"""A step of the trainer beside a plain one: loss scaling, what the optimizer is told, and compiled models."""

import math

import pytest
import torch
from torch._dynamo.utils import counters
from transformers import TrainerCallback

from medfinetune.encoder.model import load_encoder
from medfinetune.encoder.trainer import SigLIPTrainer
from tests.encoder.test_trainer import config

PIECES = pytest.mark.parametrize("micro_batch_size", [None, 4])


def make_trainer(loaded, tmp_path, callbacks=None, optimizers=(None, None), **changes):
    """A new copy of the tiny model, the same pairs in the same order."""
    _, processor, train, _ = loaded
    model, _ = load_encoder(processor.tokenizer.name_or_path)
    values = {"eval_strategy": "no", "save_strategy": "no", "train_sampling_strategy": "sequential"} | changes
    args = config(tmp_path, **values)
    return SigLIPTrainer(model, args, train, None, processor, callbacks=callbacks, optimizers=optimizers)


def weights_of(model):
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


class KeepWeights(TrainerCallback):
    def __init__(self):
        self.after = []

    def on_step_end(self, args, state, control, model=None, **kwargs):
        self.after.append(weights_of(model))


@PIECES
def test_loss_scaling_changes_no_weight(loaded, tmp_path, micro_batch_size):
    """accelerate refuses fp16 without a GPU: the scaler is a real one, put where it would stand."""
    runs = []
    for scaler in (None, torch.amp.GradScaler("cpu", init_scale=2.0**12)):
        # Plain descent: Adam would hide a wrong scale.
        values = {"optim": "sgd", "learning_rate": 0.1, "max_grad_norm": 0.0, "max_steps": 2}
        trainer = make_trainer(loaded, tmp_path, micro_batch_size=micro_batch_size, **values)
        before = weights_of(trainer.model)
        trainer.accelerator.scaler = scaler
        trainer.train()
        runs.append(weights_of(trainer.model))
        assert not torch.equal(before["logit_bias"], runs[-1]["logit_bias"])
    torch.testing.assert_close(runs[1], runs[0], rtol=1e-6, atol=1e-8)


@PIECES
def test_a_step_whose_gradients_overflow_is_left_out(loaded, tmp_path, micro_batch_size):
    keep, scaler = KeepWeights(), torch.amp.GradScaler("cpu", init_scale=2.0**12)
    values = {"optim": "sgd", "learning_rate": 0.1, "max_grad_norm": 0.0, "max_steps": 2}
    trainer = make_trainer(loaded, tmp_path, [keep], micro_batch_size=micro_batch_size, **values)
    trainer.accelerator.scaler = scaler
    before = weights_of(trainer.model)

    def overflow(grad):
        return grad * math.inf if trainer.state.global_step == 0 else grad

    trainer.model.text_model.head.weight.register_hook(overflow)
    trainer.train()
    torch.testing.assert_close(keep.after[0], before, rtol=0, atol=0)
    assert scaler.get_scale() == 2.0**11
    assert not torch.equal(keep.after[1]["logit_bias"], before["logit_bias"])
    assert all(torch.isfinite(tensor).all() for tensor in keep.after[1].values())


class CountingSGD(torch.optim.SGD):
    """Has a mode for training, as schedule-free optimizers have."""

    def __init__(self, parameters):
        super().__init__(parameters, lr=0.1)
        self.num_train = 0

    def train(self):
        self.num_train += 1


@PIECES
def test_the_optimizer_is_told_that_it_trains(loaded, tmp_path, micro_batch_size):
    trainer = make_trainer(loaded, tmp_path, micro_batch_size=micro_batch_size)
    optimizer = CountingSGD(trainer.model.parameters())
    trainer.optimizer = optimizer
    trainer.train()
    assert optimizer.num_train == 3


@PIECES
def test_the_cache_is_emptied_as_often_as_asked(loaded, tmp_path, monkeypatch, micro_batch_size):
    emptied = []
    for module in ("transformers.trainer", "medfinetune.encoder.trainer"):
        monkeypatch.setattr(f"{module}.clear_device_cache", lambda: emptied.append(trainer.state.global_step))
    trainer = make_trainer(loaded, tmp_path, micro_batch_size=micro_batch_size, torch_empty_cache_steps=2, max_steps=4)
    trainer.train()
    assert emptied == [0, 2]


# By pieces each graph is captured with and without gradients, which takes longer.
@pytest.mark.parametrize("micro_batch_size", [None, pytest.param(4, marks=pytest.mark.slow)])
def test_compiled_it_learns_the_same(loaded, tmp_path, micro_batch_size):
    """Captured and differentiated by torch.compile, but run without its code generator, which takes minutes."""
    losses = {}
    for compiled in (False, True):
        values = {"torch_compile": compiled, "torch_compile_backend": "aot_eager" if compiled else None}
        trainer = make_trainer(loaded, tmp_path, micro_batch_size=micro_batch_size, **values)
        assert trainer.args.torch_compile == compiled
        num_graphs = counters["stats"]["unique_graphs"]
        trainer.train()
        assert (counters["stats"]["unique_graphs"] > num_graphs) == compiled
        losses[compiled] = [line["loss"] for line in trainer.state.log_history if "loss" in line]
    assert len(losses[True]) == 3
    assert losses[True] == pytest.approx(losses[False], rel=1e-5)


def test_the_optimizer_is_fused_and_attention_is_sdpa(loaded, tmp_path):
    trainer = make_trainer(loaded, tmp_path)
    optimizer = trainer.create_optimizer()
    assert isinstance(optimizer, torch.optim.AdamW)
    assert all(group["fused"] for group in optimizer.param_groups)
    towers = trainer.model.config.vision_config, trainer.model.config.text_config
    assert [tower._attn_implementation for tower in towers] == ["sdpa", "sdpa"]
