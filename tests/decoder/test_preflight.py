import pytest
import torch
from transformers import MllamaConfig, MllamaForConditionalGeneration

from medfinetune.data.load import load_chats
from medfinetune.decoder.model import load_decoder
from medfinetune.decoder.preflight import count_run, preflight, shape_of
from medfinetune.decoder.trainer import MllamaSFTTrainer
from medfinetune.preflight.memory import memory_of
from medfinetune.preflight.plan import Machine
from tests.decoder.test_trainer import config
from tests.preflight.tracked import tracked_peak

LENGTH = 128


@pytest.fixture(scope="module")
def shape():
    """About 25 M parameters; the vocabulary's share of them is that of the real model, the tower's is larger."""
    return MllamaConfig(
        vision_config={
            "hidden_size": 192,
            "intermediate_size": 768,
            "attention_heads": 4,
            "num_hidden_layers": 6,
            "num_global_layers": 2,
            "intermediate_layers_indices": [0, 2, 4],
            "vision_output_dim": 768,
            "image_size": 112,
            "patch_size": 14,
            "max_num_tiles": 4,
        },
        text_config={
            "vocab_size": 4096,
            "hidden_size": 384,
            "intermediate_size": 1344,
            "num_hidden_layers": 8,
            "num_attention_heads": 6,
            "num_key_value_heads": 2,
            "cross_attention_layers": [2, 6],
            "max_position_embeddings": 1024,
            "bos_token_id": 1,
            "eos_token_id": 2,
            "pad_token_id": 3,
            "rope_parameters": {"rope_type": "default", "rope_theta": 500000.0},
        },
        image_token_index=4096,
    )


def batch(size, num_tiles):
    mask = torch.zeros(size, 1, 4, dtype=torch.long)
    mask[..., :num_tiles] = 1
    tokens = torch.randint(5, 4000, (size, LENGTH))
    return {
        "input_ids": tokens,
        "attention_mask": torch.ones_like(tokens),
        "labels": tokens,
        "pixel_values": torch.randn(size, 1, 4, 3, 112, 112),
        "aspect_ratio_ids": torch.full((size, 1), 6),
        "aspect_ratio_mask": mask,
        "cross_attention_mask": mask[:, None].expand(-1, LENGTH, -1, -1).contiguous(),
    }


def case(name, slow=False, **changes):
    return pytest.param(changes, id=name, marks=[pytest.mark.slow] if slow else [])


@pytest.mark.parametrize(
    "changes",
    [
        case("full"),
        case("full, checkpointing", activation_checkpointing=True),
        case("full, accumulating", gradient_accumulation_steps=2),
        case("full, tower too", slow=True, freeze_vision=False),
        case("full, autocast", slow=True, bf16=True),
        case("full, stock vision", slow=True, fast_vision=False),
        case("full, sgd", slow=True, optim="sgd"),
        case("LoRA", use_peft=True),
        case("LoRA, checkpointing", use_peft=True, activation_checkpointing=True),
        case("LoRA, bf16", slow=True, use_peft=True, dtype="bfloat16", bf16=True, activation_checkpointing=True),
    ],
)
def test_memory_is_that_of_a_real_step(shape, phantom_dir, tiny_mllama, tmp_path, changes):
    """Within 15% of torch's MemTracker, through the trainer's own step and optimiser."""
    args = config(tmp_path, max_length=LENGTH, per_device_train_batch_size=4, **changes)
    weights, counted = count_run(args, None, shape)
    predicted = memory_of(weights, counted, args.optim, args.gradient_accumulation_steps > 1, None, 1, True)
    model = MllamaForConditionalGeneration(shape).to(getattr(torch, args.dtype))
    _, processor = load_decoder(str(tiny_mllama))
    rows = load_chats(phantom_dir / "data")["train"].select(range(8))
    trainer = MllamaSFTTrainer(model, args, rows, None, processor)
    trainer.create_optimizer()
    if args.activation_checkpointing:
        trainer.model.activation_checkpointing_enable(activation_checkpointing_kwargs={"use_reentrant": False})
    wrapped, optimizer = trainer.accelerator.prepare(trainer.model, trainer.optimizer)
    trainer.current_gradient_accumulation_steps = args.gradient_accumulation_steps
    inputs = batch(4, 4)
    measured = tracked_peak(
        trainer.model,
        optimizer.optimizer,
        lambda: trainer.training_step(wrapped, dict(inputs), num_items_in_batch=torch.tensor(4 * LENGTH)),
        args.gradient_accumulation_steps > 1,
    )
    print(f"predicted/measured {predicted.total / measured:.3f} of {measured / 2**20:.0f} MiB")
    assert 1 / 1.15 < predicted.total / measured < 1.15
