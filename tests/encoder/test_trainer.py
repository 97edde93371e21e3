import math

import pytest
import torch
from transformers import EarlyStoppingCallback, TrainerCallback

from medfinetune.encoder.cache import PairCache
from medfinetune.encoder.config import SigLIPConfig
from medfinetune.encoder.loss import sigmoid_loss
from medfinetune.encoder.metrics import embed_images, embed_texts, retrieval_metrics
from medfinetune.encoder.model import load_encoder
from medfinetune.encoder.trainer import SigLIPTrainer
from medfinetune.errors import InputError


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
    trainer = SigLIPTrainer(model, config(tmp_path, eval_strategy="no"), train, None, processor)
    inputs = trainer.data_collator([train[i] for i in range(8)])
    outputs = model(**inputs)
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
    texts, languages = list(validation["text"]), list(validation["language"])
    keys = [hashes[0] for hashes in validation["pixel_sha256"]]
    images = embed_images(model, processor, [row["images"][0] for row in validation])
    expected = retrieval_metrics(images, embed_texts(model, processor, texts), languages, keys, texts)
    assert len(expected) == 15
    for name, value in expected.items():
        assert math.isclose(metrics[f"eval_{name}"], value, abs_tol=1e-6), name
    assert "eval_loss" not in metrics  # it would depend on the batch size


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


def test_non_finite_loss_stops_the_run(loaded, tmp_path):
    model, processor, train, _ = loaded

    class Break(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            if state.global_step == 1:
                torch.nn.init.constant_(model.logit_bias, math.nan)

    args = config(tmp_path, eval_strategy="no", save_strategy="steps", save_steps=1, logging_nan_inf_filter=False)
    trainer = SigLIPTrainer(model, args, train, None, processor, callbacks=[Break()])
    with pytest.raises(InputError, match="step 2: the loss is nan"):
        trainer.train()


def test_unused_columns_must_stay(tmp_path):
    with pytest.raises(InputError, match="remove_unused_columns: must be false"):
        config(tmp_path, remove_unused_columns=True)


def test_early_stopping(loaded, tmp_path):
    """With a rate of 0 nothing gets better: the first figure is the best, and two more end the run."""
    model, processor, train, validation = loaded
    settings = {"learning_rate": 0.0, "max_steps": 20, "eval_steps": 1, "early_stopping_patience": 2}
    trainer = SigLIPTrainer(model, config(tmp_path, **settings), train, validation, processor)
    trainer.train()
    assert trainer.state.global_step == 3


def test_early_stopping_threshold(loaded, tmp_path):
    model, processor, train, validation = loaded
    settings = {"max_steps": 20, "eval_steps": 1, "early_stopping_patience": 1, "early_stopping_threshold": 1.0}
    trainer = SigLIPTrainer(model, config(tmp_path, **settings), train, validation, processor)
    trainer.train()
    assert trainer.state.global_step == 2  # recall cannot rise by more than 1
    callback = next(c for c in trainer.callback_handler.callbacks if isinstance(c, EarlyStoppingCallback))
    assert callback.early_stopping_threshold == 1.0
