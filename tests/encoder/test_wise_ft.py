import json
import math

import pytest
import torch
from transformers import SiglipModel

from medfinetune.encoder.adapter import save_merged
from medfinetune.encoder.model import load_encoder
from medfinetune.encoder.trainer import SigLIPTrainer
from medfinetune.encoder.wise_ft import sweep_wise_ft
from medfinetune.errors import InputError
from tests.encoder.test_trainer import config

ALPHAS = [0, 0.25, 0.5, 1]


def trained(loaded, tmp_path, **settings):
    _, processor, train, validation = loaded
    name = processor.tokenizer.name_or_path
    settings = {"wise_ft": ALPHAS, "model_name_or_path": name, "logit_lr": 0.05, "image_size_px": 96} | settings
    args = config(tmp_path, **settings)
    model, processor = load_encoder(name, image_size_px=args.image_size_px)
    trainer = SigLIPTrainer(model, args, train, validation, processor)
    trainer.train()
    trainer.save_model()
    return trainer, args


def merged_weights(folder, tmp_path, name):
    if (folder / "adapter_config.json").is_file():
        save_merged(folder, tmp_path / name)
        folder = tmp_path / name
    return SiglipModel.from_pretrained(folder).state_dict()


@pytest.mark.parametrize("settings", [{}, {"use_peft": True, "lora_r": 4}, {"freeze": "vision"}], ids=str)
def test_mixed_by_hand(loaded, tmp_path, capsys, settings):
    trainer, args = trained(loaded, tmp_path, **settings)
    before = {name: parameter.detach().clone() for name, parameter in trainer.model.named_parameters()}
    sweep_wise_ft(trainer, args)
    for name, parameter in trainer.model.named_parameters():
        assert torch.equal(parameter, before[name]), name
    said = json.loads((tmp_path / "run" / "wise_ft" / "wise_ft.json").read_text())
    assert [row["alpha"] for row in said["figures"]] == ALPHAS
    recalls = [row["wise_ft_recall_at_1"] for row in said["figures"]]
    assert said["figures"][ALPHAS.index(said["alpha"])]["wise_ft_recall_at_1"] == max(recalls)
    assert "alpha  recall_at_1  recall_at_5  recall_at_10" in capsys.readouterr().out
    # The ends are the fine-tuned model and the start checkpoint at the run's size.
    tuned_figure = trainer.evaluate()["eval_recall_at_5"]
    assert math.isclose(said["figures"][-1]["wise_ft_recall_at_5"], tuned_figure)
    start = load_encoder(args.model_name_or_path, image_size_px=96)[0]
    plain = SigLIPTrainer(start, config(tmp_path), None, trainer.eval_dataset, trainer.processing_class)
    assert math.isclose(said["figures"][0]["wise_ft_recall_at_5"], plain.evaluate()["eval_recall_at_5"])
    # What is kept is the mixture that it says.
    start, tuned = start.state_dict(), merged_weights(tmp_path / "run", tmp_path, "tuned")
    kept = merged_weights(tmp_path / "run" / "wise_ft", tmp_path, "kept")
    for name, weight in kept.items():
        expected = (1 - said["alpha"]) * start[name] + said["alpha"] * tuned[name]
        torch.testing.assert_close(weight, expected, atol=1e-6, rtol=1e-5)
    assert load_encoder(str(tmp_path / "run" / "wise_ft"))[1].image_processor.size["width"] == 96


@pytest.mark.parametrize("settings", [{}, {"use_peft": True}], ids=["weights", "lora"])
def test_one_half_is_kept_as_such(loaded, tmp_path, settings):
    trainer, args = trained(loaded, tmp_path, wise_ft=[0.5], **settings)
    sweep_wise_ft(trainer, args)
    start = load_encoder(args.model_name_or_path, image_size_px=96)[0].state_dict()
    tuned = merged_weights(tmp_path / "run", tmp_path, "tuned")
    kept = merged_weights(tmp_path / "run" / "wise_ft", tmp_path, "kept")
    moved = [name for name in kept if not torch.equal(start[name], tuned[name])]
    assert {"logit_scale", "logit_bias", "text_model.encoder.layers.0.self_attn.q_proj.weight"} <= set(moved)
    for name, weight in kept.items():
        torch.testing.assert_close(weight, (start[name] + tuned[name]) / 2, atol=1e-6, rtol=1e-5)


def test_nothing_is_asked_for(loaded, tmp_path):
    trainer, args = trained(loaded, tmp_path, wise_ft=[])
    sweep_wise_ft(trainer, args)
    assert not (tmp_path / "run" / "wise_ft").exists()


def test_errors(loaded, tmp_path, tiny_siglip):
    trainer, args = trained(loaded, tmp_path, max_steps=1)
    args.metric_for_best_model = "no_such_figure"
    with pytest.raises(InputError, match="no_such_figure is none of the validation figures"):
        sweep_wise_ft(trainer, args)
    trainer.is_fsdp_enabled = True
    with pytest.raises(InputError, match="spread over processes"):
        sweep_wise_ft(trainer, args)
