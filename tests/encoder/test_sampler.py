from collections import Counter

import numpy as np
import pytest
import torch
from accelerate.data_loader import prepare_data_loader, skip_first_batches
from transformers import TrainerState

from medfinetune.encoder.cache import PairCache
from medfinetune.encoder.model import load_encoder
from medfinetune.encoder.sampler import UniqueCaptionSampler, pair_keys
from medfinetune.encoder.trainer import SigLIPTrainer
from medfinetune.training import FollowEpoch
from tests.encoder.test_trainer import config


def batches_of(order, size):
    return [order[start : start + size].tolist() for start in range(0, len(order), size)]


def clashes(order, size, texts, images):
    """Counted plainly: pairs whose text or image an earlier pair of the batch has."""
    return sum(
        any(texts[i] == texts[j] or images[i] == images[j] for j in batch[:position])
        for batch in batches_of(order, size)
        for position, i in enumerate(batch)
    )


def make(num_pairs, num_texts, num_images, seed=0):
    rng = np.random.default_rng(seed)
    texts = [f"finding {n}" for n in rng.integers(num_texts, size=num_pairs)]
    return texts, [f"image {n}" for n in rng.integers(num_images, size=num_pairs)]


@pytest.mark.parametrize(("num_pairs", "size"), [(96, 8), (101, 8), (7, 8), (16, 1), (1000, 32)])
def test_every_pair_once_and_nothing_twice_in_a_batch(num_pairs, size):
    texts, images = make(num_pairs, num_pairs, num_pairs // 2 + 1)
    sampler = UniqueCaptionSampler(texts, images, size, seed=3)
    plain = np.random.default_rng(0).permutation(num_pairs)
    for epoch in range(3):
        order = sampler.order(epoch)
        assert sorted(order.tolist()) == list(range(num_pairs))
        assert sampler.num_repeats(order) == clashes(order, size, texts, images)
        if num_pairs > size:
            assert sampler.num_repeats(order) == 0
    if num_pairs >= 96 and size > 1:
        assert clashes(plain, size, texts, images) > 5  # what a plain shuffle would give


def test_what_cannot_be_avoided_is_counted_and_spread():
    """One caption in 40 of 64 pairs, 8 batches: it must stand 5 times in each, which is 32 too many."""
    texts = ["normal knee"] * 40 + [f"finding {n}" for n in range(24)]
    sampler = UniqueCaptionSampler(texts, [str(n) for n in range(64)], 8)
    order = sampler.order(0)
    assert sampler.num_repeats(order) == 32
    assert {sum(texts[i] == "normal knee" for i in batch) for batch in batches_of(order, 8)} == {5}


def test_texts_that_the_encoder_confuses_are_one():
    sampler = UniqueCaptionSampler(["No fracture.", "no fracture", "a", "b"], list("wxyz"), 2)
    for epoch in range(8):
        assert {0, 1} not in [set(batch) for batch in batches_of(sampler.order(epoch), 2)]


def test_texts_that_differ_behind_the_last_token_are_one():
    """Also by way of a third: the first two have their tokens in common, the second and the third their words."""
    texts = ["a long text", "a long text that goes on", "A long text that goes on!", *"bcdef"]
    ids = torch.tensor([[1, 2], [1, 2], [9, 9], [3, 0], [4, 0], [5, 0], [6, 0], [7, 0]])
    images = [str(n) for n in range(8)]
    for epoch in range(8):
        apart = UniqueCaptionSampler(texts[:2] + texts[3:5], images[:4], 2, input_ids=ids[[0, 1, 3, 4]])
        assert {0, 1} not in [set(batch) for batch in batches_of(apart.order(epoch), 2)]
        sampler = UniqueCaptionSampler(texts, images, 2, input_ids=ids)
        assert all(len({0, 1, 2} & set(batch)) <= 1 for batch in batches_of(sampler.order(epoch), 2))


@pytest.mark.parametrize("cached", [True, False])
def test_the_trainer_gives_the_sampler_what_the_model_reads(loaded, tmp_path, cached):
    model, processor, train, _ = loaded
    start = "no fracture of the left knee " * 20
    texts = [f"{start}, image {i}" for i in range(4)] + list(train["text"])[4:]
    pairs = train.remove_columns("text").add_column("text", texts)
    dataset = PairCache(pairs, processor, tmp_path / "cache") if cached else pairs
    args = config(tmp_path, unique_captions=True, eval_strategy="no")
    sampler = SigLIPTrainer(model, args, dataset, None, processor)._get_train_sampler()
    assert all(len({0, 1, 2, 3} & set(batch)) == 1 for batch in batches_of(sampler.order(0), 8))


def test_the_seed_and_the_epoch_decide():
    texts, images = make(64, 60, 60)
    first, again, other = (UniqueCaptionSampler(texts, images, 8, seed) for seed in (1, 1, 2))
    assert first.order(5).tolist() == again.order(5).tolist()
    assert first.order(5).tolist() != first.order(6).tolist()
    assert first.order(5).tolist() != other.order(5).tolist()
    again.set_epoch(5)
    assert list(again) == first.order(5).tolist()


def test_two_processes_share_one_batch_without_repeats():
    """As accelerate deals it: 4 pairs each to 2 processes, of a global batch of 8."""
    texts, images = make(64, 50, 60)
    shards = []
    for process in range(2):
        sampler = UniqueCaptionSampler(texts, images, batch_size=8, seed=0)
        loader = torch.utils.data.DataLoader(range(64), batch_size=4, sampler=sampler)
        shards.append(prepare_data_loader(loader, num_processes=2, process_index=process, put_on_device=False))
    for epoch in range(2):
        seen = Counter()
        for shard in shards:
            shard.set_epoch(epoch)
        for one, two in zip(*shards, strict=True):
            together = [*one.tolist(), *two.tolist()]
            assert len({texts[i] for i in together}) == len({images[i] for i in together}) == 8
            seen.update(together)
        assert seen == Counter(range(64))


def test_a_resumed_run_goes_on_where_it_stopped(loaded, tmp_path):
    """4 steps an epoch; stopped after 6."""
    _, processor, train, _ = loaded
    source, ids = processor.tokenizer.name_or_path, list(train["id"])

    def run(output, steps, resume=None):
        settings = {"unique_captions": True, "eval_strategy": "no", "save_strategy": "steps", "save_steps": 6}
        args = config(tmp_path, output_dir=str(tmp_path / output), max_steps=steps, **settings)
        trainer = SigLIPTrainer(load_encoder(source)[0], args, train, None, processor)
        seen, collate = [], trainer.data_collator
        trainer.data_collator = lambda rows: seen.append([ids.index(row["id"]) for row in rows]) or collate(rows)
        trainer.train(resume_from_checkpoint=resume)
        return seen[: steps if resume is None else steps - 6]

    whole = run("whole", 8)
    run("stopped", 6)
    assert run("stopped", 8, str(tmp_path / "stopped" / "checkpoint-6")) == whole[6:]
    for epoch in (whole[:4], whole[4:]):
        assert sorted(np.concatenate(epoch).tolist()) == list(range(32))
    assert whole[:4] != whole[4:]


def test_a_resumed_run_of_two_processes_is_told_the_epoch():
    """accelerate does not reach the sampler through the loader that skips batches."""
    sampler = UniqueCaptionSampler(*make(64, 50, 60), batch_size=8)
    loader = torch.utils.data.DataLoader(range(64), batch_size=4, sampler=sampler)
    shard = prepare_data_loader(loader, num_processes=2, process_index=0, put_on_device=False)
    skipping, follow = skip_first_batches(shard, 2), FollowEpoch()
    follow.followers.append(sampler)
    follow.on_epoch_begin(None, TrainerState(epoch=1.25), None)
    skipping.set_epoch(1)
    order = sampler.order(1)
    assert [batch.tolist() for batch in skipping] == [order[8 * step : 8 * step + 4].tolist() for step in range(2, 8)]


def test_the_trainer_uses_it(loaded, tmp_path, capsys):
    model, processor, train, _ = loaded
    args = config(tmp_path, unique_captions=True, eval_strategy="no", max_steps=1, num_train_epochs=2)
    trainer = SigLIPTrainer(model, args, train, None, processor)
    sampler = trainer._get_train_sampler()
    assert isinstance(sampler, UniqueCaptionSampler)
    repeats = clashes(sampler.order(0), 8, *pair_keys(train))
    assert f"unique_captions: {repeats} of 32 pairs" in capsys.readouterr().out
    seen = []
    collate = trainer.data_collator
    trainer.data_collator = lambda rows: seen.append([row["id"] for row in rows]) or collate(rows)
    trainer.train()
    ids = list(train["id"])
    assert seen[0] == [ids[i] for i in sampler.order(0)[:8]]
    plain = SigLIPTrainer(model, config(tmp_path, eval_strategy="no"), train, None, processor)
    assert not isinstance(plain._get_train_sampler(), UniqueCaptionSampler)
