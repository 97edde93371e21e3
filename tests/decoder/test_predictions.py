import json
import re
import subprocess
from pathlib import Path

import datasets
import pytest
import torch

from medfinetune.data.load import load_chats
from medfinetune.decoder import predictions
from medfinetune.decoder.collator import undecoded
from medfinetune.decoder.generation import generate, perplexity
from medfinetune.decoder.model import load_decoder
from medfinetune.decoder.predictions import PredictionSample
from medfinetune.decoder.trainer import MllamaSFTTrainer
from medfinetune.errors import InputError
from medfinetune.evaluation.text import bleu_by_language
from tests.decoder.test_trainer import config
from tests.processes import TWO_PROCESSES

KEYS = {"predict_with_generate": True, "predict_max_new_tokens": 6, "lexicon": "phantom", "eval_strategy": "steps"}
ENDS = ["", ", and counts twice in the evaluation", ", and its own answer is not scored"]
KEYS |= {"per_device_eval_batch_size": 3, "eval_steps": 1, "max_length": 128}


@pytest.fixture
def reports(phantom_dir):
    """Training and validation chats that state findings."""
    chats = load_chats(phantom_dir / "data")
    return [chats[name].filter(lambda task: task == "report", input_columns="task") for name in ("train", "validation")]


@pytest.fixture
def loaded(tiny_mllama):
    return load_decoder(str(tiny_mllama))


def truths(sample):
    """Stands in for generation: the references of the chats that it is given."""
    by_id = dict(zip(sample.chats["id"], sample.references, strict=True))
    return lambda model, processor, chats, **kwargs: [by_id[chat["id"]] for chat in chats]


def test_scores_are_those_of_what_generation_writes(loaded, reports, tmp_path):
    model, processor = loaded
    args = config(tmp_path, predict_samples=5, **KEYS)
    trainer = MllamaSFTTrainer(model, args, reports[0], reports[1], processor)
    measured = trainer.evaluate()
    assert measured["eval_perplexity"] == pytest.approx(
        perplexity(model, processor, reports[1], max_length=128)["perplexity"], rel=1e-4
    )
    sample = PredictionSample(reports[1], args)
    assert len(sample.chats) == 5
    texts = generate(model, processor, sample.chats, max_new_tokens=6, batch_size=1)
    bleu = bleu_by_language(texts, sample.references, sample.chats["language"])
    assert {f"eval_bleu_{language}" for language in bleu} == {key for key in measured if "bleu" in key}
    for language, score in bleu.items():
        assert measured[f"eval_bleu_{language}"] == score["score"]
    assert measured["eval_finding_accuracy"] == sample.score(texts)["finding_accuracy"]
    assert trainer.state.log_history[-1]["eval_perplexity"] == measured["eval_perplexity"]
    assert trainer.evaluate()["eval_finding_accuracy"] == measured["eval_finding_accuracy"]


def test_right_answers_score_full(loaded, reports, tmp_path, monkeypatch):
    args = config(tmp_path, predict_samples=-1, **KEYS)
    sample = PredictionSample(reports[1], args)
    assert len(sample.chats) == len(reports[1])
    monkeypatch.setattr(predictions, "generate", truths(sample))
    scores = sample.score(sample.predict(*loaded))
    assert scores == {"bleu_en": pytest.approx(100), "bleu_zh": pytest.approx(100), "finding_accuracy": 1.0}
    assert sample.score(["Nothing."] * len(sample.chats))["finding_accuracy"] < 1


def test_the_best_checkpoint_may_be_the_one_that_states_findings_rightly(loaded, reports, tmp_path, monkeypatch):
    args = config(
        tmp_path,
        predict_samples=4,
        metric_for_best_model="eval_finding_accuracy",
        load_best_model_at_end=True,
        save_strategy="steps",
        save_steps=1,
        max_steps=3,
        **KEYS,
    )
    right, calls = truths(PredictionSample(reports[1], args)), []

    def write(model, processor, chats, **kwargs):
        calls.append(len(chats))
        texts = right(model, processor, chats)
        return texts if len(calls) == 2 else ["Nothing."] * len(texts)

    monkeypatch.setattr(predictions, "generate", write)
    trainer = MllamaSFTTrainer(loaded[0], args, reports[0], reports[1], loaded[1])
    trainer.train()
    assert calls == [4, 4, 4]
    assert trainer.state.best_model_checkpoint.endswith("checkpoint-2")
    assert trainer.state.best_metric == 1.0


@pytest.mark.parametrize("own_metrics", [False, True])
def test_no_scores_of_the_whole_vocabulary_are_held(loaded, reports, tmp_path, own_metrics, monkeypatch):
    model, processor = loaded
    seen = {}

    def compute(prediction):
        seen["shape"] = prediction.predictions.shape
        return {"own": 1.0}

    kwargs = {"compute_metrics": compute} if own_metrics else {}
    args = config(tmp_path, predict_samples=2, **KEYS)
    trainer = MllamaSFTTrainer(model, args, reports[0], reports[1], processor, **kwargs)
    gathered, gather = [], trainer.accelerator.gather_for_metrics
    monkeypatch.setattr(
        trainer.accelerator, "gather_for_metrics", lambda x: gathered.append(x.shape) or gather(x), raising=True
    )
    trainer.gather_function = trainer.accelerator.gather_for_metrics
    measured = trainer.evaluate()
    assert gathered
    vocabulary = model.config.text_config.vocab_size
    assert all(vocabulary not in shape for shape in gathered)
    if own_metrics:
        assert measured["eval_own"] == 1.0
        assert len(seen["shape"]) == 2
    else:
        assert all(shape.numel() <= 3 for shape in gathered)


def test_an_answer_to_an_image_that_is_gone_is_not_scored(loaded, reports, tmp_path, monkeypatch, capsys):
    gone = tmp_path / "gone.png"
    gone.touch()
    rows = [row | {"images": [str(gone)]} if i == 1 else row for i, row in enumerate(undecoded(reports[1]))]
    chats = datasets.Dataset.from_list(rows, features=reports[1].features)
    args = config(tmp_path, predict_samples=-1, vision_cache="memory", **(KEYS | {"lexicon": None}))
    args.use_peft = True
    trainer = MllamaSFTTrainer(loaded[0], args, chats, chats, loaded[1])  # the cache's size is told from its images
    measured = trainer.evaluate()
    said = [line for line in capsys.readouterr().err.splitlines() if "no longer opens" in line]
    both = f"chat {rows[1]['id']}: its image no longer opens .*; chat {rows[2]['id']} stands in for it"
    assert [bool(re.match(f"{both}{end}$", line)) for line, end in zip(said, ENDS, strict=True)] == [True] * 3
    sample = PredictionSample(chats, args)
    texts = sample.predict(*loaded)
    assert [text is None for text in texts] == [i == 1 for i in range(len(rows))]
    kept = [i for i in range(len(rows)) if i != 1]
    expected = bleu_by_language(
        [texts[i] for i in kept], [sample.references[i] for i in kept], [sample.languages[i] for i in kept]
    )
    assert measured["eval_bleu_en"] == pytest.approx(expected["en"]["score"])


def test_training_goes_on_as_without_answers(loaded, reports, tmp_path, tiny_mllama):
    """Writing answers moves neither weights, nor the random state, nor the training mode."""
    finals = []
    for number in range(2):
        torch.manual_seed(0)  # of the adapters
        model, processor = load_decoder(str(tiny_mllama))
        keys = KEYS if number else KEYS | {"predict_with_generate": False, "lexicon": None}
        args = config(tmp_path, output_dir=str(tmp_path / str(number)), max_steps=3, use_peft=True, **keys)
        trainer = MllamaSFTTrainer(model, args, reports[0], reports[1], processor)
        trainer.train()
        finals.append(torch.cat([p.detach().flatten() for p in trainer.model.parameters() if p.requires_grad]))
    assert torch.equal(*finals)


def test_prompts_and_completions_are_answered(loaded, tmp_path):
    rows = [
        {"prompt": "What is seen?", "completion": "No effusion."},
        {
            "prompt": [{"role": "user", "content": "有积液吗?"}],
            "completion": [{"role": "assistant", "content": "未见"}],
        },
    ]
    for row in rows:
        args = config(tmp_path, **(KEYS | {"lexicon": None}))
        chats = datasets.Dataset.from_list([row] * 2)
        measured = MllamaSFTTrainer(loaded[0], args, chats, chats, loaded[1]).evaluate()
        assert f"eval_bleu_{'zh' if isinstance(row['prompt'], list) else 'en'}" in measured


def test_what_is_wrong_is_told_before_the_first_step(loaded, reports, tmp_path):
    for change, message in [
        ({"predict_samples": 0}, "predict_samples: must be at least 1"),
        ({"predict_max_new_tokens": 0}, "predict_max_new_tokens: must be at least 1"),
        ({"predict_with_generate": False}, "lexicon: is only used with predict_with_generate"),
        ({"lexicon": None, "metric_for_best_model": "finding_accuracy"}, "metric_for_best_model: .* a lexicon"),
    ]:
        with pytest.raises(InputError, match=message):
            config(tmp_path, **(KEYS | change))
    assert config(tmp_path, **KEYS, metric_for_best_model="eval_perplexity").greater_is_better is False
    args = config(tmp_path, **KEYS)
    with pytest.raises(InputError, match="predict_with_generate: there is no validation set"):
        MllamaSFTTrainer(loaded[0], config(tmp_path, **(KEYS | {"eval_strategy": "no"})), reports[0], None, loaded[1])
    with pytest.raises(InputError, match="states a finding of phantom"):
        PredictionSample(datasets.Dataset.from_list([{"prompt": "What?", "completion": "Hm."}]), args)
    with pytest.raises(InputError, match="chat without id: does not end with the assistant's turn"):
        PredictionSample(datasets.Dataset.from_list([{"messages": [{"role": "user", "content": "Hm."}]}]), args)
    with pytest.raises(InputError, match="lexicon nowhere: no such file"):
        PredictionSample(reports[1], config(tmp_path, **(KEYS | {"lexicon": "nowhere"})))


@pytest.mark.slow
def test_two_processes_share_the_sample(loaded, reports, phantom_dir, tiny_mllama, tmp_path):
    """Of an odd number of chats, and of fewer chats than processes; each process knows all scores."""
    model, processor = loaded
    validation = reports[1].select(range(4))
    validation.save_to_disk(tmp_path / "validation")
    worker = Path(__file__).with_name("predictions_worker.py")
    command = [*TWO_PROCESSES, str(worker), str(tiny_mllama), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    for samples in (3, 1):
        args = config(tmp_path, predict_samples=samples, **(KEYS | {"per_device_eval_batch_size": 2}))
        alone = MllamaSFTTrainer(model, args, validation, validation, processor).evaluate()
        for rank in (0, 1):
            shared = json.loads((tmp_path / f"{samples}-{rank}.json").read_text())
            wanted = {key for key in alone if "bleu" in key or "finding" in key or key == "eval_perplexity"}
            assert len(wanted) >= 3
            assert {key: shared[key] for key in wanted} == pytest.approx({key: alone[key] for key in wanted}, rel=1e-5)
