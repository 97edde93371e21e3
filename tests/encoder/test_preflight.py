import pytest
import torch
from transformers import SiglipConfig, SiglipModel

from medfinetune.encoder.config import SigLIPConfig
from medfinetune.encoder.preflight import count_run, preflight, shape_of
from medfinetune.encoder.trainer import SigLIPTrainer
from medfinetune.errors import InputError
from medfinetune.preflight.changes import Machine
from medfinetune.preflight.memory import memory_of
from tests.preflight.tracked import tracked_peak

BATCH = 16


def config(tmp_path, **changes):
    defaults = {"output_dir": str(tmp_path / "run"), "data_dir": "unused", "use_cpu": True, "eval_strategy": "no"}
    return SigLIPConfig(**(defaults | {"per_device_train_batch_size": BATCH} | changes))


def shape():
    """About 21 M parameters."""
    tower = {"hidden_size": 320, "intermediate_size": 1280, "num_attention_heads": 5, "num_hidden_layers": 7}
    text = {"vocab_size": 8000, "projection_size": 320, "bos_token_id": None, "eos_token_id": 1, "pad_token_id": 1}
    return SiglipConfig(text_config=tower | text, vision_config=tower | {"image_size": 96, "patch_size": 16})


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({}, id="plain"),
        pytest.param({"micro_batch_size": 4}, id="micro-batches", marks=pytest.mark.slow),
        pytest.param({"activation_checkpointing": True}, id="checkpointing"),
        pytest.param({"bf16": True}, id="autocast", marks=pytest.mark.slow),
        pytest.param({"gradient_accumulation_steps": 2}, id="accumulating", marks=pytest.mark.slow),
    ],
)
def test_memory_is_that_of_a_real_step(tmp_path, changes):
    """Within 15% of torch's MemTracker, through the trainer's own step and optimiser."""
    args = config(tmp_path, **changes)
    weights, counted = count_run(args, None, shape())
    predicted = memory_of(weights, counted, args.optim, args.gradient_accumulation_steps > 1, None, 1, True)
    trainer = SigLIPTrainer(SiglipModel(shape()), args, [{}], data_collator=lambda rows: rows)
    trainer.create_optimizer()
    if args.activation_checkpointing:
        trainer.model.activation_checkpointing_enable(activation_checkpointing_kwargs={"use_reentrant": False})
    wrapped, optimizer = trainer.accelerator.prepare(trainer.model, trainer.optimizer)
    trainer.current_gradient_accumulation_steps = args.gradient_accumulation_steps
    inputs = {"pixel_values": torch.randn(BATCH, 3, 96, 96), "input_ids": torch.randint(2, 8000, (BATCH, 64))}
    measured = tracked_peak(
        trainer.model,
        optimizer.optimizer,
        lambda: trainer.training_step(wrapped, dict(inputs)),
        args.gradient_accumulation_steps > 1,
    )
    print(f"predicted/measured {predicted.total / measured:.3f} of {measured / 2**20:.0f} MiB")
    assert 1 / 1.15 < predicted.total / measured < 1.15


def test_image_size_counts(tmp_path, tiny_siglip):
    def activations(**changes):
        args = config(tmp_path, model_name_or_path=str(tiny_siglip), **changes)
        return preflight(args, Machine(on_cpu=True)).memory.activations

    assert activations(image_size_px=96) > 1.5 * activations()
    with pytest.raises(InputError, match="image_size_px: 50 is no multiple of the patch of 8 px"):
        activations(image_size_px=50)


@pytest.mark.parametrize(
    ("name", "millions", "tokens"),
    [
        ("google/siglip-base-patch16-224", 203, 196),
        ("google/siglip-base-patch16-256-multilingual", 371, 256),
        ("google/siglip-large-patch16-384", 652, 576),
        ("google/siglip-so400m-patch14-384", 878, 729),
        ("google/siglip-so400m-patch16-256-i18n", 1130, 256),
        ("google/siglip2-base-patch16-512", 375, 1024),
        ("google/medsiglip-448", 878, 1024),
    ],
)
def test_shapes_follow_from_published_names(tmp_path, name, millions, tokens):
    """Numbers of parameters as the models' cards give them, in millions."""
    shape, note = shape_of(config(tmp_path, model_name_or_path=name))
    assert "not looked at" in note
    with torch.device("meta"):
        model = SiglipModel(shape)
    assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(millions, rel=0.01)
    assert model.vision_model.embeddings.num_positions == tokens


def test_another_kind_of_model_is_refused(tmp_path, tiny_mllama):
    with pytest.raises(InputError, match="holds a model of type mllama, not siglip"):
        preflight(config(tmp_path, model_name_or_path=str(tiny_mllama)), Machine(on_cpu=True))
