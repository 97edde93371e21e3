import copy

import datasets
import pytest
import torch
from PIL import Image

from medfinetune.decoder.chat_tokens import IGNORED, ChatTokens
from medfinetune.decoder.collator import MllamaCollator
from medfinetune.decoder.masks import cross_attention_mask
from medfinetune.decoder.model import load_decoder, load_processor
from medfinetune.errors import InputError


def image(width=48, height=48):
    return Image.effect_noise((width, height), 50).convert("RGB")


def turn(role, text, num_images=0):
    parts = [{"type": "image"}] * num_images + [{"type": "text", "text": text}]
    return {"role": role, "content": parts}


def chat(question="What is seen?", answer="No fracture.", images=1, identity="c1"):
    messages = [turn("user", question, images), turn("assistant", answer)]
    return {"id": identity, "images": [image() for _ in range(images)], "messages": messages}


@pytest.fixture(scope="module")
def processor(tiny_mllama):
    return load_processor(str(tiny_mllama))


@pytest.fixture(scope="module")
def model(tiny_mllama):
    return load_decoder(str(tiny_mllama))[0]


def learned(processor, batch, row=0):
    return processor.tokenizer.decode([label for label in batch["labels"][row].tolist() if label != IGNORED])


def test_labels_are_the_answer_and_its_end(processor):
    batch = MllamaCollator(processor)([chat(), chat("左侧有积液吗?", "未见积液,\n\n心影正常。")])
    assert learned(processor, batch, 0) == "No fracture.<|eot_id|>"
    assert learned(processor, batch, 1) == "未见积液,\n\n心影正常。<|eot_id|>"
    image_token = processor.image_token_id
    assert (batch["input_ids"] == image_token).sum() == 2
    assert (batch["labels"] == image_token).sum() == 0
    padding = batch["attention_mask"] == 0
    assert padding.any()
    assert (batch["labels"][padding] == IGNORED).all()
    assert (batch["cross_attention_mask"][padding] == 0).all()
    shown = batch["labels"] != IGNORED
    assert torch.equal(batch["labels"][shown], batch["input_ids"][shown])


def test_train_on_all_leaves_out_images_and_padding(processor):
    batch = MllamaCollator(processor, train_on="all")([chat("Short?"), chat("A much longer question than that one?")])
    left_out = batch["labels"] == IGNORED
    assert torch.equal(left_out, (batch["input_ids"] == processor.image_token_id) | (batch["attention_mask"] == 0))


def test_several_turns_and_a_system_turn(processor):
    messages = [
        turn("system", "Answer briefly."),
        turn("user", "Is there a device?"),
        turn("assistant", "None."),
        turn("user", "And the heart?"),
        turn("assistant", "Normal."),
    ]
    batch = MllamaCollator(processor)([{"id": "m", "images": [], "messages": messages}])
    assert learned(processor, batch) == "None.<|eot_id|>Normal.<|eot_id|>"
    assert "pixel_values" not in batch


@pytest.mark.parametrize("num_images", [0, 1])
@pytest.mark.parametrize("content", ["Answer briefly.", [{"type": "text", "text": "Answer briefly."}]])
def test_a_system_turn_reaches_the_model_as_it_is(processor, num_images, content):
    row = chat(images=num_images)
    row["messages"].insert(0, {"role": "system", "content": content})
    shown = processor.tokenizer.decode(MllamaCollator(processor).encode(row).input_ids)
    assert shown.startswith(
        "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\nCutting Knowledge Date: December 2023\n"
        "Today Date: 26 Jul 2024\n\nAnswer briefly.<|eot_id|><|start_header_id|>user<|end_header_id|>\n\n"
        + "<|image|>" * num_images
        + "What is seen?<|eot_id|>"
    )
    assert "system" not in processor.tokenizer.decode(MllamaCollator(processor).encode(chat()).input_ids)


@pytest.mark.parametrize("with_system", [False, True])
def test_the_first_image_may_come_late(processor, with_system):
    """The first turns alone have no image, and the template would date them."""
    messages = [turn("system", "Brief.")] if with_system else []
    messages += [turn("user", "A?"), turn("assistant", "B."), turn("user", "C?", 1), turn("assistant", "D.")]
    row = {"id": "late", "images": [image()], "messages": messages}
    batch = MllamaCollator(processor)([row])
    assert learned(processor, batch) == "B.<|eot_id|>D.<|eot_id|>"
    assert ("26 Jul" in processor.tokenizer.decode(batch["input_ids"][0])) == with_system
    prompt = MllamaCollator(processor, for_generation=True).encode(row).input_ids
    assert prompt == batch["input_ids"][0, : len(prompt)].tolist()


def test_space_around_a_turn_is_dropped(processor):
    """A line break before the answer would become one token with those of the header."""
    plain, spaced = (MllamaCollator(processor).encode(chat(*words)) for words in (("A?", "B."), ("A? ", "\n B.\n")))
    assert plain == spaced


def test_plain_strings_and_empty_fields_of_tables(processor):
    parts = [{"type": "image", "text": None}, {"type": "text", "text": "What?"}]
    row = {
        "images": [image()],
        "messages": [{"role": "user", "content": parts}, {"role": "assistant", "content": "A."}],
    }
    assert learned(processor, MllamaCollator(processor)([row])) == "A.<|eot_id|>"


def test_everything_about_images_is_aligned(processor):
    rows = [chat(images=2), chat(images=0), chat(images=1)]
    rows[0]["images"][1] = image(190, 40)  # four tiles in a row
    batch = MllamaCollator(processor)(rows)
    num_tokens = batch["input_ids"].shape[1]
    assert batch["pixel_values"].shape == (3, 2, 4, 3, 48, 48)
    assert batch["aspect_ratio_ids"].tolist() == [[1, 4], [0, 0], [1, 0]]
    assert batch["aspect_ratio_mask"][0].tolist() == [[1, 0, 0, 0], [1, 1, 1, 1]]
    assert batch["cross_attention_mask"].shape == (3, num_tokens, 2, 4)
    assert batch["cross_attention_mask"][1].sum() == 0
    assert batch["cross_attention_mask"][2, :, 1].sum() == 0


def test_cross_attention_mask_equals_the_processors(processor):
    """Where both speak: one width, no padding."""
    for marks in ("<|image|>a b", "x<|image|>a<|image|>b c", "<|image|><|image|>a b", "<|image|>a<|image|><|image|>b"):
        images = [image() for _ in range(marks.count("<|image|>"))]
        stock = processor(images=[images], text=[marks], return_tensors="pt", add_special_tokens=False)
        ours = cross_attention_mask(
            stock["input_ids"], stock["attention_mask"], stock["aspect_ratio_mask"], processor.image_token_id
        )
        assert torch.equal(ours, stock["cross_attention_mask"]), marks


@pytest.mark.parametrize("batch_size", [1, 2, 4, 8])
def test_a_row_alone_and_in_a_batch(processor, model, batch_size):
    """1x8 = 2x4 = 4x2 = 8x1, with unequal lengths and rows without an image among the others."""
    rows = [chat("Q" * (3 * i + 1), "An answer " * (i + 1), images=int(i % 3 != 1)) for i in range(8)]
    collator = MllamaCollator(processor)

    def losses(chunk):
        batch = collator(chunk)
        labels = batch.pop("labels")[:, 1:]
        with torch.no_grad():
            logits = model(**batch).logits[:, :-1]
        each = torch.nn.functional.cross_entropy(logits.transpose(1, 2), labels, ignore_index=IGNORED, reduction="none")
        return each.sum(dim=1)

    together = torch.cat([losses(rows[i : i + batch_size]) for i in range(0, 8, batch_size)])
    alone = torch.cat([losses([row]) for row in rows])
    torch.testing.assert_close(together, alone, rtol=1e-5, atol=1e-4)


def test_generation_pads_left_and_ends_with_the_header(processor):
    batch = MllamaCollator(processor, for_generation=True)([chat("Short?"), chat("A much longer question than that?")])
    assert "labels" not in batch
    assert batch["attention_mask"][0, 0] == 0
    assert batch["attention_mask"][:, -1].tolist() == [1, 1]
    for row in batch["input_ids"]:
        text = processor.tokenizer.decode(row)
        assert text.endswith("<|start_header_id|>assistant<|end_header_id|>\n\n")
        assert "No fracture" not in text
    # Padding sees no image, every later token does.
    assert batch["cross_attention_mask"][0, batch["attention_mask"][0] == 0].sum() == 0


class TestTooLong:
    question = "one two three four five six seven eight nine ten"

    def lengths(self, processor):
        row = chat(self.question, "It is a long answer that says a lot.")
        return row, len(MllamaCollator(processor).encode(row).input_ids)

    def test_loses_the_front_of_the_question_first(self, processor):
        row, full = self.lengths(processor)
        encoded = MllamaCollator(processor, max_length=full - 4).encode(row)
        text = processor.tokenizer.decode(encoded.input_ids)
        assert encoded.num_cut == 4
        assert len(encoded.input_ids) == full - 4
        assert "<|image|>" in text
        assert "one" not in text
        assert "ten<|eot_id|>" in text
        assert text.endswith("It is a long answer that says a lot.<|eot_id|>")
        assert "user<|end_header_id|>\n\n<|image|>" in text  # the header is whole

    def test_then_the_end_of_the_answer_but_never_all(self, processor):
        row, full = self.lengths(processor)
        words = len(processor.tokenizer(self.question, add_special_tokens=False).input_ids)
        encoded = MllamaCollator(processor, max_length=full - words - 3).encode(row)
        text = processor.tokenizer.decode(encoded.input_ids)
        assert "<|image|><|eot_id|>" in text
        assert not text.endswith("<|eot_id|>")  # the answer did not end there
        assert processor.tokenizer.decode([t for t in encoded.labels if t != IGNORED]).startswith("It is")
        smallest = MllamaCollator(processor, max_length=full - words - 11)
        assert sum(label != IGNORED for label in smallest.encode(row).labels) >= 1

    def test_what_cannot_fit_is_an_error(self, processor):
        row, _ = self.lengths(processor)
        with pytest.raises(InputError, match=r"chat c1: .* do not fit max_length 8"):
            MllamaCollator(processor, max_length=8).encode(row)

    def test_cuts_are_counted(self, processor):
        row, full = self.lengths(processor)
        rows = datasets.Dataset.from_list([{"id": r["id"], "messages": r["messages"]} for r in (row, chat())])
        said = MllamaCollator(processor, max_length=full - 5).describe_cuts(rows)
        assert said.endswith(f"1 of 2 exceed max_length {full - 5} and lose 5 tokens")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"images": []}, "chat c1: 0 images, but its messages mark 1"),
        ({"messages": [turn("user", "Q", 1)]}, "chat c1: has no assistant turn"),
        ({"messages": []}, "chat c1: 1 images, but its messages mark 0"),
        ({"messages": [turn("system", "S", 1), turn("assistant", "A")]}, "chat c1: its system turn marks an image"),
    ],
)
def test_wrong_chats(processor, change, message):
    with pytest.raises(InputError, match=message):
        MllamaCollator(processor)([chat() | change])


def test_what_the_template_refuses_is_said_in_one_line(processor):
    """The first template of Llama 3.2 Vision took no system turn beside an image; the present one does."""
    other = copy.copy(processor)
    other.chat_template = "{{ raise_exception('Prompting with images is incompatible with system messages.') }}"
    with pytest.raises(InputError, match=r"^chat c1: the chat template refuses it: Prompting with images"):
        MllamaCollator(other)([chat()])


def test_a_template_that_drops_turns_is_refused(processor):
    other = copy.copy(processor)
    other.chat_template = other.chat_template.replace("for turn in turns %}", "for turn in turns[1:] %}")
    with pytest.raises(InputError, match="chat c1: its 2 turns come out of the chat template as 1; it cannot"):
        MllamaCollator(other)([chat()])


def test_a_tokenizer_that_would_askew_labels_is_refused(processor, monkeypatch):
    """As GPT-2's split does: the prompt ends in another token alone than before the answer."""
    collator = MllamaCollator(processor)
    plain = ChatTokens._ids
    monkeypatch.setattr(
        ChatTokens, "_ids", lambda self, m, open_answer, row: plain(self, m, open_answer, row) + [7] * open_answer
    )
    with pytest.raises(InputError, match="tokenised otherwise alone than in the whole"):
        collator([chat()])


class TestPromptAndCompletion:
    def both(self, processor, rows, **kwargs):
        return MllamaCollator(processor, **kwargs)(rows)

    def test_forms_are_one_chat(self, processor):
        picture = image()
        question, answer = turn("user", "What is seen? 有骨折吗?", 1), turn("assistant", "None. 未见骨折。")
        text = "What is seen? 有骨折吗?"
        rows = [
            {"images": [picture], "messages": [question, answer]},
            {"images": [picture], "prompt": [question], "completion": [answer]},
            {"images": [picture], "prompt": [{"role": "user", "content": text}], "completion": "None. 未见骨折。"},
            {"image": picture, "prompt": text, "completion": "None. 未见骨折。"},
            {"images": [picture], "prompt": f"<|image|>{text}", "completion": [answer]},
        ]
        batch = self.both(processor, rows)
        for name, tensor in batch.items():
            assert all(torch.equal(row, tensor[0]) for row in tensor), name
        assert learned(processor, batch) == "None. 未见骨折。<|eot_id|>"
        prompts = self.both(processor, rows, for_generation=True)["input_ids"]
        assert all(torch.equal(row, prompts[0]) for row in prompts)

    def test_only_the_completion_is_learned(self, processor):
        prompt = [turn("system", "Brief."), turn("user", "A?"), turn("assistant", "B."), turn("user", "C?")]
        completion = [turn("assistant", "D."), turn("user", "E?"), turn("assistant", "F.")]
        row = {"images": [], "prompt": prompt, "completion": completion}
        batch = self.both(processor, [row])
        assert learned(processor, batch) == "D.<|eot_id|>F.<|eot_id|>"
        everything = processor.tokenizer.decode(batch["input_ids"][0])
        assert all(letter in everything for letter in ("Brief.", "A?", "B.", "C?", "E?"))
        shown = processor.tokenizer.decode(self.both(processor, [row], for_generation=True)["input_ids"][0])
        assert "C?" in shown
        assert "D." not in shown
        assert shown.endswith("assistant<|end_header_id|>\n\n")

    def test_beside_messages_in_one_batch(self, processor):
        rows = [chat(), {"images": [image(), image()], "prompt": "Compare.", "completion": "Alike."}]
        batch = self.both(processor, rows)
        assert batch["pixel_values"].shape[:2] == (2, 2)
        assert (batch["cross_attention_mask"][:, :, :, 0].any(dim=1).sum(dim=1)).tolist() == [1, 2]

    @pytest.mark.parametrize(
        ("row", "message"),
        [
            ({"text": "A"}, "chat without id: has neither messages nor prompt and completion"),
            ({"prompt": "A?"}, "has no assistant turn to learn from"),
            ({"prompt": "A?", "completion": "B.<|eot_id|>"}, r"its text holds <\|eot_id\|>"),
            ({"prompt": "<|image|>A?", "completion": "B.", "images": []}, "0 images, but its messages mark 1"),
            ({"messages": [{"role": "user"}]}, "each turn needs a role and content"),
        ],
    )
    def test_wrong_rows(self, processor, row, message):
        with pytest.raises(InputError, match=message):
            self.both(processor, [row])
