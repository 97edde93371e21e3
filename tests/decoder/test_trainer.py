import math

import datasets
import pytest
import torch

from medfinetune.data.load import load_chats
from medfinetune.decoder.config import MllamaSFTConfig
from medfinetune.decoder.cross_attention import mllama_inside, use_exact_rows
from medfinetune.decoder.generation import perplexity
from medfinetune.decoder.model import load_decoder
from medfinetune.decoder.trainer import MllamaSFTTrainer
from medfinetune.errors import InputError
from tests.decoder.test_cross_attention import ROWS


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


@pytest.mark.parametrize("reference_attention_mask", [False, True])
def test_accumulation_equals_one_batch(loaded, tmp_path, reference_attention_mask):
    """1 x 8 = 4 x 2 = 2 x 4 = 8 x 1 with unequal lengths, several turns, and 0, 1 and 2 images a row."""
    _, processor, _, _ = loaded
    path = str(processor.tokenizer.name_or_path)
    features = {"id": datasets.Value("string"), "images": datasets.List(datasets.Image()), "messages": datasets.Json()}
    rows = datasets.Dataset.from_list(ROWS, features=datasets.Features(features))
    start = load_decoder(path)[0].state_dict()
    weights = []
    for batch in (8, 2, 4, 1):
        args = config(
            tmp_path,
            output_dir=str(tmp_path / str(batch)),
            per_device_train_batch_size=batch,
            gradient_accumulation_steps=8 // batch,
            reference_attention_mask=reference_attention_mask,
            optim="sgd",
            learning_rate=0.1,
            max_steps=1,
            warmup_steps=0,
            lr_scheduler_type="constant",
        )
        trainer = MllamaSFTTrainer(load_decoder(path)[0], args, rows, None, processor)
        trainer.train()
        moved = {name: tensor - start[name] for name, tensor in trainer.model.state_dict().items()}
        weights.append(torch.cat([difference.flatten() for difference in moved.values()]))
        assert weights[-1].norm() > 1e-2
        assert (weights[-1] - weights[0]).norm() < 1e-4 * weights[0].norm()


def test_reference_mask_is_saved_and_read_back(loaded, tmp_path):
    _, processor, train, _ = loaded
    path = str(processor.tokenizer.name_or_path)
    for use_peft in (False, True):
        args = config(tmp_path / str(use_peft), use_peft=use_peft, reference_attention_mask=True)
        trainer = MllamaSFTTrainer(load_decoder(path)[0], args, train, None, processor)
        trainer.save_model()
        again = load_decoder(args.output_dir)[0]
        assert mllama_inside(again).reference_attention_mask
        scored = [perplexity(m, processor, ROWS)["perplexity"] for m in (trainer.model, again)]
        assert math.isclose(*scored, rel_tol=1e-5)
        use_exact_rows(again, False)
        assert not math.isclose(perplexity(again, processor, ROWS)["perplexity"], scored[0], rel_tol=1e-5)
    stock = load_decoder(path)[0]
    assert not mllama_inside(stock).reference_attention_mask
    with pytest.raises(InputError, match="reference_attention_mask: the model was trained with true"):
        MllamaSFTTrainer(load_decoder(str(tmp_path / "False" / "run"))[0], config(tmp_path), train, None, processor)


def test_chats_without_any_image_and_prompts_train(loaded, tmp_path):
    model, processor, _, _ = loaded
    for row in (
        {"messages": [{"role": "user", "content": "What?"}, {"role": "assistant", "content": "Nothing."}]},
        {"prompt": "What?", "completion": "Nothing."},
    ):
        rows = datasets.Dataset.from_list([row] * 4)
        trainer = MllamaSFTTrainer(model, config(tmp_path), rows, None, processor)
        assert trainer.train().training_loss > 0
        assert "0 of 4 exceed" in trainer.data_collator.describe_cuts(rows)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"packing": True}, "packing: must be false"),
        ({"assistant_only_loss": True}, "assistant_only_loss: leave it out; train_on says"),
        ({"padding_free": True}, "padding_free: leave it out"),
        ({"max_length": None}, "max_length: give the largest"),
        ({"remove_unused_columns": True}, "remove_unused_columns: must be false"),
    ],
)
def test_refused_settings(tmp_path, changes, message):
    with pytest.raises(InputError, match=message):
        config(tmp_path, **changes)
