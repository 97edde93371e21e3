"""What stock TRL and transformers get wrong about Mllama, each fault shown beside ours.

Where a test says that stock is right by now, the code that goes around it can go.
"""

import copy
import datetime
import json

import pytest
import torch
from peft import get_peft_model
from PIL import Image
from tokenizers import Tokenizer, pre_tokenizers
from transformers import MllamaForConditionalGeneration
from trl.trainer.sft_trainer import DataCollatorForVisionLanguageModeling

from medfinetune.decoder.chat_tokens import IGNORED
from medfinetune.decoder.collator import MllamaCollator
from medfinetune.decoder.config import MllamaSFTConfig
from medfinetune.decoder.model import load_decoder, lora_config
from medfinetune.errors import InputError


@pytest.fixture(scope="module")
def loaded(tiny_mllama):
    return load_decoder(str(tiny_mllama))


def rows(form="messages"):
    made = []
    for question, answer in (("What is seen?", "No fracture."), ("左侧有积液吗? And on the other side?", "未见。")):
        turns = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
        made.append({"images": [Image.effect_noise((48, 48), 50).convert("RGB")], "messages": turns})
        if form != "messages":
            made[-1] |= {"prompt": turns[:1], "completion": turns[1:]}
            made[-1].pop("messages")
    return made


def test_image_token_and_prompt_are_labels_in_trl(loaded):
    model, processor = loaded
    stock = DataCollatorForVisionLanguageModeling(processor)(copy.deepcopy(rows()))
    ours = MllamaCollator(processor)(rows())
    image = processor.image_token_id
    assert (stock["labels"] == image).sum() == 2
    assert (ours["labels"] == image).sum() == 0
    question = processor.tokenizer("seen", add_special_tokens=False)["input_ids"]
    assert torch.isin(stock["labels"], torch.tensor(question)).any()
    shown = processor.tokenizer.decode(ours["labels"][ours["labels"] != IGNORED])
    assert shown == "No fracture.<|eot_id|>未见。<|eot_id|>"
    # It has no row in the head: the plain loss fails on it, and takes our labels.
    assert model.lm_head.out_features <= image
    with pytest.raises(IndexError):
        model(**stock)
    assert torch.isfinite(model(**ours).loss)


def test_mask_of_a_prompt_is_too_short_in_trl(loaded):
    _, processor = loaded
    stock = DataCollatorForVisionLanguageModeling(processor, completion_only_loss=True)(copy.deepcopy(rows("prompt")))
    ours = MllamaCollator(processor)(rows("prompt"))
    assert stock["cross_attention_mask"].shape[1] < stock["input_ids"].shape[1]
    assert ours["cross_attention_mask"].shape[1] == ours["input_ids"].shape[1]
    assert torch.equal(ours["input_ids"], MllamaCollator(processor)(rows())["input_ids"])


def test_a_second_beginning_enters_by_the_tokenizer(loaded):
    tokenizer = copy.deepcopy(loaded[1].tokenizer)
    tokenizer.add_bos_token = True
    text = loaded[1].apply_chat_template([{"role": "user", "content": "A?"}], tokenize=False)
    bos = tokenizer.bos_token
    assert text.startswith(bos)
    assert not text.removeprefix(bos).startswith(bos)
    for row in MllamaCollator(loaded[1])(rows())["input_ids"]:
        assert (row == tokenizer.bos_token_id).sum() == 1


def test_todays_date_is_in_stocks_prompt(loaded):
    _, processor = loaded
    turns = [{"role": "user", "content": "A?"}, {"role": "assistant", "content": "B."}]
    today = datetime.date.today().strftime("%d %b %Y")
    assert today in processor.apply_chat_template(turns, tokenize=False)
    for date in ("26 Jul 2024", "01 Jan 2001"):
        ids = MllamaCollator(processor, date_string=date)([{"images": [], "messages": turns}])["input_ids"][0]
        assert date in processor.tokenizer.decode(ids)
        assert today not in processor.tokenizer.decode(ids)


@torch.no_grad()
def test_without_its_mask_the_attention_to_images_is_causal(loaded, tiny_mllama):
    """Only as many keys are seen as tokens stand before: the last of an image's patches change nothing early."""
    model, processor = loaded
    stock = MllamaForConditionalGeneration.from_pretrained(tiny_mllama).eval()
    batch = MllamaCollator(processor)(rows()[:1])
    batch.pop("labels")
    states = torch.randn(1, 4 * stock.model.vision_model.num_patches, 64)
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
    changed = states.clone()
    changed[:, 40:68] += 1.0
    places = [stock(**inputs, cross_attention_states=s).logits for s in (states, changed)]
    assert torch.equal(places[0][:, :30], places[1][:, :30])
    mask = torch.ones_like(batch["cross_attention_mask"])
    places = [stock(**inputs, cross_attention_states=s, cross_attention_mask=mask).logits for s in (states, changed)]
    assert not torch.equal(places[0][:, :30], places[1][:, :30])
    with pytest.raises(ValueError, match="causal"):
        model(**{name: tensor for name, tensor in batch.items() if name != "cross_attention_mask"})


def test_plain_names_of_modules_land_in_the_tower(loaded):
    def places(**keys):
        settings = lora_config(MllamaSFTConfig(use_peft=True, use_cpu=True, **keys))
        model = get_peft_model(copy.deepcopy(loaded[0]), settings)
        return {name for name, parameter in model.named_parameters() if parameter.requires_grad}

    assert any("vision_model" in name for name in places(lora_target_modules=r".*\.(q_proj|v_proj)"))
    ours = places()
    assert ours
    assert not any("vision_model" in name or "projector" in name for name in ours)


def test_gpt2s_split_would_askew_labels(loaded):
    """Alone, the prompt ends in two line breaks that become one token with what follows them."""
    processor = copy.deepcopy(loaded[1])
    settings = json.loads(processor.tokenizer.backend_tokenizer.to_str())
    settings["model"]["vocab"]["ĊĊ"] = 5000
    settings["model"]["merges"].append(["Ċ", "Ċ"])
    processor.tokenizer._tokenizer = Tokenizer.from_str(json.dumps(settings))
    split = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    processor.tokenizer.backend_tokenizer.pre_tokenizer = split
    prompt, whole = (
        processor.tokenizer(f"assistant\n\n{answer}", add_special_tokens=False)["input_ids"] for answer in ("", "No")
    )
    assert whole[: len(prompt)] != prompt
    chat = {"messages": [{"role": "user", "content": "A?"}, {"role": "assistant", "content": "No"}], "images": []}
    with pytest.raises(InputError, match="tokenised otherwise alone than in the whole"):
        MllamaCollator(processor)([chat])
    assert MllamaCollator(loaded[1])([chat])


@torch.no_grad()
def test_fewer_tiles_are_not_the_same_features(tiny_mllama, loaded):
    """Tokens of the image attend to padded tiles: leaving those out is another model."""
    tower = copy.deepcopy(loaded[0]).double().model.vision_model
    batch = MllamaCollator(loaded[1])(rows()[:1])
    inputs = {name: batch[name] for name in ("pixel_values", "aspect_ratio_ids", "aspect_ratio_mask")}
    inputs["pixel_values"] = inputs["pixel_values"].double()
    right = tower(**inputs).last_hidden_state[:, :, 0]
    fewer = inputs | {name: inputs[name][:, :, :1] for name in ("pixel_values", "aspect_ratio_mask")}
    tables = [tower.pre_tile_positional_embedding, tower.post_tile_positional_embedding]
    position = tower.gated_positional_embedding
    for module in tables:
        module.embedding.weight = torch.nn.Parameter(module.embedding.weight[:, : module.hidden_size])
        module.max_num_tiles = 1
    size = position.num_patches * position.hidden_size
    position.tile_embedding.weight = torch.nn.Parameter(position.tile_embedding.weight[:, :size])
    position.max_num_tiles = 1
    wrong = tower(**fewer).last_hidden_state[:, :, 0]
    assert (wrong - right).norm() / right.norm() > 1e-3
