"""Where memory runs out a run ends with one line.

The failure itself is mocked: there is no small memory to fill here.
"""

import pytest
import torch

from medfinetune.data.load import load_chats, load_pairs
from medfinetune.decoder.model import load_decoder
from medfinetune.decoder.trainer import MllamaSFTTrainer
from medfinetune.encoder.model import load_encoder
from medfinetune.encoder.trainer import SigLIPTrainer
from medfinetune.errors import InputError
from tests.decoder.test_trainer import config as decoder_config
from tests.encoder.test_trainer import config as encoder_config


@pytest.fixture
def make(phantom_dir, tiny_siglip, tiny_mllama, tmp_path):
    def trainer(kind, **changes):
        if kind == "encoder":
            splits, (model, processor) = load_pairs(phantom_dir / "data"), load_encoder(str(tiny_siglip))
            args, of_kind = encoder_config(tmp_path, model_name_or_path=str(tiny_siglip), **changes), SigLIPTrainer
        else:
            splits, (model, processor) = load_chats(phantom_dir / "data"), load_decoder(str(tiny_mllama))
            args, of_kind = decoder_config(tmp_path, **changes), MllamaSFTTrainer
        return of_kind(model, args, splits["train"].select(range(16)), splits["validation"], processor)

    return trainer


def run_out(*args, **kwargs):
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")


@pytest.mark.parametrize("kind", ["encoder", "decoder"])
def test_a_count_that_fails_hides_nothing(make, kind, monkeypatch):
    trainer = make(kind, max_steps=1)
    monkeypatch.setattr(trainer, "compute_loss" if kind == "decoder" else "training_step", run_out)
    monkeypatch.setattr(f"medfinetune.{kind}.trainer.count_run", lambda *a, **k: {}["no such size"])
    with pytest.raises(
        InputError, match=r"^step 0: out of memory.*could not count \('no such size'\); lower per_device"
    ):
        trainer.train()


def test_the_longest_row_is_named(make, tmp_path, monkeypatch):
    changes = {"per_device_train_batch_size": 2, "max_steps": 4, "save_steps": 2}
    trainer = make("decoder", train_sampling_strategy="sequential", **changes)
    compute = trainer.compute_loss
    monkeypatch.setattr(
        trainer, "compute_loss", lambda *a, **k: (run_out if trainer.state.global_step == 3 else compute)(*a, **k)
    )
    rows = trainer.train_dataset.select((6, 7))
    lengths = {row["id"]: len(trainer.data_collator.encode(row).input_ids) for row in rows}
    longest = max(lengths, key=lengths.get)
    with pytest.raises(InputError) as raised:
        trainer.train()
    said = str(raised.value)
    assert said.startswith(
        f"step 3: out of memory; the longest row of the batch is chat {longest} ({lengths[longest]} "
    )
    assert "1 images" in said
    assert "fit, the least costly first: (1) per_device_train_batch_size: 1, gradient_accumulation_steps: 2 (" in said
    last = f"{tmp_path}/run/checkpoint-2"
    assert said.endswith(f"{last} is whole; go on from it with --resume_from_checkpoint true")
    assert "\n" not in said
    load_decoder(last)


@pytest.mark.parametrize("kind", ["encoder", "decoder"])
def test_the_optimizers_first_step(make, monkeypatch, kind):
    """Where AdamW makes its states."""
    monkeypatch.setattr(torch.optim.AdamW, "step", run_out)
    says = r"step 0: out of memory\. For such batches .*least costly first: \(1\) micro_batch_size: "
    if kind == "decoder":  # what is counted is in the test above
        monkeypatch.setattr("medfinetune.decoder.trainer.what_would_fit", lambda *_: "less")
        says = r"step 0: out of memory; the longest row .* tokens, 1 images\)\. For the longest chats less"
    with pytest.raises(InputError, match=says):
        make(kind, save_strategy="no", eval_strategy="no").train()


@pytest.mark.parametrize("auto_find_batch_size", [False, True])
@pytest.mark.parametrize("kind", ["encoder", "decoder"])
def test_evaluation(make, monkeypatch, kind, auto_find_batch_size):
    """A smaller training batch is no help there, so that `auto_find_batch_size` does not go looking for one."""
    changes = {"max_steps": 1, "eval_strategy": "steps", "eval_steps": 1, "per_device_eval_batch_size": 3}
    trainer = make(kind, auto_find_batch_size=auto_find_batch_size, **changes)
    prepare = trainer._prepare_inputs

    def prepare_inputs(inputs):
        prepare(inputs)
        run_out()

    monkeypatch.setattr(type(trainer), "prediction_step", lambda self, _, inputs, *a, **k: prepare_inputs(inputs))
    row = "; the longest row of the batch is chat .*" if kind == "decoder" else ""
    with pytest.raises(
        InputError,
        match=rf"evaluation at step 1: out of memory{row}; lower per_device_eval_batch_size \(3\)\. There is no",
    ):
        trainer.train()


def test_answers_that_are_written(make, monkeypatch):
    trainer = make("decoder", eval_strategy="steps", eval_steps=1, predict_with_generate=True, predict_samples=2)
    monkeypatch.setattr(trainer.model, "generate", run_out)
    with pytest.raises(
        InputError, match=r"step 0: out of memory; lower per_device_eval_batch_size \(8\) or predict_max_new_tokens\. "
    ):
        trainer.evaluate()


@pytest.mark.parametrize("kind", ["encoder", "decoder"])
def test_a_batch_that_fits_is_still_found(make, monkeypatch, kind):
    trainer = make(kind, auto_find_batch_size=True, per_device_train_batch_size=4, eval_strategy="no", max_steps=2)
    compute, sizes = trainer.compute_loss, []

    def compute_loss(model, inputs, *args, **kwargs):
        sizes.append(len(inputs["input_ids"]))
        return (run_out if sizes[-1] > 2 else compute)(model, inputs, *args, **kwargs)

    monkeypatch.setattr(trainer, "compute_loss", compute_loss)
    trainer.train()
    assert (sizes[0], sizes[-1], trainer.state.global_step) == (4, 2, 2)
