import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor, pipeline

from medfinetune.decoder.model import load_decoder
from medfinetune.encoder.model import load_encoder


def test_siglip_reads_two_languages_and_separates_texts(tiny_siglip):
    model, processor = load_encoder(str(tiny_siglip))
    assert model.num_parameters() < 300_000
    pieces = processor.tokenizer.tokenize("未见骨折。")
    assert [piece for piece in pieces if piece != "▁"] == list("未见骨折。")
    assert processor.tokenizer.unk_token_id not in processor.tokenizer("naïve 漢字 🙂 Ω")["input_ids"]


def test_stock_pipeline_reads_the_siglip(tiny_siglip):
    classify = pipeline("zero-shot-image-classification", model=str(tiny_siglip))
    answers = classify(Image.new("RGB", (60, 40)), candidate_labels=["fracture", "no fracture"])
    assert {answer["label"] for answer in answers} == {"fracture", "no fracture"}


def test_mllama_is_shaped_like_the_real_one(tiny_mllama):
    model = AutoModelForImageTextToText.from_pretrained(tiny_mllama)
    processor = AutoProcessor.from_pretrained(tiny_mllama)
    vocabulary = model.lm_head.weight.shape[0]
    image_token = processor.tokenizer.convert_tokens_to_ids("<|image|>")
    assert image_token == vocabulary == model.config.image_token_index  # no row in lm_head
    assert model.get_input_embeddings().weight.shape[0] == vocabulary + 8
    text = processor.tokenizer.decode(processor.tokenizer("naïve 未见骨折 🙂").input_ids)
    assert text.endswith("naïve 未见骨折 🙂")


def test_the_image_reaches_the_text(tiny_mllama):
    """A fresh Mllama has closed gates: then neither test nor demo could tell whether it looks."""
    model, processor = load_decoder(str(tiny_mllama))
    logits = []
    for colour in (0, 255):
        inputs = processor(
            images=Image.new("RGB", (48, 48), (colour,) * 3), text="<|image|>What is it?", return_tensors="pt"
        )
        with torch.no_grad():
            logits.append(model(**inputs).logits[0, -1])
    assert (logits[0] - logits[1]).abs().max() > 1e-3


def test_date_is_fixed_by_the_caller(tiny_mllama):
    processor = AutoProcessor.from_pretrained(tiny_mllama)
    chat = [{"role": "user", "content": [{"type": "text", "text": "hi"}]}]
    text = processor.apply_chat_template(chat, tokenize=False, date_string="26 Jul 2024")
    assert "Today Date: 26 Jul 2024" in text
