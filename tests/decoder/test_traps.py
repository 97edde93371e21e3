"""What stock TRL and transformers get wrong about Mllama, each fault shown beside ours.

Where a test says that stock is right by now, the code that goes around it can go.
"""

import copy
import datetime
import json
import math

import datasets
import pytest
import torch
from peft import get_peft_model
from PIL import Image
from tokenizers import Tokenizer, pre_tokenizers
from transformers import BitsAndBytesConfig, MllamaForConditionalGeneration
from trl import DPOConfig, DPOTrainer
from trl.trainer.sft_trainer import DataCollatorForVisionLanguageModeling

from medfinetune.decoder.chat_tokens import IGNORED
from medfinetune.decoder.collator import MllamaCollator, MllamaPreferenceCollator
from medfinetune.decoder.config import MllamaSFTConfig
from medfinetune.decoder.model import load_decoder, lora_config, quantization_config
from medfinetune.decoder.trainer import MllamaSFTTrainer
from medfinetune.errors import InputError
from tests.decoder.test_trainer import config


@pytest.fixture(scope="module")
def loaded(tiny_mllama):
    return load_decoder(str(tiny_mllama))


def dataset(made):
    features = {name: datasets.Json() for name in made[0]} | {"images": datasets.List(datasets.Image())}
    return datasets.Dataset.from_list(made, datasets.Features(features))


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


def test_a_completion_begins_a_second_time_in_trl(loaded):
    """The processor puts the beginning before every text that has none, and TRL gives it the completion alone."""
    _, processor = loaded
    bos = processor.tokenizer.bos_token_id
    stock = DataCollatorForVisionLanguageModeling(processor, completion_only_loss=True)(copy.deepcopy(rows("prompt")))
    assert (stock["input_ids"] == bos).sum(dim=1).tolist() == [2, 2]
    assert (stock["labels"] == bos).any()
    for form in ("prompt", "messages"):
        ours = MllamaCollator(processor)(rows(form))
        assert (ours["input_ids"] == bos).sum(dim=1).tolist() == [1, 1]


def test_a_system_turn_is_printed_as_a_list_in_trl(loaded):
    _, processor = loaded
    chats = rows()[:1]
    chats[0]["images"] = []
    chats[0]["messages"].insert(0, {"role": "system", "content": "Be brief."})
    told = "[{'type': 'text', 'text': 'Be brief.'}]"
    stock = DataCollatorForVisionLanguageModeling(processor)(copy.deepcopy(chats))["input_ids"][0]
    ours = MllamaCollator(processor)(chats)["input_ids"][0]
    assert [told in processor.tokenizer.decode(ids) for ids in (stock, ours)] == [True, False]


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


def test_reentrant_checkpointing_loses_the_features_gradient(loaded, tiny_mllama, tmp_path):
    """Both cross-attention layers go back through the projector, and the first has freed it."""
    batch = MllamaCollator(loaded[1])(rows())
    gradients = []
    for reentrant in (None, False, True):
        stock = MllamaForConditionalGeneration.from_pretrained(tiny_mllama).train()
        stock.model.vision_model.requires_grad_(False)
        if reentrant is not None:
            stock.activation_checkpointing_enable({"use_reentrant": reentrant})
        loss = stock(**batch, use_cache=False).loss
        if reentrant:
            with pytest.raises(RuntimeError, match="backward through the graph a second time"):
                loss.backward()
        else:
            loss.backward()
            gradients.append(stock.model.multi_modal_projector.weight.grad)
    assert gradients[0].norm() > 0.1
    torch.testing.assert_close(*gradients)
    # Where TRL asks for it, ours takes it back.
    args = config(tmp_path, activation_checkpointing=True, recompute="all", max_steps=1)
    args.activation_checkpointing_kwargs = {"use_reentrant": True}
    model, processor = load_decoder(str(tiny_mllama))
    trainer = MllamaSFTTrainer(model, args, dataset(rows()), None, processor)
    before = model.model.multi_modal_projector.weight.detach().clone()
    trainer.train()
    assert not torch.equal(model.model.multi_modal_projector.weight, before)


@torch.no_grad()
def test_what_quantisation_has_to_leave_out(loaded, tiny_mllama):
    bitsandbytes = pytest.importorskip("bitsandbytes")

    def load(skipped):
        how = BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=skipped)
        model = MllamaForConditionalGeneration.from_pretrained(tiny_mllama, quantization_config=how)
        kind = bitsandbytes.nn.Linear8bitLt
        return model, {name.split(".")[1] for name, module in model.named_modules() if isinstance(module, kind)}

    batch = MllamaCollator(loaded[1])(rows())
    # A plain name matches nothing.
    assert load(["lm_head", "vision_model", "model.multi_modal_projector"])[1] == {"language_model", "vision_model"}
    model, quantised = load(["lm_head", "model.vision_model"])
    assert quantised == {"language_model", "multi_modal_projector"}
    with pytest.raises(RuntimeError, match="must match the size"):
        model(**batch)
    ours = quantization_config(MllamaSFTConfig(use_peft=True, load_in_8bit=True, use_cpu=True)).llm_int8_skip_modules
    model, quantised = load(ours)
    assert quantised == {"language_model"}
    assert torch.isfinite(model(**batch).loss)


def test_preferences_are_learned_with_our_collator(tiny_mllama, tmp_path):
    pairs = []
    for row in rows("prompt"):
        wrong = [{"role": "assistant", "content": "A fracture is seen."}]
        pairs.append({"images": row["images"], "prompt": row["prompt"], "chosen": row["completion"], "rejected": wrong})
    values = {"per_device_train_batch_size": 2, "max_steps": 8, "learning_rate": 1e-2, "logging_steps": 1}
    values["disable_tqdm"] = True  # the bar of a run that fails would stay open
    args = DPOConfig(str(tmp_path), use_cpu=True, bf16=False, save_strategy="no", report_to="none", **values)

    def trainer(collator=None):
        model, processor = load_decoder(str(tiny_mllama))
        lora = lora_config(MllamaSFTConfig(use_peft=True, lora_dropout=0.0, use_cpu=True))
        made = collator and collator(processor)
        return DPOTrainer(model, None, args, made, dataset(pairs), processing_class=processor, peft_config=lora)

    with pytest.raises(RuntimeError, match="must match the size"):  # its mask is as wide as the prompt
        trainer().train()
    ours = trainer(MllamaPreferenceCollator)
    ours.train()
    log = [line for line in ours.state.log_history if "loss" in line]
    assert log[0]["loss"] == pytest.approx(math.log(2), rel=1e-4)  # nothing is preferred yet
    assert log[-1]["loss"] < 0.2
    assert log[-1]["rewards/margins"] > 1
    batch = ours.data_collator(pairs)
    shown = [row[mask.bool()] for row, mask in zip(batch["input_ids"], batch["completion_mask"], strict=True)]
    answers = [pair[key][0]["content"] for key in ("chosen", "rejected") for pair in pairs]
    assert ours.processing_class.tokenizer.batch_decode(shown) == [f"{answer}<|eot_id|>" for answer in answers]
