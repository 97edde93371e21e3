"""What the encoder's benchmark compares with is what it says."""

import json
import subprocess
import sys

import pytest
import torch
from transformers import SiglipModel

from medfinetune.data.prepare import PrepareConfig, prepare
from tests.benchmarks import encoder, encoder_input, encoder_loss
from tests.benchmarks.alone import measure, ratio
from tests.benchmarks.encoder_demo import make_models
from tests.benchmarks.encoder_input import measure_input
from tests.benchmarks.encoder_knee import FIGURES, IMAGE_SIZE_PX, prompts_of_grades, run_one, scores
from tests.benchmarks.encoder_loss import KEYS, OURS, measure_loss, run_contender, transformers_loss
from tests.benchmarks.encoder_step import REPO


def test_formula_is_that_of_transformers(tiny_siglip):
    model = SiglipModel.from_pretrained(tiny_siglip)
    inputs = {"input_ids": torch.randint(0, 90, (5, 64)), "pixel_values": torch.randn(5, 3, 48, 48)}
    with torch.no_grad():
        outputs = model(**inputs, return_loss=True)
        loss = transformers_loss(outputs.image_embeds, outputs.text_embeds, model.logit_scale.exp(), model.logit_bias)
    torch.testing.assert_close(loss, outputs.loss)


def test_ours_is_measured_alone_and_as_it_trains(monkeypatch):
    """At a small size: the loss that the trainer calls makes no table of all pairs either."""
    monkeypatch.setattr(encoder_loss, "NUM_PAIRS", 1024)
    monkeypatch.setattr(encoder_loss, "DIM", 64)
    monkeypatch.setattr(encoder_loss, "NUM_TURNS", 1)
    monkeypatch.setattr(encoder_loss, "run_alone", lambda script, *arguments: run_contender(*arguments))
    figures, lines = measure_loss(None)
    assert set(figures) == set(KEYS)
    assert figures["loss_memory_vs_open_clip"] is None
    assert 0 < figures["loss_memory_as_trained_vs_transformers"] < 1
    assert [name for name in OURS if any(line.endswith(f": {name}") for line in lines)] == list(OURS)


def test_input_is_measured_plain_and_augmented(monkeypatch, tmp_path):
    small = {"NUM_IMAGES": 4, "IMAGE_SIZE_PX": 64, "MODEL_SIZE_PX": 48, "NUM_TURNS": 1, "SECONDS_A_TURN": 0.01}
    for name, value in small.items():
        monkeypatch.setattr(encoder_input, name, value)
    monkeypatch.setattr(encoder_input, "rate", lambda rows, collate, _: len(collate([rows[0]])["input_ids"]))
    figures, lines = measure_input(tmp_path)
    assert figures == {"input_rate_vs_pillow": 1, "input_rate_augmented_vs_pillow": 1}
    assert len(lines) == 4


def test_memory_is_what_was_taken():
    figures = measure(lambda: torch.ones(64 * 2**18))
    assert 63 < figures["mib"] < 80
    assert ratio(1.0, None) is None


def test_a_constant_answer_scores_as_one():
    truth = [0, 0, 1, 2, 3, 4]
    assert scores(truth, [0] * 6) == {
        "accuracy": pytest.approx(1 / 3),
        "balanced_accuracy": pytest.approx(0.2),
        "quadratic_weighted_kappa": 0,
    }
    assert len({text for texts in prompts_of_grades().values() for text in texts}) == 20


def test_an_unknown_part_is_refused():
    command = [sys.executable, str(REPO / "tests" / "benchmarks" / "encoder.py"), "--only", "loss,lost"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2
    assert "--only: lost: must be of loss, step" in done.stderr


def test_a_part_that_fails_leaves_the_others_their_figures(monkeypatch, capsys):
    def fail():
        raise ValueError("nothing to\nmeasure")

    monkeypatch.setattr(encoder, "measure_steps", fail)
    monkeypatch.setattr(encoder, "measure_exact", lambda: ({"exact_memory_vs_full": 0.5}, {"exact": "fine"}))
    monkeypatch.setattr(sys, "argv", ["encoder.py", "--only", "step,exact"])
    with pytest.raises(SystemExit, match="1"):
        encoder.main()
    lines = capsys.readouterr().out.splitlines()
    figures = json.loads(lines[-1])
    assert figures["step_time_vs_plain_trainer"] is None
    assert figures["exact_memory_vs_full"] == 0.5
    assert any(line.split() == ["failed:", "step", "nothing", "to", "measure"] for line in lines)


def test_the_part_knee_trains_and_grades(phantom_dir, tmp_path):
    options = {"validation_fraction": 0, "test_fraction": 0.25, "languages": ["en"], "num_workers": 1}
    prepare(PrepareConfig(output_dir=str(tmp_path / "knee"), knee_dir=str(phantom_dir / "raw" / "knee"), **options))
    make_models(tmp_path, range(1), IMAGE_SIZE_PX, ("knee",))
    values = {"folder": str(tmp_path), "data": "knee", "seed": 0, "duplicates": "positive", "max_steps": 2}
    found = run_one(values | {"per_device_train_batch_size": 4})
    assert found.keys() == set(FIGURES)
    assert 0 <= found["accuracy"] <= 1
