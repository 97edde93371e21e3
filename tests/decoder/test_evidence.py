"""Evidence in the prompts of a run: whose, how often, the same everywhere; and never in the labels."""

from collections import Counter

import datasets
import pytest
import torch
from torch.utils.data import DataLoader

from medfinetune.data.evidence import Evidence, LabelEvidence, Neighbour
from medfinetune.data.load import load_chats
from medfinetune.decoder import predictions
from medfinetune.decoder.chat_tokens import IGNORED, answer_of, turns_of
from medfinetune.decoder.collator import MllamaCollator, undecoded
from medfinetune.decoder.evidence import PromptEvidence, tell
from medfinetune.decoder.model import load_decoder
from medfinetune.decoder.trainer import MllamaSFTTrainer
from medfinetune.errors import InputError
from tests.decoder.test_trainer import config

NUM_ROWS = 2000


def found(name):
    near = [Neighbour(f"{name}-{i}", f"Like {name} {i}.", 0.9 - i / 10) for i in range(4)]
    stated = {"en": f"Heart of {name}", "zh": f"{name}的心"}
    return Evidence(near, [LabelEvidence("heart", {"a": 0.8, "b": 0.2}, stated)])


def own_words(name):
    near = "\n".join(f"{i + 1}. Like {name} {i}." for i in range(3))
    labels = f"Findings that are probable from the image: Heart of {name} (80%)."
    return f"Reports of similar images:\n{near}\n{labels}\nReport?"


def question(row):
    turns, num_prompt = turns_of(row)
    turn = [turn for turn in turns[: num_prompt or None] if turn["role"] == "user"][-1]
    return [part.get("text", "image") for part in turn["content"]]


@pytest.fixture(scope="module")
def chats():
    """Three chats of each image; two are English."""
    answer = {"role": "assistant", "content": [{"type": "text", "text": "Fine."}]}
    ask = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "Report?"}]}
    rows = [
        {"id": f"c{i}", "images": [f"{i // 3}.png"], "messages": [ask, answer], "language": "zh" if i % 3 else "en"}
        for i in range(NUM_ROWS)
    ]
    text = datasets.Value("string")
    types = {"images": datasets.List(datasets.Image()), "messages": datasets.Json(), "language": text}
    return datasets.Dataset.from_list(rows, datasets.Features({"id": text} | types))


@pytest.fixture(scope="module")
def everything(chats):
    return {name: found(name) for name in chats["id"]}


def told(everything, chats, tmp_path, epoch=0, **changes):
    """What each row is told in an epoch of training."""
    evidence = PromptEvidence(everything, config(tmp_path, evidence="both", **changes), chats)
    evidence.set_epoch(epoch)
    return [evidence.words(row, True) for row in chats.select_columns(["id", "language"])]


def owner(words):
    """Whose evidence it is."""
    return None if not words else words.split("Like ")[1].split()[0]


def test_shares_are_those_asked_for(chats, everything, tmp_path):
    words = told(everything, chats, tmp_path, evidence_one_kind=0.0, evidence_dropout=0.3, evidence_wrong=0.1)
    owners = [owner(text) for text in words]
    right = sum(one == name for one, name in zip(owners, chats["id"], strict=True))
    assert owners.count(None) / NUM_ROWS == pytest.approx(0.3, abs=0.03)
    assert right / NUM_ROWS == pytest.approx(0.6, abs=0.03)
    for name, one, text in zip(chats["id"], owners, words, strict=True):
        if one not in (None, name):
            assert int(one[1:]) // 3 != int(name[1:]) // 3, "another chat of the same image"
            assert (int(one[1:]) % 3 == 0) == (int(name[1:]) % 3 == 0), "of another language"
        assert text.count("Like") == (0 if one is None else 3)


def test_one_kind_alone_is_told_as_often_as_asked(chats, everything, tmp_path):
    words = told(everything, chats, tmp_path, evidence_one_kind=0.5, evidence_dropout=0.0, evidence_wrong=0.0)
    kinds = Counter(("Like" in text, "Heart of" in text or "的心" in text) for text in words)
    shares = {kind: number / NUM_ROWS for kind, number in kinds.items()}
    assert shares == pytest.approx({(True, True): 0.5, (True, False): 0.25, (False, True): 0.25}, abs=0.03)


def test_seed_epoch_and_id_decide(chats, everything, tmp_path):
    chats = chats.select(range(NUM_ROWS // 4))
    first = told(everything, chats, tmp_path)
    assert told(everything, chats, tmp_path) == first
    assert told(everything, chats, tmp_path, epoch=1) != first
    assert told(everything, chats, tmp_path, seed=7) != first
    order = list(reversed(range(len(chats))))
    by_id = dict(zip(chats["id"], first, strict=True))
    evidence = PromptEvidence(everything, config(tmp_path, evidence="both"), chats)
    again = {row["id"]: evidence.words(row, True) for row in chats.select(order).select_columns(["id", "language"])}
    assert again == by_id


@pytest.mark.parametrize("persistent", [False, True])
def test_workers_see_the_epoch(chats, everything, tmp_path, persistent):
    evidence = PromptEvidence(everything, config(tmp_path, evidence="both"), chats)
    rows = evidence.put_into(undecoded(chats.select(range(40))), training=True)
    loader = DataLoader(rows, 5, num_workers=2, collate_fn=list, persistent_workers=persistent)
    seen = []
    for epoch in range(3):
        evidence.set_epoch(epoch)
        seen.append([question(row) for batch in loader for row in batch])
        assert seen[-1] == [question(row) for row in rows]
    assert seen[0] != seen[1] != seen[2]


def test_evaluation_and_lengths_tell_each_row_its_own(chats, everything, tmp_path):
    evidence = PromptEvidence(everything, config(tmp_path, evidence="both", evidence_dropout=0.8), chats, chats)
    for rows in (evidence.put_into(undecoded(chats), False), evidence.longest(chats)):
        for number in (0, 3, 999):
            assert question(rows[number]) == ["image", own_words(f"c{number}")]
        assert rows[1]["messages"][0]["content"][1]["text"].startswith("相似图像的报告：")
        assert len(rows) == NUM_ROWS
    assert "的心" in evidence.words({"id": "c0", "messages": [{"role": "user", "content": "写报告"}]}, False)


def test_a_row_of_one_image_alone_is_told_nothing_wrong(chats, everything, tmp_path):
    of_one_image = chats.select(range(3))
    args = config(tmp_path, evidence="both", evidence_wrong=0.65, evidence_one_kind=0.0)
    evidence = PromptEvidence(everything, args, of_one_image)
    names = [owner(evidence.words({"id": "c1", "language": "zh"}, True)) for _ in _epochs(evidence, 200)]
    assert set(names) == {None, "c1"}
    assert names.count(None) > 160


def _epochs(evidence, number):
    for epoch in range(number):
        evidence.set_epoch(epoch)
        yield epoch


def test_a_chat_without_evidence_is_named(chats, everything, tmp_path):
    args = config(tmp_path, evidence="both", evidence_index="runs/index")
    some = {name: evidence for name, evidence in everything.items() if name != "c7"}
    for train, validation in ((chats, None), (chats.select([1]), {"one": chats.select([2]), "two": chats})):
        with pytest.raises(InputError, match=r"^chat c7: there is no evidence of it in runs/index; build the index"):
            PromptEvidence(some, args, train, validation)
    without_image = datasets.Dataset.from_list([{"id": "text", "prompt": "What?", "completion": "That."}])
    assert PromptEvidence({}, args, without_image).put_into(without_image, True)[0]["prompt"] == "What?"
    with pytest.raises(InputError, match="the rows have no column id"):
        PromptEvidence(some, args, chats.remove_columns("id"))
    with pytest.raises(InputError, match="evidence: both, but the trainer is given none"):
        PromptEvidence(None, args, chats)
    with pytest.raises(InputError, match="evidence: is none, but the trainer is given some"):
        PromptEvidence(some, config(tmp_path), chats)
    assert PromptEvidence(None, config(tmp_path), chats).put_into(chats, True) is chats


def test_prompts_and_marks_in_texts():
    row = {"id": "a", "images": [0], "prompt": "<|image|>Report?", "completion": "Fine."}
    assert question(tell(row, "E")) == ["image", "E\nReport?"]
    assert turns_of(tell(row, "E"))[1] == 1
    assert answer_of(tell(row, "E")) == "Fine."
    # A question after an answer: evidence goes before the last one.
    turns = [{"role": role, "content": text} for role, text in (("user", "A?"), ("assistant", "B"), ("user", "C?"))]
    several = {"id": "a", "images": [0], "messages": [*turns, {"role": "assistant", "content": "D"}]}
    assert [turn["content"][-1]["text"] for turn in tell(several, "E")["messages"]] == ["A?", "B", "E\nC?", "D"]
    assert tell(several, "E")["messages"][0]["content"][0] == {"type": "image"}
    assert tell(row, "") is row
    with pytest.raises(InputError, match="chat a: has no turn of the user"):
        tell({"id": "a", "messages": [{"role": "assistant", "content": "D"}]}, "E")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"evidence_dropout": 1.2}, "evidence_dropout: must lie between 0 and 1"),
        ({"evidence_wrong": -0.1}, "evidence_wrong: must lie between 0 and 1"),
        ({"evidence_one_kind": 2.0}, "evidence_one_kind: must lie between 0 and 1"),
        ({"evidence_min_probability": 2.0}, "evidence_min_probability: must lie between 0 and 1"),
        ({"evidence_dropout": 0.9, "evidence_wrong": 0.1}, "evidence_dropout: with evidence_wrong it leaves no row"),
        ({"evidence_num_neighbours": 0}, "evidence_num_neighbours: must be at least 1"),
    ],
)
def test_senseless_settings(tmp_path, changes, message):
    with pytest.raises(InputError, match=message):
        config(tmp_path, evidence="both", **changes)


@pytest.fixture
def loaded(phantom_dir, tiny_mllama):
    data = load_chats(phantom_dir / "data")
    model, processor = load_decoder(str(tiny_mllama))
    train, validation = data["train"].select(range(16)), data["validation"].select(range(4))
    everything = {name: found("X" * 20) for rows in (train, validation) for name in rows["id"]}
    return model, processor, train, validation, everything


def test_labels_are_the_answer_alone(loaded, tmp_path):
    """Whatever is told, each row's labels are those that it has without evidence."""
    model, processor, train, _, everything = loaded
    args = config(tmp_path, evidence="both", max_length=700, per_device_train_batch_size=1)
    trainer = MllamaSFTTrainer(model, args, train, None, processor, evidence=everything)
    plain = MllamaCollator(processor, 700)
    by_id = dict(zip(train["id"], train, strict=True))
    lengths = set()
    for epoch in range(4):
        trainer._evidence.set_epoch(epoch)
        for batch in trainer.get_train_dataloader():
            chat = plain.encode(by_id[batch["ids"][0]])
            ids, labels = (batch[name][0].tolist() for name in ("input_ids", "labels"))
            learned = [token for token in chat.labels if token != IGNORED]
            assert [token for token in labels if token != IGNORED] == learned
            assert ids[-len(learned) :] == learned
            assert labels == [IGNORED] * (len(ids) - len(learned)) + learned
            assert labels.count(IGNORED) >= chat.labels.count(IGNORED)
            lengths.add(len(ids) - len(chat.input_ids))
    assert 0 in lengths
    assert max(lengths) > 100


def test_what_is_cut_is_counted_with_evidence(loaded, tmp_path):
    model, processor, train, _, everything = loaded
    args = config(tmp_path, evidence="both", max_length=200, train_sampling_strategy="group_by_length")
    trainer = MllamaSFTTrainer(model, args, train, None, processor, evidence=everything)
    assert trainer.describe_cuts().startswith("with evidence (both), chats of ")
    assert "16 of 16 exceed max_length 200" in trainer.describe_cuts()
    assert "\n" not in trainer.describe_cuts()
    without = MllamaSFTTrainer(model, config(tmp_path, max_length=200), train, None, processor)
    assert "0 of 16 exceed max_length 200" in without.describe_cuts()
    assert set(trainer._get_train_sampler()._lengths) == {200}


def test_training_evaluating_and_answering_see_it(loaded, tmp_path, monkeypatch):
    """Each row that the model reads in training and validation, and each prompt that it answers."""
    model, processor, train, validation, everything = loaded
    keys = {"evidence_dropout": 0.5, "evidence_wrong": 0.0, "max_length": 700, "predict_with_generate": True}
    keys |= {"eval_strategy": "steps", "eval_steps": 3, "predict_samples": -1, "logging_steps": 1}
    args = config(tmp_path, evidence="labels", max_steps=3, **keys)
    prompts, seen = [], []

    def write(model, processor, chats, **kwargs):
        prompts.extend(question(chat)[-1] for chat in chats)
        return ["Nothing."] * len(chats)

    monkeypatch.setattr(predictions, "generate", write)
    trainer = MllamaSFTTrainer(model, args, train, validation, processor, evidence=everything)
    inside = trainer._prepare_inputs
    trainer._prepare_inputs = lambda inputs: seen.append(inputs["input_ids"]) or inside(inputs)
    trainer.train()
    assert len(prompts) == 4
    assert all("X" * 20 in prompt for prompt in prompts)
    read = [["X" * 20 in text for text in processor.batch_decode(ids)] for ids in seen]
    assert {flag for flags in read[:3] for flag in flags} == {True, False}
    assert all(flag for flags in read[3:] for flag in flags)
    assert len(read) > 3


def test_a_resumed_run_is_told_the_same(loaded, tmp_path, tiny_mllama):
    _, processor, train, _, everything = loaded
    everything = {name: found(name) for name in everything}
    runs = {}
    for name, resume in (("whole", None), ("resumed", str(tmp_path / "whole" / "checkpoint-3"))):
        keys = {"max_steps": 5, "save_steps": 3, "per_device_train_batch_size": 8}  # it goes on within the second epoch
        args = config(tmp_path, output_dir=str(tmp_path / name), evidence="labels", **keys)
        model, _ = load_decoder(str(tiny_mllama))
        trainer = MllamaSFTTrainer(model, args, train, None, processor, evidence=everything)
        trainer.train(resume_from_checkpoint=resume)
        assert int(trainer._evidence._epoch) == 2, "drawn anew in each epoch"
        runs[name] = [p.detach().clone() for p in trainer.model.parameters()]
    torch.testing.assert_close(runs["resumed"], runs["whole"], rtol=0, atol=0)
