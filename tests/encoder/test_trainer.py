import json
import math
import subprocess
from pathlib import Path

import pandas as pd
import pytest
import torch
import yaml
from sklearn.metrics import balanced_accuracy_score, cohen_kappa_score
from transformers import AutoProcessor, EarlyStoppingCallback, SiglipModel

import medfinetune
from medfinetune.data.load import load_pairs
from medfinetune.encoder.cache import PairCache
from medfinetune.encoder.collator import SigLIPCollator
from medfinetune.encoder.config import SigLIPConfig
from medfinetune.encoder.labels import COLUMNS, group_ids_of
from medfinetune.encoder.loss import sigmoid_loss
from medfinetune.encoder.metrics import embed_images, embed_texts, retrieval_metrics
from medfinetune.encoder.model import load_encoder
from medfinetune.encoder.trainer import SigLIPTrainer
from medfinetune.errors import InputError
from tests.encoder.test_loss import Largest, groups_of, made
from tests.processes import TWO_PROCESSES

PROMPTS = Path(medfinetune.__file__).parent / "evaluation" / "prompts"
RECIPES = Path(medfinetune.__file__).parents[1] / "recipes"


def config(tmp_path, **changes):
    defaults = {
        "output_dir": str(tmp_path / "run"),
        "data_dir": "unused",
        "use_cpu": True,
        "per_device_train_batch_size": 8,
        "max_steps": 3,
        "learning_rate": 1e-3,
        "logging_steps": 1,
        "eval_strategy": "steps",
        "eval_steps": 2,
        "dataloader_pin_memory": False,
        "disable_tqdm": True,
    }
    return SigLIPConfig(**(defaults | changes))


def test_everything_learns_and_is_logged(loaded, tmp_path):
    model, processor, train, validation = loaded
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    trainer = SigLIPTrainer(model, config(tmp_path, temperature_bias_init="paper"), train, validation, processor)
    assert math.isclose(model.logit_scale.item(), math.log(10), rel_tol=1e-6)
    assert model.logit_bias.item() == -10
    trainer.train()
    still = [name for name, parameter in model.named_parameters() if torch.equal(parameter, before[name])]
    assert not still
    history = trainer.state.log_history
    first = next(line for line in history if "loss" in line)
    # The log, as the original note has it: 2.30 at the start; and its exponential beside it.
    assert math.isclose(first["logit_scale"], 2.30, abs_tol=0.01)
    assert math.isclose(first["temperature"], math.exp(first["logit_scale"]), rel_tol=1e-6)
    assert math.isclose(first["logit_bias"], -10, abs_tol=0.01)
    evaluated = [line["step"] for line in history if "eval_recall_at_1" in line]
    assert evaluated == [2, 3]  # every two steps, and at the end
    assert trainer.state.best_metric == max(line["eval_recall_at_1"] for line in history if "eval_recall_at_1" in line)


def test_loss_of_a_batch_and_accumulation(loaded, tmp_path):
    """Accumulating two micro-batches gives the mean of their gradients, not the sum."""
    model, processor, train, _ = loaded
    args = config(tmp_path, duplicates="negative", eval_strategy="no")
    trainer = SigLIPTrainer(model, args, train, None, processor)
    inputs = trainer.data_collator([train[i] for i in range(8)])
    outputs = model(pixel_values=inputs["pixel_values"], input_ids=inputs["input_ids"])
    expected = sigmoid_loss(outputs.image_embeds, outputs.text_embeds, model.logit_scale.exp()[0], model.logit_bias[0])
    torch.testing.assert_close(trainer.compute_loss(model, inputs), expected)

    norms = {}
    for name, batch, steps in (("whole", 8, 1), ("accumulated", 8, 2)):
        model, _ = load_encoder(str(trainer.processing_class.tokenizer.name_or_path))
        same = train.select([*range(8), *range(8)])  # two equal micro-batches: the mean is one's own gradient
        args = config(
            tmp_path,
            output_dir=str(tmp_path / name),
            per_device_train_batch_size=batch,
            gradient_accumulation_steps=steps,
            max_steps=1,
            eval_strategy="no",
            max_grad_norm=1e9,
        )
        run = SigLIPTrainer(model, args, same, None, processor)
        run._get_train_sampler = lambda dataset=None, same=same: torch.utils.data.SequentialSampler(same)
        run.train()
        norms[name] = next(line["grad_norm"] for line in run.state.log_history if "grad_norm" in line)
    assert math.isclose(norms["whole"], norms["accumulated"], rel_tol=1e-4)


def test_recall_is_of_the_whole_set_not_of_batches(loaded, tmp_path):
    model, processor, train, validation = loaded
    trainer = SigLIPTrainer(model, config(tmp_path, per_device_eval_batch_size=3), train, validation, processor)
    metrics = trainer.evaluate()
    assert_search_of(metrics, "eval", model, processor, validation)
    assert "eval_loss" not in metrics  # it would depend on the batch size
    assert 0 <= metrics["eval_ece"] <= 1


def assert_search_of(metrics, prefix, model, processor, rows):
    images = embed_images(model, processor, [row["images"][0] for row in rows])
    texts = embed_texts(model, processor, list(rows["text"]))
    groups = group_ids_of({name: list(rows[name]) for name in COLUMNS})
    expected = retrieval_metrics(images, texts, list(rows["language"]), groups)
    assert len(expected) == 4 + 8 * len(set(rows["language"]))
    for name, value in expected.items():
        assert math.isclose(metrics[f"{prefix}_{name}"], value, abs_tol=1e-6), name


@pytest.mark.parametrize("cached", [False, True])
def test_figures_are_of_the_set_that_is_evaluated(loaded, tmp_path, cached):
    """Another set than the constructor's, of another length and with other labels; and several by name."""
    model, processor, train, validation = loaded
    other = train.select(range(len(validation) + 3))

    def given(rows):
        return PairCache(rows, processor, tmp_path) if cached else rows

    known = given(validation)
    collate = known.collate if cached else None
    trainer = SigLIPTrainer(model, config(tmp_path), given(train), known, processor, data_collator=collate)
    assert_search_of(trainer.predict(given(other), metric_key_prefix="test").metrics, "test", model, processor, other)
    assert_search_of(trainer.evaluate(given(other)), "eval", model, processor, other)
    assert_search_of(trainer.evaluate(), "eval", model, processor, validation)
    sets = {"one": given(validation), "two": given(other)}
    with pytest.raises(InputError, match="validation sets are one, two; name one, as in one_recall_at_1"):
        SigLIPTrainer(model, config(tmp_path), given(train), sets, processor, data_collator=collate)
    args = config(tmp_path, metric_for_best_model="two_recall_at_1")
    trainer = SigLIPTrainer(model, args, given(train), sets, processor, data_collator=collate)
    metrics = trainer.evaluate()
    assert_search_of(metrics, "eval_one", model, processor, validation)
    assert_search_of(metrics, "eval_two", model, processor, other)
    trainer.train()
    found = [line["eval_two_recall_at_1"] for line in trainer.state.log_history if "eval_two_recall_at_1" in line]
    assert trainer.state.best_metric == max(found[-2:])


def test_cached_pairs_train_alike(loaded, tmp_path):
    model, processor, train, validation = loaded
    cache = PairCache(train, processor, tmp_path)
    trainer = SigLIPTrainer(
        model,
        config(tmp_path),
        cache,
        PairCache(validation, processor, tmp_path),
        processor,
        data_collator=cache.collate,
    )
    trainer.train()
    assert {"eval_recall_at_1", "eval_image_to_text_recall_at_5_zh"} <= set(trainer.evaluate())


def test_no_weight_decay_on_temperature_and_bias(loaded, tmp_path):
    model, processor, train, _ = loaded
    args = config(tmp_path, weight_decay=0.1, logit_lr=0.5, eval_strategy="no")
    trainer = SigLIPTrainer(model, args, train, None, processor)
    optimizer = trainer.create_optimizer()
    groups = [
        group
        for group in optimizer.param_groups
        for p in group["params"]
        if p is model.logit_scale or p is model.logit_bias
    ]
    assert len(groups) == 2
    assert all(group["weight_decay"] == 0 and group["lr"] == 0.5 for group in groups)
    everything = [p for group in optimizer.param_groups for p in group["params"]]
    assert len({id(p) for p in everything}) == len(everything) == len(list(model.parameters()))
    assert not [name for name in trainer.get_decay_parameter_names(model) if name.startswith("logit")]


def test_start_of_temperature_and_bias(loaded, tmp_path):
    model, processor, train, _ = loaded
    own = model.logit_scale.item(), model.logit_bias.item()
    expected = {"keep": own, "paper": (math.log(10), -10.0), "prior": (math.log(10), -math.log(15))}
    for init, (scale, bias) in expected.items():
        args = config(
            tmp_path, temperature_bias_init=init, per_device_train_batch_size=16, micro_batch_size=4, eval_strategy="no"
        )
        SigLIPTrainer(model, args, train, None, processor)
        assert math.isclose(model.logit_scale.item(), scale, rel_tol=1e-6), init
        assert math.isclose(model.logit_bias.item(), bias, rel_tol=1e-6), init


def test_a_new_model_starts_as_the_paper_does_and_a_checkpoint_as_it_is(loaded, tmp_path):
    model, processor, train, _ = loaded
    own = model.logit_scale.item(), model.logit_bias.item()
    args = config(tmp_path, eval_strategy="no")
    assert args.temperature_bias_init is None
    SigLIPTrainer(model, args, train, None, processor)
    assert (model.logit_scale.item(), model.logit_bias.item()) == own
    for init, expected in ((None, (math.log(10), -10.0)), ("keep", (0.0, 0.0))):
        new = SiglipModel(model.config)
        SigLIPTrainer(new, config(tmp_path, temperature_bias_init=init, eval_strategy="no"), train, None, processor)
        assert (new.logit_scale.item(), new.logit_bias.item()) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"image_size_px": 96}, "image_size_px: 96: the model takes 48 px; give load_encoder the size"),
        ({"brightness": 0.1}, "brightness: train_dataset alters no images; make it with medfinetune.augment_pairs"),
        ({"crop_scale_min": 0.9}, "crop_scale_min: train_dataset alters no images"),
        ({"horizontal_flip_probability": 0.5}, "horizontal_flip_probability: train_dataset alters no images"),
        ({"max_text_length": 65}, "max_text_length: 65: must be 1 to 64, the positions the model has"),
        ({"max_text_length": 32}, "max_text_length: 32: the pairs were cached with 64 tokens"),
    ],
)
def test_settings_that_would_be_passed_over_are_refused(loaded, tmp_path, changes, message):
    model, processor, train, validation = loaded
    cache = PairCache(train, processor, tmp_path)
    with pytest.raises(InputError, match=message):
        SigLIPTrainer(model, config(tmp_path, **changes), cache, validation, processor, data_collator=cache.collate)


def test_an_augmented_set_is_taken(loaded, tmp_path):
    model, processor, train, validation = loaded
    args = config(tmp_path, image_size_px=48, brightness=0.1, max_steps=1)
    pairs = medfinetune.augment_pairs(train, lambda rows: PairCache(rows, processor, tmp_path), args)
    cached = PairCache(validation, processor, tmp_path)
    trainer = SigLIPTrainer(model, args, pairs, cached, processor, data_collator=pairs.collate)
    assert trainer.train().global_step == 1


def test_the_length_of_texts_is_saved_and_read_by_the_evaluation(loaded, tmp_path, tiny_siglip):
    model, processor, train, validation = loaded
    args = config(tmp_path, max_text_length=32, max_steps=1, learning_rate=0.0, logit_lr=0.0, eval_strategy="no")
    trainer = SigLIPTrainer(model, args, train, None, processor)
    assert trainer.data_collator([train[0]])["input_ids"].shape == (1, 32)
    trainer.save_model()
    again, its_processor = load_encoder(args.output_dir)
    texts = list(validation["text"])[:3]
    ids = SigLIPCollator(processor, 32).texts(texts)["input_ids"]
    with torch.no_grad():
        expected = torch.nn.functional.normalize(model.get_text_features(input_ids=ids).pooler_output, dim=-1)
    torch.testing.assert_close(embed_texts(again.eval(), its_processor, texts), expected)
    # The stock processor pads to it too; and the length can be set again.
    stock = AutoProcessor.from_pretrained(args.output_dir)
    assert stock(text=texts, padding="max_length", truncation=True, return_tensors="pt")["input_ids"].shape[1] == 32
    longer = load_encoder(args.output_dir, max_text_length=64)[1]
    assert not torch.allclose(embed_texts(again, longer, texts), expected, atol=1e-3)
    with pytest.raises(InputError, match="max_text_length: 65: must be 1 to 64"):
        load_encoder(str(tiny_siglip), max_text_length=65)


def test_pairs_that_say_the_same_are_known(loaded, tmp_path):
    """The same rows twice in a batch: as `negative` they cost dearly, as `positive` they cost like one."""
    model, processor, train, _ = loaded
    groups = SigLIPCollator(processor)([train[i] for i in range(len(train))])["group_ids"]
    other = next(i for i in range(len(train)) if not (groups[i] == groups[0])[groups[0] != 0].any())
    rows = [train[i] for i in (0, 0, other, other)]
    losses = {}
    for duplicates in ("positive", "ignore", "negative"):
        args = config(tmp_path, duplicates=duplicates, eval_strategy="no")
        trainer = SigLIPTrainer(model, args, train, None, processor)
        inputs = trainer.data_collator(rows)
        losses[duplicates] = trainer.compute_loss(model, inputs).item()
        # A collator that knows no groups: only a row's own text is right.
        assert inputs.pop("group_ids").shape == (4, 5)
        losses[f"{duplicates}, nothing known"] = trainer.compute_loss(model, inputs).item()
    logits = model(**inputs).logits_per_image.detach()
    same = torch.block_diag(torch.ones(2, 2), torch.ones(2, 2))
    own = torch.eye(4)
    pair_losses = {
        "positive": torch.nn.functional.softplus(-logits * (2 * same - 1)),
        "negative": torch.nn.functional.softplus(-logits * (2 * own - 1)),
    }
    pair_losses["ignore"] = pair_losses["negative"] * (1 - same + own)
    for duplicates, value in losses.items():
        pair_losses.setdefault(duplicates, pair_losses["negative"])
        assert math.isclose(value, pair_losses[duplicates].sum().item() / 4, rel_tol=1e-5), duplicates


@pytest.mark.parametrize("duplicates", ["positive", "ignore", "negative"])
def test_the_loss_of_a_large_batch_is_taken_by_rows(loaded, tmp_path, duplicates):
    model, processor, train, _ = loaded
    args = config(tmp_path, duplicates=duplicates, eval_strategy="no")
    trainer = SigLIPTrainer(model, args, train, None, processor)
    groups = groups_of(1024)
    with Largest() as largest:
        trainer._loss(groups, groups, 0)(*made(1024, 1024, 4, torch.float32)).backward()
    assert largest.entries == 256 * 1024


def test_micro_batch_size_is_checked(tmp_path):
    with pytest.raises(InputError, match="micro_batch_size: 0: must be at least 1"):
        config(tmp_path, micro_batch_size=0)


def test_unused_columns_must_stay(tmp_path):
    with pytest.raises(InputError, match="remove_unused_columns: must be false"):
        config(tmp_path, remove_unused_columns=True)


def test_zero_shot_grades_are_those_of_the_embedded_images(loaded, tmp_path, phantom_dir):
    model, processor, train, _ = loaded
    validation = load_pairs(phantom_dir / "data", "train")  # the few validation images are of few grades
    args = config(tmp_path, zero_shot_file=["knee_grade", "skin_diagnosis"], data_dir=str(phantom_dir / "data"))
    metrics = SigLIPTrainer(model, args, train, validation, processor).evaluate()
    first = {}
    for row in validation.remove_columns("images"):
        if row["source"] == "knee":
            first.setdefault(row["pixel_sha256"][0], (row["id"], row["label"]))
    rows = [i for i, identity in enumerate(validation["id"]) if identity in {name for name, _ in first.values()}]
    truths = [int(validation["label"][i]) for i in rows]
    assert len(set(truths)) > 2
    images = embed_images(model, processor, [validation[i]["images"][0] for i in rows])
    task = yaml.safe_load((PROMPTS / "knee_grade.yaml").read_text())
    by_grade = []
    for prompts in task["classes"].values():
        texts = embed_texts(model, processor, prompts["en"] + prompts["zh"])
        logits = model.logit_scale.exp() * images @ texts.T + model.logit_bias
        by_grade.append(torch.sigmoid(logits).mean(dim=1))
    stated = torch.stack(by_grade, dim=1).detach()
    best = stated.argmax(dim=1).tolist()
    right = sum(one == other for one, other in zip(best, truths, strict=True))
    assert math.isclose(metrics["eval_knee_grade_accuracy"], right / len(truths))
    assert math.isclose(metrics["eval_knee_grade_balanced_accuracy"], balanced_accuracy_score(truths, best))
    kappa = cohen_kappa_score(truths, best, weights="quadratic")
    assert math.isclose(metrics["eval_knee_grade_kappa"], kappa, abs_tol=1e-9)
    assert 0 <= metrics["eval_knee_grade_auc"] <= 1
    assert 0 <= metrics["eval_skin_diagnosis_accuracy"] <= 1
    assert "eval_skin_diagnosis_kappa" not in metrics  # diagnoses stand in no order


@pytest.fixture
def swapped(phantom_dir, tmp_path):
    """The generated folder with its training rows as the validation split, which alone are of every grade."""
    folder = tmp_path / "data"
    folder.mkdir()
    table = pd.read_parquet(phantom_dir / "data" / "all_med_pairs.parquet")
    table["split"] = table["split"].replace({"train": "validation", "validation": "train"})
    table.to_parquet(folder / "all_med_pairs.parquet")
    (folder / "images").symlink_to(phantom_dir / "data" / "images")
    return folder


def test_grades_of_a_cache_open_no_image_and_can_choose_the_checkpoint(loaded, tmp_path, swapped, monkeypatch):
    model, processor, train, _ = loaded
    validation = load_pairs(swapped, "validation")
    prompts = {"knee": {str(grade): [f"grade {grade}"] for grade in range(5)}}
    path = tmp_path / "own.yaml"
    classes = {grade: {"en": texts} for grade, texts in prompts["knee"].items()}
    path.write_text(yaml.safe_dump({"task": "knee", "ordered": True, "sources": ["knee"], "classes": classes}))
    cache, cached = PairCache(train, processor, tmp_path), PairCache(validation, processor, tmp_path)
    monkeypatch.setattr("PIL.Image.open", lambda *args, **kwargs: pytest.fail("an image was opened"))
    args = config(
        tmp_path,
        zero_shot_file=str(path),
        data_dir=str(swapped),
        metric_for_best_model="knee_accuracy",
    )
    trainer = SigLIPTrainer(model, args, cache, cached, processor, data_collator=cache.collate)
    trainer.train()
    history = [line["eval_knee_accuracy"] for line in trainer.state.log_history if "eval_knee_accuracy" in line]
    assert trainer.state.best_metric == max(history)
    found = trainer.evaluate()
    monkeypatch.undo()
    expected = SigLIPTrainer(model, args, train, validation, processor).evaluate()
    names = [name for name in expected if name.startswith("eval_knee_")]
    assert len(names) == 4
    for name in names:
        assert math.isclose(found[name], expected[name], abs_tol=1e-6), name


def test_a_task_without_truths_stops_before_the_first_step(loaded, tmp_path, phantom_dir):
    model, processor, train, validation = loaded
    reports = validation.select([i for i, task in enumerate(validation["task"]) if task == "report"])
    args = config(tmp_path, zero_shot_file=["skin_diagnosis"])
    with pytest.raises(InputError, match="task skin_diagnosis: no pair of the sources pad_ufes has a label"):
        SigLIPTrainer(model, args, train, reports, processor)
    with pytest.raises(InputError, match="zero_shot_file nowhere: no such file"):
        SigLIPTrainer(model, config(tmp_path, zero_shot_file="nowhere"), train, reports, processor)
    with pytest.raises(InputError, match="no column label"):
        SigLIPTrainer(model, args, train, reports.remove_columns("label"), processor)


@pytest.mark.slow
def test_two_processes_report_what_one_does(loaded, tmp_path, swapped):
    model, processor, train, _ = loaded
    folder = str(tmp_path / "siglip")
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    given = {
        "model_name_or_path": folder,
        "data_dir": str(swapped),
        "zero_shot_file": ["knee_grade", "skin_diagnosis"],
        "learning_rate": 0.0,
        "logit_lr": 0.0,
        "per_device_train_batch_size": 2,
        "per_device_eval_batch_size": 7,  # the last batches of the two are uneven
        "max_steps": 1,
        "eval_steps": 1,
        "tasks": ["caption", "report", "question"],
    }
    recipe = yaml.safe_load((RECIPES / "encoder" / "demo.yaml").read_text())
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(recipe | given | {"output_dir": str(tmp_path / "two")}))
    command = [*TWO_PROCESSES, str(RECIPES / "encoder.py"), "--config", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "x 2 processes" in done.stdout
    log = json.loads((tmp_path / "two" / "trainer_state.json").read_text())["log_history"]
    found = next(line for line in log if "eval_knee_grade_kappa" in line)
    args = config(tmp_path, zero_shot_file=given["zero_shot_file"], per_device_eval_batch_size=7)
    expected = SigLIPTrainer(model, args, train, load_pairs(swapped, "validation"), processor).evaluate()
    names = [name for name in expected if name.startswith("eval_") and "per_second" not in name and "time" not in name]
    assert len(names) == 20 + 2 + 4 + 3
    for name in names:
        assert math.isclose(found[name], expected[name], abs_tol=1e-6), name


def test_early_stopping(loaded, tmp_path):
    """With a rate of 0 nothing gets better: the first figure is the best, and two more end the run."""
    model, processor, train, validation = loaded
    settings = {"learning_rate": 0.0, "max_steps": 20, "eval_steps": 1, "early_stopping_patience": 2}
    trainer = SigLIPTrainer(model, config(tmp_path, **settings), train, validation, processor)
    trainer.train()
    assert trainer.state.global_step == 3


def test_early_stopping_counts_on_after_resuming(loaded, tmp_path):
    model, processor, train, validation = loaded
    settings = {"learning_rate": 0.0, "eval_steps": 1, "early_stopping_patience": 2}
    for max_steps, stops in ((2, 2), (20, 3)):
        args = config(tmp_path, max_steps=max_steps, **settings)
        trainer = SigLIPTrainer(model, args, train, validation, processor)
        trainer.train(resume_from_checkpoint=max_steps == 20)
        assert trainer.state.global_step == stops
    assert not config(tmp_path).restore_callback_states_from_checkpoint
    settings["restore_callback_states_from_checkpoint"] = False
    assert not config(tmp_path, **settings).restore_callback_states_from_checkpoint


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"eval_strategy": "epoch", "save_strategy": "no", "load_best_model_at_end": False}, ("no", 7)),
        ({"eval_strategy": "steps", "save_strategy": "epoch", "load_best_model_at_end": False}, ("epoch", 7)),
        ({"eval_strategy": "epoch", "save_strategy": "no"}, ("epoch", 7)),
        ({"eval_strategy": "steps", "eval_steps": 3}, ("steps", 3)),
        ({"eval_strategy": "steps", "eval_steps": None}, ("steps", 5)),
        ({"eval_strategy": "steps", "eval_steps": 3, "save_strategy": "best"}, ("best", 7)),
        ({"eval_strategy": "no", "save_strategy": "epoch"}, ("epoch", 7)),
    ],
)
def test_when_it_saves_is_only_changed_where_the_best_is_kept(tmp_path, given, expected):
    args = config(tmp_path, **{"eval_steps": None, "save_steps": 7, "logging_steps": 5} | given)
    assert (args.save_strategy, args.save_steps) == expected
    assert args.eval_strategy != "steps" or args.eval_steps == given.get("eval_steps") or args.eval_steps == 5


def test_wrong_strategies_are_one_line(tmp_path):
    with pytest.raises(InputError, match="eval_steps: is missing, and logging_steps, which it would follow, is 0"):
        config(tmp_path, eval_steps=None, logging_steps=0)
    with pytest.raises(InputError, match="sometimes is not a valid"):
        config(tmp_path, eval_strategy="sometimes")


def test_early_stopping_threshold(loaded, tmp_path):
    model, processor, train, validation = loaded
    settings = {"max_steps": 20, "eval_steps": 1, "early_stopping_patience": 1, "early_stopping_threshold": 1.0}
    trainer = SigLIPTrainer(model, config(tmp_path, **settings), train, validation, processor)
    trainer.train()
    assert trainer.state.global_step == 2  # recall cannot rise by more than 1
    callback = next(c for c in trainer.callback_handler.callbacks if isinstance(c, EarlyStoppingCallback))
    assert callback.early_stopping_threshold == 1.0
