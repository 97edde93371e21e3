import os
import time

import pytest
import torch
from peft import get_peft_model
from PIL import Image

from medfinetune.data.load import load_chats
from medfinetune.decoder.collator import MllamaCollator
from medfinetune.decoder.config import MllamaSFTConfig
from medfinetune.decoder.generation import generate
from medfinetune.decoder.model import load_decoder, lora_config
from medfinetune.decoder.trainer import MllamaSFTTrainer
from medfinetune.decoder.vision_cache import GIB, DiskStore, MemoryStore, describe_size, use_vision_cache
from medfinetune.errors import InputError
from tests.decoder.test_trainer import config

KINDS = ["memory", "disk"]


@pytest.fixture
def loaded(tiny_mllama):
    model, processor = load_decoder(str(tiny_mllama))
    model = get_peft_model(model, lora_config(MllamaSFTConfig(use_peft=True, lora_dropout=0.0, use_cpu=True)))
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    return model, processor


@pytest.fixture
def batch(loaded, phantom_dir):
    rows = [dict(load_chats(phantom_dir / "data", "train")[i]) for i in (0, 1, 5, 40)]
    rows[2]["images"] = [Image.effect_noise((90, 40), 80).convert("RGB")]  # two tiles
    rows.append({"id": "text", "images": [], "messages": [{"role": r, "content": r} for r in ("user", "assistant")]})
    return MllamaCollator(loaded[1], 256)(rows)


def count_tiles(model):
    """A list that grows by the number of tiles that each forward of the tower encodes."""
    tower = model.get_base_model().model.vision_model
    seen = []
    tower.patch_embedding.register_forward_hook(lambda _, args, __: seen.append(len(args[0])))
    return seen


def step(model, inputs):
    model.zero_grad()
    loss = model(**inputs, use_cache=False).loss
    loss.backward()
    return loss.detach(), torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_the_second_epoch_encodes_nothing_and_learns_the_same(loaded, batch, tmp_path, kind, dtype):
    model = loaded[0].to(dtype)
    expected_loss, expected = step(model, batch)
    seen = count_tiles(model)
    use_vision_cache(model, kind, 1.0, tmp_path)
    first = step(model, batch)
    assert sum(seen) > 0
    seen.clear()
    second = step(model, batch)
    assert seen == []
    assert torch.equal(first[0], second[0])
    assert torch.equal(first[1], second[1])
    tolerance = 1e-5 if dtype == torch.float32 else 2e-2
    torch.testing.assert_close(second[0], expected_loss, rtol=tolerance, atol=0)
    assert (second[1] - expected).norm() / expected.norm() < tolerance
    if kind == "disk":  # a later run finds it
        use_vision_cache(model, kind, 1.0, tmp_path)
        assert torch.equal(step(model, batch)[0], first[0])
        assert seen == []
    use_vision_cache(model, "off")
    step(model, batch)
    assert sum(seen) > 0


def test_trainer_encodes_each_image_once(loaded, phantom_dir, tmp_path, tiny_mllama, capsys):
    model, processor = load_decoder(str(tiny_mllama))
    train = load_chats(phantom_dir / "data", "train").select(range(8))
    args = config(
        tmp_path, use_peft=True, vision_cache="disk", max_steps=-1, num_train_epochs=3, activation_checkpointing=True
    )
    trainer = MllamaSFTTrainer(model, args, train, None, processor)
    said = capsys.readouterr().out
    assert "vision_cache: disk: about 0.00 GiB for " in said
    assert "vision_cache_gib keeps at most 32 GiB" in said
    seen = count_tiles(trainer.model)
    trainer.train()
    distinct = {image.tobytes() for row in train for image in row["images"]}
    assert len(list((tmp_path / "run" / "cache" / "vision").glob("*.safetensors"))) == len(distinct)
    assert sum(seen) <= 4 * len(distinct)
    # Evaluation and generation read it too.
    seen.clear()
    assert generate(trainer.model, processor, train, max_new_tokens=2)
    assert seen == []


@pytest.mark.parametrize("kind", KINDS)
def test_other_weights_or_another_precision_are_not_served(loaded, batch, tmp_path, kind):
    model = loaded[0]
    use_vision_cache(model, kind, 1.0, tmp_path)
    before = step(model, batch)[0]
    seen = count_tiles(model)
    mllama = model.get_base_model().model
    for part in (mllama.vision_model.layernorm_post, mllama.multi_modal_projector):
        with torch.no_grad():
            part.weight.mul_(1.5)
        after = step(model, batch)[0]
        assert not torch.equal(before, after)
        use_vision_cache(model, "off")
        torch.testing.assert_close(after, step(model, batch)[0], rtol=1e-5, atol=0)
        use_vision_cache(model, kind, 1.0, tmp_path)
        before = after
    seen.clear()
    with torch.autocast("cpu", torch.bfloat16):
        step(model, batch)
    assert sum(seen) > 0


def test_other_pixels_or_another_arrangement_are_encoded(loaded, batch):
    model = loaded[0]
    use_vision_cache(model, "memory", 1.0)
    step(model, batch)
    seen = count_tiles(model)
    batch["pixel_values"][0, 0, 0, 0, 0, 0] += 0.01
    step(model, batch)
    first = min(4, int(batch["aspect_ratio_mask"][0].sum()) + 1)  # its own tiles and one of the padding
    assert sum(seen) == first
    batch["aspect_ratio_ids"][2] = 2 if batch["aspect_ratio_ids"][2] != 2 else 5
    step(model, batch)
    assert sum(seen) == first + 3


@pytest.mark.parametrize("damage", ["bit", "truncated", "empty", "header"])
def test_a_damaged_file_is_made_again(loaded, batch, tmp_path, damage):
    model = loaded[0]
    use_vision_cache(model, "disk", 1.0, tmp_path)
    expected = step(model, batch)[0]
    seen = count_tiles(model)
    for path in tmp_path.glob("*.safetensors"):
        data = bytearray(path.read_bytes())
        if damage == "bit":
            data[-101] ^= 4
        elif damage == "header":
            data[3:40] = bytes(37)
        path.write_bytes({"truncated": data[: len(data) // 2], "empty": b""}.get(damage, data))
    assert torch.equal(step(model, batch)[0], expected)
    assert sum(seen) > 0
    seen.clear()
    assert torch.equal(step(model, batch)[0], expected)
    assert seen == []


def entries(number):
    return torch.full((2, 8, 16), float(number))  # 1,024 bytes


@pytest.mark.parametrize("kind", KINDS)
def test_what_was_not_used_the_longest_goes_and_the_bound_holds(tmp_path, kind):
    bound = 4 * 1024 + 1000
    store = MemoryStore(bound) if kind == "memory" else DiskStore(tmp_path, bound)

    def size():
        return store.num_bytes if kind == "memory" else sum(p.stat().st_size for p in tmp_path.iterdir())

    for number in range(4):
        store.put(str(number), entries(number))
        time.sleep(0.02)
    assert all(store.get(str(number)) is not None for number in (1, 2, 3, 0))
    time.sleep(0.02)
    store.get("1")
    for number in range(4, 7):
        store.put(str(number), entries(number))
        assert size() <= bound
        time.sleep(0.02)
    assert store.get("2") is None
    assert store.get("3") is None
    assert torch.equal(store.get("6"), entries(6))
    assert torch.equal(store.get("1"), entries(1))
    store.put("large", torch.zeros(10_000))
    assert store.get("large") is None
    assert store.get("6") is not None


def test_processes_share_a_folder_within_the_bound(tmp_path):
    bound = 5 * 1200
    stores = [DiskStore(tmp_path, bound, num_processes=2) for _ in range(2)]
    for number in range(20):
        stores[number % 2].put(str(number), entries(number))
        assert stores[1 - number % 2].get(str(number)) is not None
    assert sum(p.stat().st_size for p in tmp_path.iterdir()) <= bound


def test_what_a_killed_run_left_half_written_goes(tmp_path):
    for name, age in (("old.part", 7200), ("young.part", 0)):
        (tmp_path / name).write_bytes(b"half")
        os.utime(tmp_path / name, (time.time() - age,) * 2)
    DiskStore(tmp_path, GIB)
    assert [path.name for path in tmp_path.iterdir()] == ["young.part"]


def test_a_full_disk_costs_the_cache_not_the_run(loaded, batch, tmp_path, monkeypatch):
    model = loaded[0]
    use_vision_cache(model, "disk", 1.0, tmp_path)

    def full(path, data):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pathlib.Path.write_bytes", full)
    with pytest.warns(UserWarning, match="nothing more is stored .*No space left"):
        loss = step(model, batch)[0]
    assert torch.equal(loss, step(model, batch)[0])
    assert list(tmp_path.iterdir()) == []


def test_refused_where_something_trains(tiny_mllama, tmp_path, phantom_dir):
    model, processor = load_decoder(str(tiny_mllama))
    train = load_chats(phantom_dir / "data", "train").select(range(2))
    with pytest.raises(InputError, match="vision_cache: memory keeps features, but the projector trains"):
        MllamaSFTTrainer(model, config(tmp_path, vision_cache="memory"), train, None, processor)
    args = config(tmp_path, use_peft=True, lora_target_modules=r".*(q_proj|v_proj)", vision_cache="disk")
    with pytest.raises(InputError, match="but the vision tower trains"):
        MllamaSFTTrainer(model, args, train, None, processor)
    with pytest.raises(InputError, match="vision_cache_gib: must be more than 0"):
        config(tmp_path, vision_cache="disk", vision_cache_gib=0.0)
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=r"vision_cache: .* cannot be written"):
        DiskStore(tmp_path / "file" / "cache", GIB)


def test_size_is_that_of_the_files(loaded, phantom_dir, tmp_path):
    model, processor = loaded
    rows = load_chats(phantom_dir / "data", "train").select(range(6))
    mllama = model.get_base_model().model
    store_bytes = 0
    use_vision_cache(model, "memory", 1.0)
    with torch.no_grad():
        model(**MllamaCollator(processor)(list(rows)), use_cache=False)
    store_bytes = mllama.vision_cache._store.num_bytes
    said = describe_size(mllama, processor.image_processor, rows, "memory", 2.0)
    num_images = int(said.split(" GiB for ")[1].split()[0])
    assert num_images == len({image.tobytes() for row in rows for image in row["images"]})
    assert float(said.split("(")[1].split(" MB each")[0]) == pytest.approx(store_bytes / num_images / 1e6, abs=0.06)
    assert "in each process" in said
