import datasets
import pytest
import torch

from medfinetune.encoder.config import SigLIPConfig
from medfinetune.errors import InputError
from medfinetune.training import checkpoint_to_resume, describe_run, saving_to, splits_for_training, where_to_go_on


def config(tmp_path, **changes):
    defaults = {"output_dir": str(tmp_path / "run"), "data_dir": "d", "use_cpu": True, "eval_strategy": "no"}
    return SigLIPConfig(**(defaults | changes))


def test_steps_are_optimiser_steps(tmp_path):
    """2,201 pairs at 8 x 8 make 35 steps an epoch, not 275."""
    args = config(
        tmp_path,
        per_device_train_batch_size=8,
        gradient_accumulation_steps=8,
        num_train_epochs=2,
        warmup_steps=0.1,
    )
    said = describe_run(args, 2201, 116)
    assert "effective batch 64 (8 x 8 accumulation x 1 processes)" in said
    assert "70 optimiser steps (35 an epoch), 7 of them warm-up" in said


def test_a_schedule_longer_than_the_run_is_told(tmp_path):
    """A recipe of 360 steps cut to 10 would train at a rate near 0."""
    schedule = {"lr_scheduler_type": "warmup_stable_decay", "lr_scheduler_kwargs": {"num_decay_steps": 270}}
    assert "WARNING: 270 steps of decay" in describe_run(config(tmp_path, max_steps=10, **schedule), 100, 0)
    assert "WARNING" not in describe_run(config(tmp_path, max_steps=300, **schedule), 100, 0)
    assert describe_run(config(tmp_path, max_steps=300), 100, 0, "runs/a/checkpoint-5").endswith(
        "going on from runs/a/checkpoint-5"
    )


@pytest.mark.parametrize("name", ["model.safetensors", "model-00001-of-00002.safetensors", "adapter_model.safetensors"])
def test_a_finished_run_is_not_written_over(tmp_path, name):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / name).touch()
    with pytest.raises(InputError, match=f"holds the model of an earlier run \\({name}\\); name another"):
        checkpoint_to_resume(config(tmp_path))


def test_which_checkpoint_is_resumed(tmp_path):
    run = tmp_path / "run"
    assert checkpoint_to_resume(config(tmp_path)) is None
    for step in (2, 10):
        (run / f"checkpoint-{step}").mkdir(parents=True)
        (run / f"checkpoint-{step}" / "trainer_state.json").write_text("{}")
    assert checkpoint_to_resume(config(tmp_path, resume_from_checkpoint="true")) == str(run / "checkpoint-10")
    inside = str(run / "checkpoint-2")
    assert checkpoint_to_resume(config(tmp_path, resume_from_checkpoint=inside)) == inside
    with pytest.raises(InputError, match="holds checkpoints of an earlier run"):
        checkpoint_to_resume(config(tmp_path))
    (tmp_path / "elsewhere").mkdir()
    for outside in (str(tmp_path / "elsewhere"), f"{run}/../elsewhere"):
        with pytest.raises(InputError, match="lies outside output_dir"):
            checkpoint_to_resume(config(tmp_path, resume_from_checkpoint=outside))
    with pytest.raises(InputError, match="no such folder"):
        checkpoint_to_resume(config(tmp_path, resume_from_checkpoint=f"{run}/checkpoint-3"))


@pytest.mark.parametrize("state", [None, '{"global_st'])
def test_a_checkpoint_cut_short_is_passed_over(tmp_path, state):
    run = tmp_path / "run"
    for step in (2, 10):
        (run / f"checkpoint-{step}").mkdir(parents=True)
    if state:
        (run / "checkpoint-10" / "trainer_state.json").write_text(state)
    with pytest.raises(InputError, match="holds no checkpoint that is whole"):
        checkpoint_to_resume(config(tmp_path, resume_from_checkpoint="true"))
    (run / "checkpoint-2" / "trainer_state.json").write_text("{}")
    assert checkpoint_to_resume(config(tmp_path, resume_from_checkpoint="true")) == str(run / "checkpoint-2")
    assert where_to_go_on(run).startswith(f"{run}/checkpoint-2 is whole; go on from it with --resume_from_checkpoint")


@pytest.mark.parametrize("name", ["rng_state_1.pth", "global_step10/zero_pp_rank_1_mp_rank_00_optim_states.pt"])
@pytest.mark.parametrize("kept", [0, 0.5])
def test_so_is_one_in_which_another_process_was_still_writing(tmp_path, name, kept):
    run = tmp_path / "run"
    for step in (2, 10):
        (run / f"checkpoint-{step}" / name).parent.mkdir(parents=True)
        (run / f"checkpoint-{step}" / "trainer_state.json").write_text("{}")
        torch.save({"state": torch.rand(1000)}, run / f"checkpoint-{step}" / name)
    last = run / "checkpoint-10" / name
    assert checkpoint_to_resume(config(tmp_path, resume_from_checkpoint="true")) == str(run / "checkpoint-10")
    last.write_bytes(last.read_bytes()[: int(kept * last.stat().st_size)])
    assert checkpoint_to_resume(config(tmp_path, resume_from_checkpoint="true")) == str(run / "checkpoint-2")


@pytest.mark.parametrize(
    "error", [OSError(28, "No space left on device"), RuntimeError("[enforce fail] PytorchStreamWriter failed writing")]
)
def test_what_cannot_be_written_is_one_line(tmp_path, error):
    with (
        pytest.raises(InputError, match=r"cannot be written, .*There is no checkpoint yet"),
        saving_to(tmp_path / "run"),
    ):
        raise error
    with pytest.raises(RuntimeError, match="shapes"), saving_to(tmp_path):
        raise RuntimeError("shapes differ")


def test_an_output_dir_that_is_a_file(tmp_path):
    (tmp_path / "run").touch()
    with pytest.raises(InputError, match=r"output_dir: .*run is a file, not a folder"):
        checkpoint_to_resume(config(tmp_path))


def test_rows_of_the_wanted_tasks(tmp_path):
    rows = [{"task": "report", "n": 1}, {"task": "question", "n": 2}, {"task": "caption", "n": 3}]
    splits = datasets.DatasetDict(
        train=datasets.Dataset.from_list(rows), validation=datasets.Dataset.from_list(rows[1:2])
    )
    train, validation = splits_for_training(splits, ["report", "caption"], config(tmp_path))
    assert (list(train["n"]), validation) == ([1, 3], None)
    evaluating = config(tmp_path, eval_strategy="steps", eval_steps=5)
    assert list(splits_for_training(splits, ["question"], evaluating)[1]["n"]) == [2]
    with pytest.raises(InputError, match="no validation rows of the tasks report"):
        splits_for_training(splits, ["report"], evaluating)
    with pytest.raises(InputError, match="no training rows of the tasks gossip"):
        splits_for_training(splits, ["gossip"], config(tmp_path))
