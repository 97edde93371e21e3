"""Recomputing some layers: the same gradients, as many layers as decided, memory as estimated."""

import copy

import datasets
import pytest
import torch
from peft import get_peft_model
from PIL import Image
from transformers import MllamaConfig, MllamaForConditionalGeneration

from medfinetune.data.load import load_chats
from medfinetune.decoder.collator import MllamaCollator
from medfinetune.decoder.config import MllamaSFTConfig
from medfinetune.decoder.model import load_decoder, lora_config
from medfinetune.decoder.recompute import StoredBytes, measure_stored_bytes, recompute_layers, saved_bytes
from medfinetune.decoder.trainer import MllamaSFTTrainer
from medfinetune.decoder.vision import use_fast_vision
from medfinetune.errors import InputError
from tests.decoder.test_trainer import config

NUM_LAYERS, NUM_TOKENS, NUM_ROWS = 10, 96, 2


def args(**changes):
    values = {"use_peft": True, "use_cpu": True, "bf16": False, "dtype": "float32", "lora_dropout": 0.0}
    return MllamaSFTConfig(**values | changes)


@pytest.fixture(scope="module")
def mid_sized():
    """A Mllama of some million parameters with adapters, and a batch."""
    torch.manual_seed(0)
    shape = MllamaConfig(
        vision_config={
            "hidden_size": 64,
            "intermediate_size": 256,
            "attention_heads": 4,
            "num_hidden_layers": 4,
            "num_global_layers": 2,
            "intermediate_layers_indices": [0, 2],
            "vision_output_dim": 192,
            "image_size": 56,
        },
        text_config={
            "vocab_size": 500,
            "hidden_size": 128,
            "intermediate_size": 448,
            "num_hidden_layers": NUM_LAYERS,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "cross_attention_layers": [3, 8],
            "pad_token_id": 0,
        },
    )
    model = get_peft_model(MllamaForConditionalGeneration(shape), lora_config(args())).train()
    ids = torch.randint(1, 500, (NUM_ROWS, NUM_TOKENS))
    batch = {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "pixel_values": torch.randn(NUM_ROWS, 1, 4, 3, 56, 56),
        "aspect_ratio_ids": torch.full((NUM_ROWS, 1), 6),
        "aspect_ratio_mask": torch.ones(NUM_ROWS, 1, 4, dtype=torch.long),
        "cross_attention_mask": torch.ones(NUM_ROWS, NUM_TOKENS, 1, 4, dtype=torch.long),
    }
    return shape, model, batch


def count_forwards(model):
    """How often each text layer ran; the list grows as it runs."""
    seen = []
    for i, layer in enumerate(model.get_base_model().model.language_model.layers):
        layer.mlp.register_forward_pre_hook(lambda _, __, i=i: seen.append(i))
    return seen


def gradients(model, batch):
    model.zero_grad()
    loss = model(**batch).loss
    loss.backward()
    return loss.detach(), torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


@pytest.mark.parametrize("num_recomputed", [0, 1, 3, 4])
def test_loss_and_gradients_are_those_of_stock(tiny_mllama, phantom_dir, num_recomputed):
    model, processor = load_decoder(str(tiny_mllama))
    batch = MllamaCollator(processor, 256)(list(load_chats(phantom_dir / "data", "train").select(range(4))))
    model = get_peft_model(model, lora_config(args())).train()
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    stock = copy.deepcopy(model)
    use_fast_vision(stock, False)
    stock.enable_input_require_grads()
    stock.get_base_model().activation_checkpointing_enable({"use_reentrant": False})
    expected_loss, expected = gradients(stock, batch)
    recompute_layers(model, num_recomputed)
    seen = count_forwards(model)
    loss, ours = gradients(model, batch)
    torch.testing.assert_close(loss, expected_loss, rtol=1e-5, atol=0)
    assert ((ours - expected).norm() / expected.norm()).item() < 1e-5
    assert sorted(seen) == sorted([*range(4), *range(num_recomputed)])


@pytest.mark.parametrize(
    ("changes", "num_recomputed"),
    [
        ({"recompute": "all"}, 4),
        ({"recompute": "none"}, 0),
        ({"recompute": "auto"}, 2),  # stock's tower would store about half of what the text does
        ({"recompute": "auto", "recompute_memory_gib": 1.0}, 0),
        ({"recompute": "auto", "fast_vision": False}, 3),  # nothing pays then; the last layer's is there in stock too
        ({"recompute": "auto", "recompute_memory_gib": 1e-6}, 4),
        ({"recompute": "auto", "activation_checkpointing": False}, 0),
    ],
)
def test_training_recomputes_as_many_as_decided(tiny_mllama, phantom_dir, tmp_path, changes, num_recomputed):
    model, processor = load_decoder(str(tiny_mllama))
    chats = load_chats(phantom_dir / "data", "train").select(range(4))
    values = {"activation_checkpointing": True, "use_peft": True, "max_steps": 1, "max_length": 48}
    trainer = MllamaSFTTrainer(model, config(tmp_path, **values | changes), chats, None, processor)
    seen = count_forwards(trainer.model)
    trainer.train()
    assert sorted(seen) == sorted([*range(4), *range(num_recomputed)])


def test_the_bound_is_kept_for_the_row_with_most_images(tiny_mllama, tmp_path):
    model, processor = load_decoder(str(tiny_mllama))
    features = {"images": datasets.List(datasets.Image()), "prompt": datasets.Value("string")}
    features |= {"completion": datasets.Value("string")}
    picture = Image.effect_noise((48, 48), 50)
    rows = datasets.Dataset.from_list(
        [{"images": [picture] * number, "prompt": "A?", "completion": "B."} for number in (1, 3, 1, 1)],
        features=datasets.Features(features),
    )
    values = {"activation_checkpointing": True, "use_peft": True, "max_steps": 1, "max_length": 48}
    stored = {
        number: measure_stored_bytes(model.config, lora_config(args()), 4, 48, number, torch.float32, False)
        for number in (1, 3)
    }
    bound = stored[1].peak(0)
    assert stored[3].num_recomputed(bound) > stored[1].num_recomputed(bound) == 0
    values |= {"lora_dropout": 0.0, "recompute_memory_gib": bound / 2**30}
    trainer = MllamaSFTTrainer(model, config(tmp_path, **values), rows, None, processor)
    seen = count_forwards(trainer.model)
    trainer.train()
    assert len(seen) == 4 + stored[3].num_recomputed(bound)


def test_settings_that_contradict_each_other():
    with pytest.raises(InputError, match="recompute: all does not go with activation_checkpointing: false"):
        args(recompute="all", activation_checkpointing=False)
    with pytest.raises(InputError, match="recompute_memory_gib: give GiB above 0"):
        args(recompute_memory_gib=0.0)


def measured(model, batch):
    """Bytes that a real forward stores, without the weights and the batch."""
    kept = [*model.parameters(), *model.buffers(), *batch.values()]
    return saved_bytes(lambda: model(**batch).logits, kept)


@pytest.mark.parametrize("lora", [True, False])
def test_estimate_is_what_is_stored(mid_sized, lora):
    shape, with_adapters, batch = mid_sized
    model = with_adapters if lora else MllamaForConditionalGeneration(shape).train()
    mllama = model.get_base_model() if lora else model
    mllama.model.vision_model.requires_grad_(False)
    use_fast_vision(model)
    stored = measure_stored_bytes(
        shape, lora_config(args()) if lora else None, NUM_ROWS, NUM_TOKENS, 1, torch.float32, False
    )
    taken = []
    for number in (0, 4, NUM_LAYERS):
        recompute_layers(model, number)
        taken.append(measured(model, batch))
    # What is not the layers' (head, masks) is in all three.
    for real, number in zip(taken[:2], (0, 4), strict=True):
        estimate = sum(stored.layers[number:]) - (NUM_LAYERS - number) * stored.layer_input
        assert estimate == pytest.approx(real - taken[2], rel=0.03)


def test_estimate_of_the_tower(mid_sized):
    shape, model, batch = mid_sized
    stored = measure_stored_bytes(shape, lora_config(args()), NUM_ROWS, NUM_TOKENS, 1, torch.float32, False)
    stock = copy.deepcopy(model)
    use_fast_vision(stock, False)
    recompute_layers(stock, NUM_LAYERS)
    without = measured(stock, batch)
    stock.enable_input_require_grads()
    recompute_layers(stock, NUM_LAYERS)
    # The features of the tower ask for a gradient then, which the projector and cross-attention store little for.
    assert stored.tower == pytest.approx(measured(stock, batch) - without, rel=0.05)


@pytest.mark.parametrize("share", [0.2, 0.4, 0.7, 0.95])
def test_memory_stays_under_the_bound(mid_sized, share):
    shape, model, batch = mid_sized
    stored = measure_stored_bytes(shape, lora_config(args()), NUM_ROWS, NUM_TOKENS, 1, torch.float32, False)
    use_fast_vision(model)
    recompute_layers(model, NUM_LAYERS)
    rest = measured(model, batch) - NUM_LAYERS * stored.layer_input
    bound = int(share * sum(stored.layers))
    number = stored.num_recomputed(bound)
    recompute_layers(model, number)
    assert measured(model, batch) - rest <= bound
    recompute_layers(model, number - 1)
    assert measured(model, batch) - rest > 0.97 * bound


def test_fewest_layers():
    stored = StoredBytes(layers=(10, 10, 30, 10), layer_input=1, tower=25, head=3)
    assert [stored.peak(number) for number in range(5)] == [60, 51, 42, 33, 34]
    assert [stored.num_recomputed(bound) for bound in (60, 59, 42, 33, 5)] == [0, 1, 2, 3, 4]
    assert stored.of_stock == 25 + 34
    assert stored.budget == 56
    assert stored.num_recomputed(stored.budget) == 1
