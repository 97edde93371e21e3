"""The fast vision path beside stock transformers: the same features, losses and gradients."""

import copy

import pytest
import torch
from peft import get_peft_model
from PIL import Image

from medfinetune.data.load import load_chats
from medfinetune.decoder.collator import MllamaCollator
from medfinetune.decoder.config import MllamaSFTConfig
from medfinetune.decoder.model import load_decoder, lora_config
from medfinetune.decoder.vision import use_fast_vision

# Ratio ids and how many tiles they have; 0 stands for no image.
TILES = {0: 1, 1: 1, 2: 2, 3: 3, 4: 4, 5: 2, 6: 4, 7: 3, 8: 4}
TOLERANCES = {torch.float64: 1e-13, torch.float32: 1e-5}


@pytest.fixture
def loaded(tiny_mllama):
    return load_decoder(str(tiny_mllama))


def images(ratio_ids, dtype):
    ids = torch.tensor(ratio_ids)
    mask = torch.zeros(*ids.shape, 4, dtype=torch.long)
    pixels = torch.zeros(*ids.shape, 4, 3, 48, 48, dtype=dtype)
    for row in range(ids.shape[0]):
        for i in range(ids.shape[1]):
            tiles = TILES[ratio_ids[row][i]]
            mask[row, i, :tiles] = 1
            if ratio_ids[row][i]:
                pixels[row, i, :tiles] = torch.randn(tiles, 3, 48, 48, dtype=dtype)
    return {"pixel_values": pixels, "aspect_ratio_ids": ids, "aspect_ratio_mask": mask}


def relative(ours, expected):
    return ((ours - expected).norm() / expected.norm()).item()


def encode(tower, inputs):
    seen = []
    hook = tower.patch_embedding.register_forward_hook(lambda _, args, __: seen.append(len(args[0])))
    with torch.no_grad():
        features = tower(**inputs).last_hidden_state
    hook.remove()
    return features, sum(seen)


@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
@pytest.mark.parametrize(
    ("ratio_ids", "num_encoded"),
    [
        ([[1]], 2),  # the image's tile and one for the three that pad it
        ([[2], [5]], 6),
        ([[3], [7]], 8),
        ([[4], [6], [8]], 12),
        ([[1, 4], [2, 0]], 2 + 4 + 3 + 2),
        ([[0, 0], [1, 0]], 2 + 2),  # what is empty is encoded once
    ],
)
def test_features_are_those_of_stock(loaded, dtype, ratio_ids, num_encoded):
    model = loaded[0].to(dtype)
    tower = model.model.vision_model
    inputs = images(ratio_ids, dtype)
    ours, tiles = encode(tower, inputs)
    assert tiles == num_encoded
    use_fast_vision(model, False)
    expected, tiles = encode(tower, inputs)
    assert tiles == 4 * inputs["aspect_ratio_ids"].numel()
    assert ours.shape == expected.shape
    assert relative(ours, expected) < TOLERANCES[dtype]


@pytest.mark.parametrize(
    "change",
    ["pre_tile_positional_embedding", "post_tile_positional_embedding", "gated_positional_embedding", "pixels"],
)
def test_padded_tiles_that_differ_are_all_encoded(loaded, change):
    model = loaded[0].double()
    tower = model.model.vision_model
    inputs = images([[1], [2]], torch.float64)
    if change == "pixels":
        inputs["pixel_values"][0, 0, 3] = 0.5
    else:
        module = getattr(tower, change)
        table = (module.tile_embedding if change.startswith("gated") else module.embedding).weight
        with torch.no_grad():
            table[1].view(4, -1)[3] = 0.5
    ours, tiles = encode(tower, inputs)
    assert tiles == 4 + 3
    use_fast_vision(model, False)
    assert relative(ours, encode(tower, inputs)[0]) < 1e-13


def test_an_image_that_stands_several_times_is_encoded_once(loaded):
    model = loaded[0].double()
    tower = model.model.vision_model
    inputs = images([[4], [1], [4], [4], [1]], torch.float64)
    for i in (2, 3):
        inputs["pixel_values"][i] = inputs["pixel_values"][0]
    inputs["pixel_values"][4] = inputs["pixel_values"][1]
    inputs["aspect_ratio_ids"][3] = 6  # the same pixels, laid out otherwise
    ours, tiles = encode(tower, inputs)
    assert tiles == 4 + 4 + 2
    use_fast_vision(model, False)
    assert relative(ours, encode(tower, inputs)[0]) < 1e-13


def batch(processor, phantom_dir):
    rows = [dict(load_chats(phantom_dir / "data", "train")[i]) for i in (0, 1, 5, 40)]
    rows[1]["images"] = rows[0]["images"]  # two questions about one image
    rows[2]["images"] = [Image.effect_noise((90, 40), 80).convert("RGB")]  # two tiles
    text = [{"role": role, "content": [{"type": "text", "text": role}]} for role in ("user", "assistant")]
    return MllamaCollator(processor, 256)([*rows, {"id": "text", "images": [], "messages": text}])


def gradients(model, inputs):
    model.zero_grad()
    loss = model(**inputs).loss
    loss.backward()
    return loss.detach(), {name: p.grad for name, p in model.named_parameters() if p.requires_grad}


def as_trained(model, kind):
    if kind == "lora":
        model = get_peft_model(model, lora_config(MllamaSFTConfig(use_peft=True, lora_dropout=0.0, use_cpu=True)))
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter, std=0.1)
        # As TRL does it: the hook makes the frozen tower's first output ask for a gradient.
        model.enable_input_require_grads()
    else:
        model.model.vision_model.requires_grad_(kind == "everything")
    return model.train()


@pytest.mark.parametrize("kind", ["lora", "frozen tower", "everything"])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_loss_and_gradients_are_those_of_stock(loaded, phantom_dir, kind, checkpointing):
    model, processor = loaded
    model = as_trained(model, kind)
    if checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    inputs = batch(processor, phantom_dir)
    loss, ours = gradients(model, inputs)
    use_fast_vision(model, False)
    expected_loss, expected = gradients(model, inputs)
    torch.testing.assert_close(loss, expected_loss, rtol=1e-5, atol=0)
    assert ours.keys() == expected.keys()
    assert all((gradient is None) == (ours[name] is None) for name, gradient in expected.items())
    learned = [name for name, gradient in expected.items() if gradient is not None]
    assert (kind == "everything") == any("vision_model" in name for name in learned)
    # Single parameters, as biases before a norm, may have gradients that are rounding noise.
    one, other = (torch.cat([table[name].flatten() for name in learned]) for table in (ours, expected))
    assert relative(one, other) < 1e-5


def saved_bytes(model, inputs):
    """Bytes of activations that the tower keeps for its backward."""
    saved = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        saved[storage.data_ptr()] = storage.nbytes()
        return tensor

    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    tower = model.get_base_model().model.vision_model
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        tower(**{name: inputs[name] for name in ("pixel_values", "aspect_ratio_ids", "aspect_ratio_mask")})
    return sum(size for pointer, size in saved.items() if pointer not in weights)


def test_a_frozen_tower_keeps_nothing_for_a_backward(loaded, phantom_dir):
    model = as_trained(loaded[0], "lora")
    inputs = batch(loaded[1], phantom_dir)
    assert saved_bytes(model, inputs) == 0
    use_fast_vision(model, False)
    assert saved_bytes(model, inputs) > 1_000_000


def test_generation_is_that_of_stock(loaded, phantom_dir):
    model, processor = loaded
    row = load_chats(phantom_dir / "data", "train")[0]
    inputs = MllamaCollator(processor, 256, for_generation=True)([row])
    ours = model.generate(**inputs, max_new_tokens=8, do_sample=False)
    use_fast_vision(model, False)
    assert torch.equal(ours, model.generate(**inputs, max_new_tokens=8, do_sample=False))


def test_on_and_off_again(loaded):
    model = loaded[0]
    tower = model.model.vision_model
    stock = type(tower).forward
    use_fast_vision(model)
    use_fast_vision(model)
    assert tower.forward.__func__ is not stock
    use_fast_vision(model, False)
    assert tower.forward.__func__ is stock
    use_fast_vision(model, False)
    assert copy.deepcopy(model).model.vision_model.forward.__func__ is stock
    with pytest.raises(ValueError, match="Linear has no Mllama vision tower"):
        use_fast_vision(torch.nn.Linear(1, 1))
