"""Rows of mixed batches beside stock transformers on each row alone, and Meta's rule beside a plain version of it."""

import pytest
import torch
from PIL import Image
from transformers import MllamaForConditionalGeneration
from transformers.models.mllama.modeling_mllama import MllamaCrossAttentionDecoderLayer

from medfinetune.decoder.chat_tokens import IGNORED
from medfinetune.decoder.collator import MllamaCollator
from medfinetune.decoder.cross_attention import mllama_inside, use_exact_rows
from medfinetune.decoder.model import load_decoder


@pytest.fixture
def loaded(tiny_mllama):
    model, processor = load_decoder(str(tiny_mllama))
    return model.double(), processor


@pytest.fixture
def stock(tiny_mllama):
    return MllamaForConditionalGeneration.from_pretrained(tiny_mllama).double().eval()


def chat(number, sizes, late=False, turns=1):
    """A chat with an image of each size; late: they come with the second question."""
    images = [Image.effect_noise(size, 20 + 7 * i + number).convert("RGB") for i, size in enumerate(sizes)]
    marks = [{"type": "image"} for _ in images]
    messages = [{"role": "system", "content": "Answer briefly."}] if number % 2 else []
    for turn in range(turns + late):
        shown = marks if turn == int(late) else []
        question = [*shown, {"type": "text", "text": "What is seen? 有积液吗? " * (number % 3 + 1)}]
        messages += [
            {"role": "user", "content": question},
            {
                "role": "assistant",
                "content": [{"type": "text", "text": "Nothing 未见异常. " * (turn + number % 4 + 1)}],
            },
        ]
    return {"id": str(number), "images": images, "messages": messages}


ONE, TWO, FOUR = (48, 48), (90, 40), (96, 96)
ROWS = [
    chat(0, [ONE, FOUR]),
    chat(1, [ONE]),
    chat(2, []),
    chat(3, [TWO], late=True),
    chat(4, [FOUR], late=True),
    chat(5, [ONE, TWO, ONE], turns=2),
    chat(6, [], turns=3),
    chat(7, [TWO, TWO], late=True),
]


def logits(model, collator, rows, **kwargs):
    """Scores of each row's own tokens."""
    batch = collator(rows)
    batch.pop("labels")
    scores = model(**batch, **kwargs).logits
    return [row[mask.bool()] for row, mask in zip(scores, batch["attention_mask"], strict=True)]


def largest_difference(ours, expected):
    return max((one - other).abs().max().item() for one, other in zip(ours, expected, strict=True))


@pytest.mark.parametrize("use_cache", [False, True])
@torch.no_grad()
def test_rows_of_a_batch_are_those_of_stock_alone(loaded, stock, use_cache):
    model, processor = loaded
    collator = MllamaCollator(processor)
    alone = [logits(stock, collator, [row])[0] for row in ROWS]
    ours = logits(model, collator, ROWS, use_cache=use_cache)
    assert largest_difference(ours, alone) < 1e-12
    assert largest_difference([logits(model, collator, [row])[0] for row in ROWS], alone) < 1e-12
    # Stock's own batch is not that.
    assert largest_difference(logits(stock, collator, ROWS), alone) > 1e-4


def nll(model, collator, rows, **kwargs):
    batch = collator(rows)
    labels = batch.pop("labels")[:, 1:]
    scores = model(**batch, **kwargs).logits[:, :-1].transpose(1, 2)
    return torch.nn.functional.cross_entropy(scores, labels, ignore_index=IGNORED, reduction="sum")


def test_gradients_of_a_batch_are_the_sum_of_stocks_rows(loaded, stock):
    model, processor = loaded
    collator = MllamaCollator(processor)
    for one in (model, stock):
        one.model.vision_model.requires_grad_(False)
    nll(model, collator, ROWS, use_cache=False).backward()
    for row in ROWS:
        nll(stock, collator, [row], use_cache=False).backward()
    expected = dict(stock.named_parameters())
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            difference = (parameter.grad - expected[name].grad).norm() / expected[name].grad.norm()
            assert difference < 1e-6, name  # its norms compute in 32 bits
    assert model.model.multi_modal_projector.weight.grad.abs().max() > 1e-6


@torch.no_grad()
def test_generated_tokens_do_not_depend_on_neighbours(loaded, stock):
    model, processor = loaded
    collator = MllamaCollator(processor, for_generation=True)

    def write(mllama, rows):
        batch = collator(rows)
        out = mllama.generate(**batch, max_new_tokens=10, do_sample=False)[:, batch["input_ids"].shape[1] :]
        return processor.tokenizer.batch_decode(out)

    together = [text.split("<|eot_id|>")[0] for text in write(model, ROWS)]
    assert together == [write(stock, [row])[0].split("<|eot_id|>")[0] for row in ROWS]


@torch.no_grad()
def test_generation_by_the_reference_mask_is_that_without_a_cache(loaded):
    model, processor = loaded
    use_exact_rows(model, True)
    collator = MllamaCollator(processor, for_generation=True)
    together = collator(ROWS)
    written = model.generate(**together, max_new_tokens=8, do_sample=False)[:, together["input_ids"].shape[1] :]
    differ = 0
    for row, tokens in zip(ROWS, written.tolist(), strict=True):
        for reference in (True, False):
            use_exact_rows(model, reference)
            batch, plain = collator([row]), []
            while len(plain) < 8 and plain[-1:] != [processor.tokenizer.eos_token_id]:
                plain.append(int(model(**batch, use_cache=False).logits[0, -1].argmax()))
                batch["input_ids"] = torch.cat([batch["input_ids"], torch.tensor([plain[-1:]])], dim=1)
                for name in {"attention_mask", "cross_attention_mask"} & batch.keys():
                    batch[name] = torch.cat([batch[name], batch[name][:, -1:]], dim=1)
            if reference:
                assert tokens[: len(plain)] == plain
            else:
                differ += tokens[: len(plain)] != plain
    assert differ  # the rule matters


def num_keys(model, batch, **kwargs):
    seen = []
    layer = next(m for m in model.modules() if isinstance(m, MllamaCrossAttentionDecoderLayer))
    hook = layer.cross_attn.k_proj.register_forward_hook(lambda _, args, __: seen.append(args[0].shape[1]))
    model(**batch, **kwargs)
    hook.remove()
    return seen[0] // model.model.vision_model.num_patches


@torch.no_grad()
def test_needless_tiles_are_no_keys(loaded):
    """Of an image's padding one tile stands for all, and by Meta's rule none; generation keeps all slots."""
    model, processor = loaded
    collator = MllamaCollator(processor)
    one, mixed = collator([ROWS[1]]), collator([ROWS[1], ROWS[5]])
    assert num_keys(model, one, use_cache=False) == 2
    assert num_keys(model, mixed, use_cache=False) == 2 + 3 + 2
    assert num_keys(model, mixed, use_cache=True) == 12
    use_exact_rows(model, True)
    assert num_keys(model, one, use_cache=False) == 1
    assert num_keys(model, mixed, use_cache=False) == 1 + 2 + 1
    use_exact_rows(model, False)
    # Padding that differs from slot to slot needs them all.
    with torch.no_grad():
        model.model.vision_model.post_tile_positional_embedding.embedding.weight[1].view(4, -1)[3] = 0.5
    assert num_keys(model, one, use_cache=False) == 4


def as_meta(model):
    """Meta's rule written plainly onto stock: tokens that see no tile get a cross-attention of zero."""
    for layer in model.modules():
        if isinstance(layer, MllamaCrossAttentionDecoderLayer):
            mask = {}
            layer.register_forward_pre_hook(
                lambda _, args, kwargs, mask=mask: mask.update(sees=kwargs["full_text_row_masked_out_mask"]),
                with_kwargs=True,
            )
            layer.cross_attn.register_forward_hook(
                lambda _, args, out, mask=mask: (out[0] * mask["sees"][:, 0], *out[1:])
            )
    return model


@pytest.mark.parametrize("use_cache", [False, True])
@torch.no_grad()
def test_reference_mask(loaded, stock, use_cache):
    model, processor = loaded
    collator = MllamaCollator(processor)
    before = logits(model, collator, ROWS)
    use_exact_rows(model, True)
    ours = logits(model, collator, ROWS, use_cache=use_cache)
    assert largest_difference(ours, before) > 1e-4
    as_meta(stock)
    with_image = [i for i, row in enumerate(ROWS) if row["images"]]
    expected = [logits(stock, collator, [ROWS[i]])[0] for i in with_image]
    assert largest_difference([ours[i] for i in with_image], expected) < 1e-12
    use_exact_rows(model)
    assert largest_difference(logits(model, collator, ROWS), before) == 0


@torch.no_grad()
def test_by_the_reference_mask_the_image_comes_after_what_stands_before_it(loaded):
    model, processor = loaded
    collator = MllamaCollator(processor)
    other = ROWS[3] | {"images": [Image.effect_noise(FOUR, 90).convert("RGB")]}
    first = collator([ROWS[3]])["input_ids"][0].tolist().index(processor.image_token_id)
    for reference, alike in ((False, False), (True, True)):
        use_exact_rows(model, reference)
        one, two = (logits(model, collator, [row])[0] for row in (ROWS[3], other))
        assert torch.allclose(one[:first], two[:first], rtol=0, atol=1e-12) == alike
        assert not torch.allclose(one[first:], two[first:])


def test_pixels_without_a_mask_are_refused(loaded):
    """Stock would attend to the image causally, without a word."""
    model, processor = loaded
    batch = MllamaCollator(processor)([ROWS[1]])
    batch.pop("cross_attention_mask")
    with pytest.raises(ValueError, match="without one, the attention to images is causal"):
        model(**batch)


def test_what_is_no_mllama():
    with pytest.raises(ValueError, match="Linear has no Mllama inside"):
        mllama_inside(torch.nn.Linear(1, 1))
