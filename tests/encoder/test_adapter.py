import json
import subprocess
import sys

import pytest
import torch
from peft import PeftModel
from PIL import Image
from transformers import SiglipModel

from medfinetune.encoder.adapter import prepare_to_learn, save_merged
from medfinetune.encoder.metrics import embed_images
from medfinetune.encoder.model import load_encoder
from medfinetune.encoder.trainer import SigLIPTrainer
from medfinetune.errors import InputError
from tests.encoder.test_trainer import config

SCALARS = ("logit_scale", "logit_bias")
# Prints, of a folder, both embeddings and the two scalars of a fixed batch.
EMBED = """
import json, sys, torch
from medfinetune.encoder.model import load_encoder
model, processor = load_encoder(sys.argv[1])
size = processor.image_processor.size["width"]
torch.manual_seed(3)
batch = {"pixel_values": torch.rand(2, 3, size, size), "input_ids": torch.randint(2, 300, (2, 64))}
with torch.no_grad():
    out = model(**batch)
print(json.dumps([out.image_embeds.tolist(), out.text_embeds.tolist(), model.logit_scale.item(),
                  model.logit_bias.item()]))
"""


def embed(model, size):
    torch.manual_seed(3)
    batch = {"pixel_values": torch.rand(2, 3, size, size), "input_ids": torch.randint(2, 300, (2, 64))}
    with torch.no_grad():
        out = model.eval()(**batch)
    return [out.image_embeds, out.text_embeds, model.logit_scale[0], model.logit_bias[0]]


def embed_in_a_fresh_process(folder):
    done = subprocess.run([sys.executable, "-c", EMBED, str(folder)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return [torch.tensor(value) for value in json.loads(done.stdout.splitlines()[-1])]


def assert_close(one, other):
    for a, b in zip(one, other, strict=True):
        torch.testing.assert_close(a.detach(), b.detach(), atol=2e-6, rtol=1e-5)


def snapshot(model):
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


@pytest.mark.parametrize("tower", ["vision", "text"])
def test_a_frozen_tower_stays(loaded, tmp_path, tower):
    model, processor, train, _ = loaded
    model.config.vision_config.attention_dropout = model.config.text_config.attention_dropout = 0.5
    before = snapshot(model)
    trainer = SigLIPTrainer(model, config(tmp_path, freeze=tower, eval_strategy="no"), train, None, processor)
    trainer.train()
    for name, parameter in model.named_parameters():
        frozen = name.startswith(f"{tower}_model")
        assert torch.equal(parameter, before[name]) == frozen, name
        assert parameter.requires_grad != frozen, name
        assert not frozen or parameter.grad is None, name
    model.train()
    frozen, moving = (
        getattr(model, f"{tower}_model"),
        getattr(model, "text_model" if tower == "vision" else "vision_model"),
    )
    assert not any(module.training for module in frozen.modules())
    assert moving.training
    model.enable_input_require_grads()  # as checkpointing and PEFT do: a frozen tower would store a graph again
    outputs = model(**trainer.data_collator([train[i] for i in range(2)]))
    of_frozen, of_moving = outputs.image_embeds, outputs.text_embeds
    if tower == "text":
        of_frozen, of_moving = of_moving, of_frozen
    assert of_frozen.grad_fn is None  # nothing is stored for a backward
    assert of_moving.grad_fn is not None
    trainer.save_model(tmp_path / "saved")
    assert type(load_encoder(str(tmp_path / "saved"))[0]) is SiglipModel


@pytest.mark.parametrize("checkpointing", [False, True])
def test_lora_learns_and_comes_back(loaded, tmp_path, checkpointing):
    _, processor, train, validation = loaded
    source = processor.tokenizer.name_or_path
    model, processor = load_encoder(source, image_size_px=96)
    before = snapshot(model)
    settings = {"use_peft": True, "lora_r": 4, "lora_dropout": 0.1, "activation_checkpointing": checkpointing}
    trainer = SigLIPTrainer(model, config(tmp_path, logit_lr=0.05, **settings), train, validation, processor)
    begin = snapshot(trainer.model)
    learning = {name for name, parameter in trainer.model.named_parameters() if parameter.requires_grad}
    # 4 projections x (A, B) in 3 + 2 layers, and the two scalars.
    assert len(learning) == 4 * 2 * 5 + 2
    assert all("lora_" in name or name.endswith(SCALARS) for name in learning)
    assert not [name for name in learning if "head" in name]
    trainer.train()
    for name, parameter in trainer.model.named_parameters():
        assert torch.equal(parameter, begin[name]) != (name in learning), name
    trainer.save_model(tmp_path / "adapter")
    save_merged(tmp_path / "adapter", tmp_path / "merged")
    trained = embed(trainer.model, 96)
    assert trained[2] != before["logit_scale"]
    assert_close(embed_in_a_fresh_process(tmp_path / "adapter"), trained)
    assert type(load_encoder(str(tmp_path / "merged"))[0]) is SiglipModel
    assert_close(embed(load_encoder(str(tmp_path / "merged"))[0], 96), trained)
    image = Image.new("RGB", (50, 50), (9, 200, 30))
    folders = [str(tmp_path / name) for name in ("adapter", "merged")]
    assert_close(*([embed_images(*load_encoder(folder), [image])] for folder in folders))
    # PEFT alone finds temperature and bias too, on a base of the same size.
    stock = PeftModel.from_pretrained(load_encoder(source, image_size_px=96)[0], tmp_path / "adapter")
    assert_close(embed(stock, 96), trained)


def test_lora_resumes_and_keeps_the_best(loaded, tmp_path):
    """Temperature and bias come back where a run continues and where the best checkpoint is loaded."""
    _, processor, train, validation = loaded
    source = processor.tokenizer.name_or_path

    def run(output, steps, resume=None):
        settings = {"use_peft": True, "lora_dropout": 0.0, "logit_lr": 0.05, "lr_scheduler_type": "constant"}
        args = config(tmp_path, output_dir=str(tmp_path / output), max_steps=steps, eval_steps=2, **settings)
        trainer = SigLIPTrainer(load_encoder(source)[0], args, train, validation, processor)
        trainer.train(resume_from_checkpoint=resume)
        return trainer

    run("whole", 4)
    run("halved", 2)
    learned = run("halved", 4, str(tmp_path / "halved" / "checkpoint-2"))
    whole = load_encoder(str(tmp_path / "whole" / "checkpoint-4"))[0]
    halved = load_encoder(str(tmp_path / "halved" / "checkpoint-4"))[0]
    assert_close(embed(halved, 48), embed(whole, 48))
    best = load_encoder(learned.state.best_model_checkpoint)[0]
    assert_close(embed(learned.model, 48), embed(best, 48))
    assert embed(whole, 48)[2] != embed(load_encoder(str(tmp_path / "whole" / "checkpoint-2"))[0], 48)[2]


def test_lora_beside_a_frozen_tower(loaded, tmp_path):
    model = prepare_to_learn(loaded[0], config(tmp_path, use_peft=True, freeze="vision"))
    learning = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    assert len(learning) == 4 * 2 * 2 + 2
    assert not [name for name in learning if "vision" in name]


def test_the_seed_draws_the_adapter(tiny_siglip, tmp_path):
    drawn = []
    for seed in (1, 1, 2):
        torch.rand(seed)
        model = prepare_to_learn(load_encoder(str(tiny_siglip))[0], config(tmp_path, use_peft=True, seed=seed))
        drawn.append(next(value for name, value in snapshot(model).items() if "lora_A" in name))
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])


def test_errors(loaded, tmp_path):
    args = config(tmp_path, use_peft=True, lora_target_modules="no_such_layer")
    with pytest.raises(InputError, match="lora_target_modules: no_such_layer does not fit"):
        prepare_to_learn(loaded[0], args)
    adapter = prepare_to_learn(loaded[0], config(tmp_path, use_peft=True))
    with pytest.raises(InputError, match="is an adapter; train from its merged copy"):
        prepare_to_learn(adapter, config(tmp_path))
