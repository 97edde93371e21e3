"""Batches of one image and of like lengths: every row once, the same order for the same seed."""

import random
from collections import Counter

import datasets
import pytest
from PIL import Image
from torch.utils.data import DataLoader

from medfinetune.data.load import load_chats
from medfinetune.decoder.collator import MllamaCollator
from medfinetune.decoder.model import load_decoder
from medfinetune.decoder.sampler import BatchSampler, identify_images, measure_lengths, most_images
from medfinetune.decoder.trainer import MllamaSFTTrainer
from medfinetune.errors import InputError
from tests.decoder.test_trainer import config

BATCH = 4
IMAGES = [f"{i // 5}.png" for i in range(600)] + [None] * 7 + ["alone.png"]
LENGTHS = [random.Random(i).randint(20, 400) for i in range(len(IMAGES))]


def batches(sampler):
    order = list(sampler)
    return [order[start : start + BATCH] for start in range(0, len(order), BATCH)]


def num_encoded(found):
    """Images that a run encodes in an epoch, where a batch encodes equal ones once."""
    return sum(len({IMAGES[row] for row in batch} - {None}) for batch in found)


def padding(found):
    return sum(len(batch) * max(LENGTHS[row] for row in batch) - sum(LENGTHS[row] for row in batch) for batch in found)


@pytest.mark.parametrize("images", [None, IMAGES])
@pytest.mark.parametrize("lengths", [None, LENGTHS])
@pytest.mark.parametrize("num_rows", [0, 1, 3, 4, 9, len(IMAGES)])
def test_every_row_comes_once_in_an_order_that_seed_and_epoch_decide(images, lengths, num_rows):
    images, lengths = (None if values is None else values[:num_rows] for values in (images, lengths))
    one, other = (BatchSampler(num_rows, BATCH, images, lengths, 2, seed=3) for _ in range(2))
    assert sorted(one) == list(range(num_rows))
    assert len(one) == num_rows
    assert list(one) == list(other)
    other.set_epoch(1)
    assert sorted(other) == list(range(num_rows))
    another_seed = BatchSampler(num_rows, BATCH, images, lengths, 2, seed=4)
    if num_rows > 100:
        assert list(one) != list(other)
        assert list(one) != list(another_seed)


def test_questions_about_one_image_come_together():
    apart = num_encoded(batches(BatchSampler(len(IMAGES), BATCH)))
    together = num_encoded(batches(BatchSampler(len(IMAGES), BATCH, IMAGES)))
    # 5 questions about each of 120 images: at best a batch of 4 for each, and the fifth questions apart.
    assert together == 120 + 120 + 1
    assert apart > 2.4 * together


def test_padding_shrinks():
    apart = padding(batches(BatchSampler(len(IMAGES), BATCH)))
    alike = batches(BatchSampler(len(IMAGES), BATCH, None, LENGTHS))
    assert padding(alike) < 0.1 * apart
    both = batches(BatchSampler(len(IMAGES), BATCH, IMAGES, LENGTHS))
    assert num_encoded(both) == 120 + 120 + 1
    assert padding(both) < padding(batches(BatchSampler(len(IMAGES), BATCH, IMAGES)))


def test_the_longest_row_comes_in_the_first_step_and_steps_are_alike():
    found = batches(BatchSampler(len(IMAGES), BATCH, None, LENGTHS, batches_a_step=4))
    assert max(LENGTHS) == max(LENGTHS[row] for batch in found[:4] for row in batch)
    steps = [[max(LENGTHS[row] for row in batch) for batch in found[i : i + 4]] for i in range(0, 148, 4)]
    assert sum(max(step) - min(step) for step in steps) / len(steps) < 60


def rows_of(phantom_dir):
    return load_chats(phantom_dir / "data", "train")


def test_images_are_told_apart_without_opening_them(phantom_dir, tmp_path):
    rows = rows_of(phantom_dir)
    keys = identify_images(rows)
    assert len(keys) == len(rows)
    assert max(Counter(keys).values()) > 1
    gone = datasets.Dataset.from_list(
        [{"images": [str(tmp_path / name)]} for name in ("a.png", "b.png", "a.png")] + [{"images": []}],
        features=datasets.Features({"images": datasets.List(datasets.Image())}),
    )
    one, other, same, none = identify_images(gone)
    assert one == same != other
    assert none is None
    assert most_images(gone) == 1
    assert most_images(gone.select([3])) == 0
    assert most_images([{"images": [0, 0]}, {"image": 0}, {}]) == 2
    held = [Image.new("L", (4, 4), value) for value in (1, 2, 1)] + [Image.new("L", (2, 8), 1)]
    one, other, same, shape = identify_images([{"images": [image]} for image in held])
    assert one == same
    assert len({one, other, shape}) == 3


def test_trls_single_image_is_seen(tmp_path):
    rows = datasets.Dataset.from_list(
        [{"image": str(tmp_path / name), "prompt": "A?", "completion": "B."} for name in ("a.png", "b.png", "a.png")],
    ).cast_column("image", datasets.Image())
    one, other, same = identify_images(rows)
    assert one == same != other
    assert most_images(rows) == 1
    assert identify_images(rows.remove_columns("image")) == [None] * 3


def test_lengths_are_the_collators(phantom_dir, tiny_mllama):
    rows = rows_of(phantom_dir).select(range(6))
    collator = MllamaCollator(load_decoder(str(tiny_mllama))[1], 64)
    lengths = measure_lengths(rows, collator)
    assert lengths == [int(collator([row])["attention_mask"].sum()) for row in rows]
    assert measure_lengths([dict(row) for row in rows], collator) == lengths
    assert measure_lengths(rows.add_column("length", list(range(6))), collator) == list(range(6))
    assert measure_lengths(rows.add_column("size", list(range(6))), collator, "size") == list(range(6))
    # Where a plain text marks no image, the images themselves are tokens too.
    prompts = datasets.Dataset.from_list([{"image": str(phantom_dir / "no.png"), "prompt": "A?", "completion": "B."}])
    prompts = prompts.cast_column("image", datasets.Image())
    row = {"image": object(), "prompt": "A?", "completion": "B."}
    assert (
        measure_lengths(prompts, collator) == measure_lengths([row], collator) == [len(collator.encode(row).input_ids)]
    )


def test_training_goes_through_these_batches(phantom_dir, tiny_mllama, tmp_path):
    model, processor = load_decoder(str(tiny_mllama))
    rows = rows_of(phantom_dir).select(range(30))
    seen = []
    collator = MllamaCollator(processor, 256)

    def spy(batch):
        seen.append([row["id"] for row in batch])
        return collator(batch)

    values = {"max_steps": -1, "num_train_epochs": 2, "same_image_together": True}
    values["train_sampling_strategy"] = "group_by_length"
    collator_of = MllamaSFTTrainer(model, config(tmp_path, **values), rows, None, processor).data_collator
    trainer = MllamaSFTTrainer(model, config(tmp_path, **values), rows, None, processor, data_collator=spy)
    spy.encode = collator_of.encode
    trainer.train()
    sampler = BatchSampler(30, BATCH, identify_images(rows), measure_lengths(rows, collator_of), 1, trainer.args.seed)
    expected = []
    for epoch in range(2):
        sampler.set_epoch(epoch)
        expected += [[rows[i]["id"] for i in batch] for batch in batches(sampler)]
    assert seen == expected
    assert sorted(name for batch in seen[:8] for name in batch) == sorted(rows["id"])


def test_evaluation_is_in_order_and_by_length_too(phantom_dir, tiny_mllama, tmp_path):
    """Transformers would sort the evaluation by a column `input_ids`, which there is none of."""
    model, processor = load_decoder(str(tiny_mllama))
    rows = rows_of(phantom_dir)
    values = {"train_sampling_strategy": "group_by_length", "eval_strategy": "steps", "eval_steps": 1, "max_steps": 1}
    args = config(tmp_path, **values, length_column_name="size")
    train = rows.select(range(8)).add_column("size", [1, 1, 1, 1, 5, 5, 9, 5])
    trainer = MllamaSFTTrainer(model, args, train, rows.select(range(8, 14)), processor)
    assert 6 in list(trainer._get_train_sampler())[:4]
    trainer.train()
    measured = [line["eval_loss"] for line in trainer.state.log_history if "eval_loss" in line]
    assert len(measured) == 1
    seen = [name for batch in trainer.get_eval_dataloader() for name in batch["ids"]]
    assert seen == rows["id"][8:14]


def test_plain_training_keeps_the_trainers_order(phantom_dir, tiny_mllama, tmp_path):
    model, processor = load_decoder(str(tiny_mllama))
    trainer = MllamaSFTTrainer(model, config(tmp_path), rows_of(phantom_dir), None, processor)
    assert not isinstance(trainer._get_train_sampler(), BatchSampler)
    assert isinstance(trainer.get_train_dataloader(), DataLoader)
    with pytest.raises(InputError, match="same_image_together: does not go with train_sampling_strategy: sequential"):
        config(tmp_path, same_image_together=True, train_sampling_strategy="sequential")


def test_memory_is_pinned_only_where_there_is_a_device(tmp_path):
    assert not config(tmp_path, dataloader_pin_memory=True).dataloader_pin_memory
