import math
import shutil
from pathlib import Path

import datasets
import pytest
import torch
from transformers import MllamaForConditionalGeneration, TrainerCallback

from medfinetune.data.load import load_chats
from medfinetune.decoder.chat_tokens import IGNORED
from medfinetune.decoder.config import MllamaSFTConfig
from medfinetune.decoder.cross_attention import mllama_inside, use_exact_rows
from medfinetune.decoder.generation import perplexity
from medfinetune.decoder.model import describe_parameters, load_decoder, quantization_config
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


def test_frozen_projector(loaded, tmp_path):
    model, processor, train, _ = loaded
    moved = moved_by_training(MllamaSFTTrainer(model, config(tmp_path, freeze_projector=True), train, None, processor))
    assert moved
    assert all("language_model" in name or "lm_head" in name for name in moved)


@pytest.mark.parametrize("use_peft", [False, True])
def test_cross_attention_alone(loaded, tmp_path, use_peft):
    model, processor, train, _ = loaded
    args = config(tmp_path, train_cross_attention_only=True, use_peft=use_peft)
    moved = moved_by_training(MllamaSFTTrainer(model, args, train, None, processor))
    assert {name.split("layers.")[1].split(".")[0] for name in moved} == {"1", "3"}
    assert all("language_model" in name for name in moved)
    assert use_peft == all(".cross_attn." in name and ".lora_" in name for name in moved)
    if not use_peft:
        args.model_name_or_path = "not at hand"
        assert "1,744,898,064 of" in describe_parameters(args)  # the 8 layers of the 11B shape


@pytest.mark.slow
@pytest.mark.parametrize("bits", [4, 8])
def test_quantised_text_layers_train_adapters(loaded, tmp_path, tiny_mllama, bits):
    bitsandbytes = pytest.importorskip("bitsandbytes")
    _, processor, train, _ = loaded
    args = config(tmp_path, use_peft=True, max_steps=12, **{f"load_in_{bits}bit": True})
    model, _ = load_decoder(str(tiny_mllama), quantization=quantization_config(args))
    kinds = {4: bitsandbytes.nn.Linear4bit, 8: bitsandbytes.nn.Linear8bitLt}
    quantised = {name for name, module in model.named_modules() if isinstance(module, kinds[bits])}
    linear = {name for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)}
    assert quantised == {name for name in linear if "language_model" in name}
    if bits == 4:
        layer = model.get_submodule(min(quantised))
        assert (layer.weight.quant_type, layer.weight.quant_state.nested) == ("nf4", True)
    trainer = MllamaSFTTrainer(model, args, train, None, processor)
    moved = moved_by_training(trainer)
    assert moved
    assert all("lora_" in name for name in moved)
    losses = [line["loss"] for line in trainer.state.log_history if "loss" in line]
    assert losses[-1] < losses[0] - 0.1
    trainer.save_model()
    again, _ = load_decoder(args.output_dir)
    # Read back onto the unquantised base: nearly, but not quite, what was trained.
    ours, theirs = (perplexity(m, processor, train)["perplexity"] for m in (again, trainer.model))
    assert 0 < abs(math.log(ours / theirs)) < 0.2


def test_quantisation_says_what_to_install(tmp_path, monkeypatch):
    args = config(tmp_path, use_peft=True, load_in_4bit=True)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"load_in_4bit: needs bitsandbytes; install it with: pip install"):
        quantization_config(args)


@pytest.mark.parametrize("how", ["one file", "shards", "adapter", "4 bits", "8 bits", "4 bits, DoRA"])
def test_resuming_reads_the_weights_back(loaded, tmp_path, tiny_mllama, how, monkeypatch):
    """Stock's Trainer finds none of the file's names in the model, and goes on with the weights of the start."""
    _, processor, train, _ = loaded
    keys = {"use_peft": how not in ("one file", "shards")}
    if "bits" in how:
        pytest.importorskip("bitsandbytes")
        keys |= {f"load_in_{how[0]}bit": True, "lora_use_dora": "DoRA" in how}
    if how == "shards":
        save = MllamaForConditionalGeneration.save_pretrained
        monkeypatch.setattr(
            MllamaForConditionalGeneration, "save_pretrained", lambda *a, **k: save(*a, **k, max_shard_size="500KB")
        )
    runs = {}
    for name, resume in (("whole", None), ("resumed", str(tmp_path / "whole" / "checkpoint-2"))):
        args = config(tmp_path, output_dir=str(tmp_path / name), max_steps=4, save_steps=2, **keys)
        model, _ = load_decoder(str(tiny_mllama), quantization=quantization_config(args))
        trainer = MllamaSFTTrainer(model, args, train, None, processor)
        trainer.train(resume_from_checkpoint=resume)
        runs[name] = [p.detach().clone() for p in trainer.model.parameters()]
    assert (tmp_path / "whole" / "checkpoint-2" / "model.safetensors.index.json").is_file() == (how == "shards")
    torch.testing.assert_close(runs["resumed"], runs["whole"], rtol=0, atol=0)


def test_a_pattern_that_matches_nothing(loaded, tmp_path):
    model, processor, train, _ = loaded
    with pytest.raises(InputError, match="lora_target_modules: 'nothing' matches no module"):
        MllamaSFTTrainer(model, config(tmp_path, use_peft=True, lora_target_modules="nothing"), train, None, processor)


class DeleteAnImage(TrainerCallback):
    """After the first epoch."""

    def __init__(self, path):
        self.path = path

    def on_epoch_end(self, args, state, control, **kwargs):
        self.path.unlink(missing_ok=True)


def test_an_image_that_is_gone_in_the_second_epoch(tiny_mllama, phantom_dir, tmp_path, capfd):
    shutil.copytree(phantom_dir / "data", tmp_path / "data")
    train = load_chats(tmp_path / "data", "train").select(range(8))
    model, processor = load_decoder(str(tiny_mllama))
    path = Path(train.with_format("arrow")[5]["images"][0].as_py()[0]["path"])
    args = config(tmp_path, max_steps=-1, num_train_epochs=2, dataloader_num_workers=1)
    trainer = MllamaSFTTrainer(model, args, train, None, processor, callbacks=[DeleteAnImage(path)])
    trainer.train()
    assert trainer.state.global_step == 4
    said = [line for line in capfd.readouterr().err.splitlines() if "no longer opens" in line]
    assert any(line.startswith(f"chat {train.select_columns(['id'])[5]['id']}: its image no longer") for line in said)
    assert len(said) <= 2  # this row's, and that of a second row with the same image


@pytest.mark.parametrize("spoken", [0, 1])
def test_nothing_to_learn_from_ends_before_the_first_step(loaded, tmp_path, spoken):
    """The end of an empty answer is a label too, but no word; one chat that says something is enough."""
    model, processor, _, _ = loaded
    said = ["Nothing."] * spoken + [""] * (8 - spoken)
    turns = [[{"role": "user", "content": "What?"}, {"role": "assistant", "content": text}] for text in said]
    rows = datasets.Dataset.from_list([{"id": f"c{i}", "messages": turn} for i, turn in enumerate(turns)])
    trainer = MllamaSFTTrainer(model, config(tmp_path), rows, None, processor)
    if not spoken:
        with pytest.raises(InputError, match="none of the 8 training chats has a word to learn; are the assistant's"):
            trainer.train()
        assert trainer.state.global_step == 0
        return
    trainer.train()
    assert trainer.state.global_step == 2
    warning = trainer.data_collator.describe_cuts(rows).splitlines()[1]
    assert warning == "warning: 7 of them have an empty answer, and only its end to learn: c1, c2, c3, c4, c5 ..."


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


def test_an_adapter_is_no_start(loaded, tmp_path):
    model, processor, train, _ = loaded
    trainer = MllamaSFTTrainer(model, config(tmp_path, use_peft=True), train, None, processor)
    trainer.save_model()
    for use_peft in (False, True):
        with pytest.raises(InputError, match=r"model_name_or_path: .*run is an adapter; merge it first"):
            config(tmp_path, model_name_or_path=trainer.args.output_dir, use_peft=use_peft)
        with pytest.raises(InputError, match="model: is an adapter; merge it first"):
            MllamaSFTTrainer(trainer.model, config(tmp_path, use_peft=use_peft), train, None, processor)


@pytest.mark.parametrize("key", ["train_dataset", "eval_dataset"])
def test_streams_are_refused(loaded, tmp_path, key):
    model, processor, train, _ = loaded
    given = {"train_dataset": train, "eval_dataset": {"one": train}} | {key: train.to_iterable_dataset()}
    with pytest.raises(InputError, match=f"{key}: is a stream; load it without streaming"):
        MllamaSFTTrainer(model, config(tmp_path), processing_class=processor, **given)


def test_widths_are_multiples_where_asked(loaded, tmp_path):
    model, processor, train, _ = loaded
    batches = []
    for multiple in (None, 64):
        args = config(tmp_path, pad_to_multiple_of=multiple, train_sampling_strategy="sequential")
        trainer = MllamaSFTTrainer(model, args, train, None, processor)
        batches.append(next(iter(trainer.get_train_dataloader())))
    plain, wide = batches
    length = plain["input_ids"].shape[1]
    assert wide["input_ids"].shape[1] % 64 == 0 < length % 64
    for name in ("input_ids", "labels", "attention_mask", "cross_attention_mask"):
        assert torch.equal(wide[name][:, :length], plain[name])
    assert not wide["attention_mask"][:, length:].any()
    assert (wide["labels"][:, length:] == IGNORED).all()


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
        ({"load_in_4bit": True}, "load_in_4bit: quantised weights do not train; set use_peft: true"),
        ({"load_in_8bit": True, "load_in_4bit": True}, "load_in_4bit: is true, and so is load_in_8bit"),
        ({"load_in_8bit": True, "use_peft": True, "deepspeed": "x"}, "load_in_8bit: does not go with deepspeed"),
        ({"freeze_vision": False, "use_peft": True}, "freeze_vision: false does not go with use_peft, .* leave it out"),
        ({"freeze_projector": False, "use_peft": True}, "freeze_projector: false does not go with use_peft"),
        ({"eval_packing": True}, "eval_packing: must be false"),
        ({"merge_adapter": True}, "merge_adapter: there is no adapter to merge"),
        (
            {"train_cross_attention_only": True, "freeze_vision": False},
            "train_cross_attention_only: freezes the vision",
        ),
        ({"train_cross_attention_only": True, "lora_target_modules": "x"}, "drop lora_target_modules"),
        ({"activation_checkpointing_kwargs": {"use_reentrant": True}}, "use_reentrant must be false"),
        (
            {"deepspeed": "nowhere.json"},
            "deepspeed: nowhere.json: no such file; those of medfinetune are in ds_configs",
        ),
        ({"deepspeed": __file__}, "deepspeed: .*test_trainer.py: is no JSON"),
    ],
)
def test_refused_settings(tmp_path, changes, message):
    with pytest.raises(InputError, match=message):
        config(tmp_path, **changes)
