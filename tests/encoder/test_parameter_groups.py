import math

import pytest
import torch

from medfinetune.encoder.config import SigLIPConfig
from medfinetune.encoder.model import load_encoder
from medfinetune.encoder.parameter_groups import learning_rates, place_of
from medfinetune.encoder.trainer import SigLIPTrainer
from medfinetune.errors import InputError
from tests.encoder.test_trainer import config

LAYERS = {"vision": 3, "text": 2}
PLACES = {
    "logit_scale": ("logit", 0),
    "base_model.model.logit_bias": ("logit", 0),
    "vision_model.embeddings.patch_embedding.weight": ("vision", 4),
    "vision_model.embeddings.position_embedding.weight": ("vision", 4),
    "vision_model.encoder.layers.0.layer_norm1.bias": ("vision", 3),
    "vision_model.encoder.layers.2.mlp.fc1.weight": ("vision", 1),
    "vision_model.post_layernorm.weight": ("vision", 0),
    "vision_model.head.probe": ("vision", 0),
    "vision_model.head.attention.in_proj_weight": ("vision", 0),
    "text_model.embeddings.token_embedding.weight": ("text", 3),
    "text_model.encoder.layers.1.self_attn.k_proj.weight": ("text", 1),
    "base_model.model.text_model.encoder.layers.0.self_attn.q_proj.lora_A.default.weight": ("text", 2),
    "text_model.head.weight": ("text", 0),
}


@pytest.mark.parametrize(("name", "place"), PLACES.items())
def test_place(name, place):
    assert place_of(name, LAYERS) == place


def test_rates():
    rates = learning_rates(PLACES, LAYERS, 1e-3, layer_decay=0.5, text_lr=8e-3, logit_lr=0.1)
    assert rates["vision_model.embeddings.patch_embedding.weight"] == 1e-3 / 16
    assert rates["vision_model.encoder.layers.2.mlp.fc1.weight"] == 5e-4
    assert rates["vision_model.head.probe"] == 1e-3
    assert rates["text_model.embeddings.token_embedding.weight"] == 1e-3
    assert rates["text_model.head.weight"] == 8e-3
    assert rates["logit_scale"] == 0.1  # it stands in no layer
    with pytest.raises(ValueError, match="lm_head is no parameter of a SigLIP"):
        learning_rates(["lm_head"], LAYERS, 1e-3)


def test_every_group_follows_the_schedule(loaded, tmp_path):
    model, processor, train, _ = loaded
    settings = {"layer_decay": 0.5, "vision_lr": 4e-3, "logit_lr": 0.1, "weight_decay": 0.2}
    args = config(tmp_path, eval_strategy="no", max_steps=4, lr_scheduler_type="linear", **settings)
    trainer = SigLIPTrainer(model, args, train, None, processor)
    trainer.train()
    of = {id(p): group for group in trainer.optimizer.param_groups for p in group["params"]}
    groups = {name: of[id(parameter)] for name, parameter in model.named_parameters()}
    assert sum(len(group["params"]) for group in trainer.optimizer.param_groups) == len(groups)
    start = {
        "logit_bias": 0.1,
        "vision_model.head.probe": 4e-3,
        "vision_model.encoder.layers.0.mlp.fc1.weight": 4e-3 / 8,
        "text_model.head.weight": 1e-3,
        "text_model.embeddings.token_embedding.weight": 1e-3 / 8,
    }
    for name, rate in start.items():
        assert math.isclose(groups[name]["initial_lr"], rate), name
        assert groups[name]["lr"] == 0  # a linear schedule ends there
    for name in ("logit_scale", "logit_bias", "text_model.head.bias", "vision_model.post_layernorm.weight"):
        assert groups[name]["weight_decay"] == 0, name
    for name in ("text_model.head.weight", "vision_model.encoder.layers.0.mlp.fc1.weight"):
        assert groups[name]["weight_decay"] == 0.2, name


def test_rates_change_what_is_learned(loaded, tmp_path):
    """A rate of 0 stops a tower, with a moving one beside it."""
    _, processor, train, _ = loaded
    name = processor.tokenizer.name_or_path
    model, _ = load_encoder(name)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    args = config(tmp_path, eval_strategy="no", text_lr=0.0, weight_decay=0.0)
    SigLIPTrainer(model, args, train, None, processor).train()
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, before[name]) == name.startswith("text_model"), name


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"layer_decay": 0.0}, r"layer_decay: 0.0 must be in \(0, 1\]"),
        ({"layer_decay": 1.1}, r"layer_decay: 1.1 must be in \(0, 1\]"),
        ({"text_lr": -1.0}, "text_lr: -1.0 must be 0 or more"),
        ({"wise_ft": [0, 1.5]}, r"wise_ft: \[0, 1.5\] must be a list of shares in \[0, 1\]"),
        ({"wise_ft": [0.5], "eval_strategy": "no"}, "wise_ft: needs figures of the validation split"),
        ({"early_stopping_patience": 2, "eval_strategy": "no"}, "early_stopping_patience: needs figures"),
        ({"early_stopping_patience": 0}, "early_stopping_patience: 0 must be 1 or more"),
        ({"early_stopping_patience": 1, "load_best_model_at_end": False}, "needs load_best_model_at_end: true"),
        ({"horizontal_flip_probability": 2.0}, r"horizontal_flip_probability: 2.0 must be in \[0, 1\]"),
        ({"crop_scale_min": 0.0}, "crop_scale_min: 0.0"),
        ({"brightness": 1.0}, r"brightness: 1.0 must be in \[0, 1\)"),
        ({"lora_r": 0}, "lora_r: 0 must be 1 or more"),
        ({"merge": True}, "merge: there is nothing to merge without use_peft: true"),
    ],
)
def test_bad_values(tmp_path, given, message):
    defaults = {"output_dir": str(tmp_path), "use_cpu": True, "eval_strategy": "steps", "eval_steps": 1}
    with pytest.raises(InputError, match=message):
        SigLIPConfig(**(defaults | given))
