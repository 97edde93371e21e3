import torch
from PIL import Image

from medfinetune.encoder.collator import SigLIPCollator
from medfinetune.encoder.model import load_encoder


def test_batch_as_siglip_was_trained(tiny_siglip):
    _, processor = load_encoder(str(tiny_siglip))
    rows = [
        {"images": [Image.new("L", (60, 90), 128)], "text": "No fracture."},
        {"images": [Image.new("RGB", (20, 20), (255, 0, 0)), Image.new("RGB", (5, 5))], "text": "未见骨折。" * 40},
    ]
    batch = SigLIPCollator(processor)(rows)
    assert set(batch) == {"pixel_values", "input_ids", "group_ids"}  # a mask would change every embedding
    assert batch["pixel_values"].shape == (2, 3, 48, 48)
    assert batch["input_ids"].shape == (2, 64)
    # Mean and std are 0.5, not ImageNet's.
    torch.testing.assert_close(batch["pixel_values"][0], torch.full((3, 48, 48), 128 / 127.5 - 1), atol=1e-5, rtol=0)
    torch.testing.assert_close(batch["pixel_values"][1, :, 5, 5], torch.tensor([1.0, -1.0, -1.0]), atol=1e-5, rtol=0)
    assert batch["input_ids"][0, -1] == processor.tokenizer.pad_token_id


def test_resize_and_normalise_equal_the_processor(tiny_siglip):
    _, processor = load_encoder(str(tiny_siglip))
    collator = SigLIPCollator(processor)
    image = Image.effect_noise((97, 131), 60).convert("RGB")
    ours = collator.normalise(torch.from_numpy(collator.resize(image))[None])
    torch.testing.assert_close(ours, collator.images([image])["pixel_values"], atol=1e-6, rtol=0)


def test_what_differs_in_meaning_differs_in_tokens(tiny_siglip):
    _, processor = load_encoder(str(tiny_siglip))
    pairs = [("lesion <5 mm", "lesion >5 mm"), ("1.5 cm", "15 cm"), ("结节<5 mm", "结节>5 mm")]
    for one, other in pairs:
        assert processor.tokenizer(one)["input_ids"] == processor.tokenizer(other)["input_ids"]  # stock
        ids = SigLIPCollator(processor).texts([one, other])["input_ids"]
        assert not torch.equal(ids[0], ids[1])
