import math

import pytest
import torch

from medfinetune.data.load import load_chats
from medfinetune.decoder.config import MllamaSFTConfig
from medfinetune.decoder.generation import perplexity
from medfinetune.decoder.model import load_decoder
from medfinetune.decoder.trainer import MllamaSFTTrainer
from medfinetune.errors import InputError


def config(tmp_path, **changes):
    defaults = {
        "output_dir": str(tmp_path / "run"),
        "data_dir": "unused",
        "use_cpu": True,
        "bf16": False,
        "dtype": "float32",
        "per_device_train_batch_size": 4,
        "max_steps": 2,
        "learning_rate": 1e-3,
        "logging_steps": 1,
        "activation_checkpointing": False,
        "eval_strategy": "no",
        "dataloader_pin_memory": False,
        "disable_tqdm": True,
    }
    return MllamaSFTConfig(**(defaults | changes))


@pytest.fixture
def loaded(phantom_dir, tiny_mllama):
    chats = load_chats(phantom_dir / "data")
    model, processor = load_decoder(str(tiny_mllama))
    return model, processor, chats["train"].select(range(16)), chats["validation"]


def moved_by_training(trainer):
    before = {name: parameter.detach().clone() for name, parameter in trainer.model.named_parameters()}
    trainer.train()
    return {name for name, parameter in trainer.model.named_parameters() if not torch.equal(parameter, before[name])}


def test_full_fine_tuning_leaves_the_frozen_tower(loaded, tmp_path):
    model, processor, train, _ = loaded
    trainer = MllamaSFTTrainer(model, config(tmp_path), train, None, processor)
    moved = moved_by_training(trainer)
    names = {name for name, _ in trainer.model.named_parameters()}
    assert {name for name in names if "vision_model" not in name} == moved


def test_unfrozen_tower_learns(loaded, tmp_path):
    model, processor, train, _ = loaded
    moved = moved_by_training(MllamaSFTTrainer(model, config(tmp_path, freeze_vision=False), train, None, processor))
    assert any("vision_model.transformer" in name for name in moved)
    assert any("multi_modal_projector" in name for name in moved)


def test_lora_lands_in_the_text_layers_and_is_read_back(loaded, tmp_path):
    model, processor, train, _ = loaded
    args = config(tmp_path, use_peft=True, activation_checkpointing=True, lora_dropout=0.0)
    trainer = MllamaSFTTrainer(model, args, train, None, processor)
    moved = moved_by_training(trainer)
    assert moved
    assert all("lora_" in name and "language_model" in name for name in moved)
    assert {name.split(".lora_")[0].rsplit(".", 1)[1] for name in moved} == {"q_proj", "k_proj", "v_proj", "o_proj"}
    trainer.save_model()
    again, processor_again = load_decoder(args.output_dir)
    scored = [perplexity(m, p, train, batch_size=4) for m, p in ((trainer.model, processor), (again, processor_again))]
    assert math.isclose(scored[0]["perplexity"], scored[1]["perplexity"], rel_tol=1e-5)


def test_loss_is_that_of_the_answers_alone(loaded, tmp_path):
    """What TRL computes with our collator is the mean over the assistant's tokens."""
    model, processor, train, validation = loaded
    trainer = MllamaSFTTrainer(
        model,
        config(tmp_path, eval_strategy="steps", eval_steps=1, per_device_eval_batch_size=64),
        train,
        validation,
        processor,
    )
    measured = trainer.evaluate()["eval_loss"]
    assert math.isclose(math.exp(measured), perplexity(model, processor, validation)["perplexity"], rel_tol=1e-4)


def test_accumulation_equals_one_batch(loaded, tmp_path):
    """4 x 2 = 1 x 8 although the rows' answers differ in length."""
    _, processor, train, _ = loaded
    weights = []
    for name, batch, steps in (("whole", 8, 1), ("accumulated", 2, 4)):
        model, _ = load_decoder(str(processor.tokenizer.name_or_path))
        args = config(
            tmp_path,
            output_dir=str(tmp_path / name),
            per_device_train_batch_size=batch,
            gradient_accumulation_steps=steps,
            optim="sgd",
            max_steps=1,
            warmup_steps=0,
        )
        trainer = MllamaSFTTrainer(model, args, train.select(range(8)), None, processor)
        trainer.train()
        weights.append(model.lm_head.weight.detach().clone())
        start = load_decoder(str(processor.tokenizer.name_or_path))[0].lm_head.weight
        assert (weights[-1] - start).abs().max() > 1e-7
    torch.testing.assert_close(weights[0], weights[1], rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"packing": True}, "packing: must be false"),
        ({"max_length": None}, "max_length: give the largest"),
        ({"remove_unused_columns": True}, "remove_unused_columns: must be false"),
    ],
)
def test_refused_settings(tmp_path, changes, message):
    with pytest.raises(InputError, match=message):
        config(tmp_path, **changes)
