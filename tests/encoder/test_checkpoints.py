"""Checkpoints of the published shapes, at tiny widths: what stock transformers then makes of what we save."""

import json
import os
import shutil
import subprocess
import sys

import pytest
import torch
from PIL import Image
from transformers import (
    AutoTokenizer,
    GemmaTokenizer,
    Siglip2Tokenizer,
    SiglipConfig,
    SiglipImageProcessorPil,
    SiglipModel,
    SiglipProcessor,
)

from medfinetune.encoder.collator import SigLIPCollator
from medfinetune.encoder.model import load_encoder
from medfinetune.errors import InputError

LABELS = ["no fracture", "A fracture of the Left wrist", "膝关节正常"]
# Stock classes only, and no flag.
PIPELINE = """
import json, sys
from PIL import Image
from transformers import pipeline
found = pipeline("zero-shot-image-classification", model=sys.argv[1])(
    Image.open(sys.argv[2]), candidate_labels=json.loads(sys.argv[3]), hypothesis_template="{}")
print(json.dumps({row["label"]: row["score"] for row in found}))
"""


def make_checkpoint(folder, tokenizer, patch=14, size=384):
    """A random SigLIP of one layer and width 16, with a tokenizer of its own."""
    torch.manual_seed(0)
    tower = {"hidden_size": 16, "intermediate_size": 24, "num_attention_heads": 2, "num_hidden_layers": 1}
    config = SiglipConfig(
        text_config=tower
        | {"vocab_size": len(tokenizer), "projection_size": 16, "bos_token_id": None}
        | {"eos_token_id": 1},
        vision_config=tower | {"image_size": size, "patch_size": patch},
    )
    model = SiglipModel(config)
    with torch.no_grad():
        model.logit_scale.fill_(1.0)
        model.vision_model.embeddings.position_embedding.weight.normal_()
    model.save_pretrained(folder)
    image_processor = SiglipImageProcessorPil(
        size={"height": size, "width": size}, image_mean=[0.5] * 3, image_std=[0.5] * 3
    )
    SiglipProcessor(image_processor, tokenizer).save_pretrained(folder)
    return folder


def gemma_tokenizer():
    """Like SigLIP 2's: byte fallback, an end token after the text, padding on the right, capitals kept."""
    pieces = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁"]
    pieces += [chr(code) for code in range(33, 127)] + ["no", "No", "▁f"]
    merges = [("n", "o"), ("N", "o"), ("▁", "f")]
    vocabulary = {piece: number for number, piece in enumerate(pieces)}
    return GemmaTokenizer(
        vocab=vocabulary, merges=merges, padding_side="right", add_bos_token=False, add_eos_token=True
    )


@pytest.fixture
def siglip_tokenizer(tiny_siglip):
    return AutoTokenizer.from_pretrained(tiny_siglip)


def our_scores(folder, image):
    model, processor = load_encoder(str(folder))
    collator = SigLIPCollator(processor)
    with torch.no_grad():
        logits = model(**collator.images([image]), **collator.texts(LABELS)).logits_per_image[0]
    return dict(zip(LABELS, torch.sigmoid(logits).tolist(), strict=True))


@pytest.mark.parametrize("gemma", [False, True], ids=["siglip", "siglip2"])
def test_the_stock_pipeline_needs_no_flag(siglip_tokenizer, tmp_path, gemma):
    source = make_checkpoint(tmp_path / "source", gemma_tokenizer() if gemma else siglip_tokenizer, 16, 64)
    model, processor = load_encoder(str(source), image_size_px=112)
    model.save_pretrained(tmp_path / "saved")
    processor.save_pretrained(tmp_path / "saved")
    image = Image.effect_noise((90, 60), 80).convert("RGB")
    image.save(tmp_path / "image.png")
    command = [sys.executable, "-c", PIPELINE, tmp_path / "saved", tmp_path / "image.png", json.dumps(LABELS)]
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    scores = json.loads(done.stdout.splitlines()[-1])
    assert len({round(score, 4) for score in scores.values()}) == 3
    assert scores == pytest.approx(our_scores(tmp_path / "saved", image), abs=1e-5)
    # It is the resized model: the source gives other scores.
    assert scores != pytest.approx(our_scores(source, image), abs=1e-4)


@pytest.mark.parametrize(
    ("patch", "size", "positions"),
    [(16, 224, 14), (16, 256, 16), (16, 384, 24), (16, 512, 32), (14, 224, 16), (14, 384, 27), (14, 448, 32)],
    ids=lambda value: str(value),
)
def test_a_published_size_is_kept_or_changed(siglip_tokenizer, tmp_path, patch, size, positions):
    source = make_checkpoint(tmp_path / "source", siglip_tokenizer, patch, size)
    plain = SiglipModel.from_pretrained(source)
    for wanted in (None, size):  # its own size is right, even where the patch leaves a rest
        model, processor = load_encoder(str(source), image_size_px=wanted)
        assert processor.image_processor.size == {"height": size, "width": size}
        assert model.vision_model.embeddings.num_positions == positions**2
        for name, weight in plain.state_dict().items():
            assert torch.equal(model.state_dict()[name], weight), name
    model, processor = load_encoder(str(source), image_size_px=10 * patch)
    pixel_values = torch.rand(1, 3, 10 * patch, 10 * patch)
    with torch.no_grad():
        flagged = plain.get_image_features(pixel_values=pixel_values, interpolate_pos_encoding=True).pooler_output
        baked = model.get_image_features(pixel_values=pixel_values).pooler_output
    torch.testing.assert_close(baked, flagged, atol=1e-5, rtol=1e-4)
    assert processor.image_processor.size == {"height": 10 * patch, "width": 10 * patch}
    with pytest.raises(InputError, match=rf"image_size_px: {10 * patch + 1} is no multiple of the patch of {patch} px"):
        load_encoder(str(source), image_size_px=10 * patch + 1)


def test_medsiglip_448(siglip_tokenizer, tmp_path):
    """MedSigLIP-448 is a So400m: patch 14 at 448 px, its text tower as wide as the other."""
    source = make_checkpoint(tmp_path / "medsiglip", siglip_tokenizer, 14, 448)
    model, processor = load_encoder(str(source), image_size_px=448)
    assert model.config.vision_config.image_size == 448
    batch = SigLIPCollator(processor)([{"images": [Image.new("L", (500, 400), 9)], "text": "no fracture"}])
    with torch.no_grad():
        assert model(**batch).image_embeds.shape == (1, 16)


@pytest.mark.parametrize("class_name", ["GemmaTokenizer", "GemmaTokenizerFast"])
def test_siglip2_reads_lower_case(tmp_path, class_name):
    """Its files name a tokenizer that keeps capitals, which the model never saw."""
    source = make_checkpoint(tmp_path / "siglip2", gemma_tokenizer(), 16, 64)
    path = source / "tokenizer_config.json"
    settings = json.loads(path.read_text()) | {"tokenizer_class": class_name}
    del settings["padding_side"]  # the class's own default is left
    path.write_text(json.dumps(settings))
    texts = ["No Fracture", "no fracture"]
    stock = AutoTokenizer.from_pretrained(source)(texts)["input_ids"]
    assert stock[0] != stock[1]
    _, processor = load_encoder(str(source))
    ids = SigLIPCollator(processor).texts(texts)["input_ids"]
    assert torch.equal(ids[0], ids[1])
    assert ids[0].tolist() == stock[1] + [0] * (64 - len(stock[1]))  # text, its end, padding on the right
    processor.save_pretrained(tmp_path / "saved")
    shutil.copy(source / "config.json", tmp_path / "saved")
    again = AutoTokenizer.from_pretrained(tmp_path / "saved")
    assert isinstance(again, Siglip2Tokenizer)
    assert again("No Fracture")["input_ids"] == stock[1]


def test_naflex_is_refused(siglip_tokenizer, tmp_path):
    source = make_checkpoint(tmp_path / "naflex", siglip_tokenizer, 16, 64)
    config = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps(config | {"model_type": "siglip2"}))
    with pytest.raises(InputError, match=r"SigLIP 2 with flexible resolution \(NaFlex\), which is not supported"):
        load_encoder(str(source))


REVISION = """
import sys
from medfinetune.encoder.model import load_encoder
for revision in sys.argv[1:]:
    model, processor = load_encoder("someone/tiny", revision)
    print(model.config.vision_config.image_size, processor.image_processor.size["width"], len(processor.tokenizer))
"""


def test_model_revision_is_passed_everywhere(siglip_tokenizer, tmp_path):
    """Two commits of one Hub repository, in a cache made by hand; nothing stands on its main branch."""
    commits = {"1" * 40: (siglip_tokenizer, 64), "2" * 40: (gemma_tokenizer(), 32)}
    for commit, (tokenizer, size) in commits.items():
        make_checkpoint(tmp_path / "models--someone--tiny" / "snapshots" / commit, tokenizer, 16, size)
    env = os.environ | {"HF_HUB_CACHE": str(tmp_path)}
    command = [sys.executable, "-c", REVISION, *commits]
    done = subprocess.run(command, capture_output=True, text=True, env=env)
    assert done.returncode == 0, done.stderr
    expected = [f"{size} {size} {len(tokenizer)}" for tokenizer, size in commits.values()]
    assert done.stdout.splitlines() == expected
