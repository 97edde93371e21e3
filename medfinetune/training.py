"""What both trainers and both training recipes share: callbacks, resuming, and saying what a run will be."""

import json
import math
import shutil
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import datasets
import torch
from accelerate import Accelerator
from safetensors import SafetensorError
from torch import Tensor
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from medfinetune.distributed import gather_objects, sum_over_processes
from medfinetune.errors import InputError, require_folder

_MODEL_FILES = ("model*.safetensors*", "adapter_model.safetensors")
# torch.save writes through a stream that only says that it failed.
_TORCH_CANNOT_WRITE = ("PytorchStreamWriter", "iostream error", "unexpected pos", "file write failed")


class NamedBatches:
    """A collator whose batches also say, under `ids`, which rows they are made of."""

    def __init__(self, collator: Callable[[Sequence[dict[str, Any]]], dict[str, Tensor]]):
        self.collator = collator

    def __call__(self, rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
        return {**self.collator(rows), "ids": [str(row.get("id", "without id")) for row in rows]}


class StopOnNonFiniteLoss(TrainerCallback):
    """Ends a run before the optimiser learns from a loss, or a gradient, that is nan or infinite.

    The logged loss would tell too late: it is a mean over steps, and checkpoints may have been saved in between. All
    processes stop in the same step, whichever of them has that loss.
    """

    def __init__(self) -> None:
        self._losses: list[tuple[Tensor, list[str]]] = []
        self._grad_norm: Tensor | float = 0.0

    def watch(self, loss: Tensor, ids: list[str]) -> None:
        """Takes the loss of a micro-batch, a scalar, and the rows that it is of; does not wait for the device."""
        self._losses.append((loss.detach(), ids))

    def watch_gradients(self, norm: Tensor | float | None, accelerator: Accelerator) -> None:
        """Takes the norm of the gradients of a step; not under fp16, where loss scaling skips those that overflow."""
        norm = norm.full_tensor() if hasattr(norm, "full_tensor") else norm  # FSDP's may be shared out
        # DeepSpeed scales by itself, and accelerate with a scaler.
        scaled = accelerator.mixed_precision == "fp16" or getattr(accelerator, "scaler", None) is not None
        self._grad_norm = 0.0 if norm is None or scaled else norm

    def on_step_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any):
        """Forgets a step that was not finished."""
        self._losses, self._grad_norm = [], 0.0

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """
        Raises:
            InputError: A loss of this step, in any process, or its gradient is not finite.
        """
        norm = torch.as_tensor(self._grad_norm, dtype=torch.float32, device=args.device)
        values = torch.stack([norm, *(loss.float().reshape(()).to(args.device) for loss, _ in self._losses)])
        # One look a step for all its micro-batches: each makes the host wait for the device.
        if not sum_over_processes((~values.isfinite()).sum()).item():
            return
        norm, *losses = values.tolist()
        broken = [(loss, ids) for loss, (_, ids) in zip(losses, self._losses, strict=True) if not math.isfinite(loss)]
        found = [pair for part in gather_objects(broken) for pair in part]
        what = f"the loss is {found[0][0]}" if found else f"the norm of the gradients is {norm}"
        ids = [name for _, names in found or [(norm, names) for _, names in self._losses] for name in names]
        rows = ", ".join(ids[:8]) + (f" and {len(ids) - 8} others" if len(ids) > 8 else "")
        raise InputError(
            f"step {state.global_step + 1}: {what} (rows {rows}); lower learning_rate, use bf16 instead of fp16, or "
            f"look at these rows. The step was not saved. {where_to_go_on(args.output_dir)}"
        )


class FollowEpoch(TrainerCallback):
    """Tells samplers and data sets the epoch: in a resumed run of several processes, accelerate does not."""

    def __init__(self, followers: Sequence[Any] = ()):
        self.followers = list(followers)

    def on_epoch_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        for follower in self.followers:
            follower.set_epoch(int(state.epoch or 0))


def last_whole_checkpoint(output_dir: str | Path) -> str | None:
    """The newest checkpoint that was written to its end; a run that dies while saving leaves a part of one.

    The Trainer writes `trainer_state.json` last, but of several processes only the first does: another may have died
    in the middle of its random state or its share of the optimizer. They are files of torch's, a zip whose directory
    stands at the end.
    """
    folders = {folder: folder.name.removeprefix("checkpoint-") for folder in Path(output_dir).glob("checkpoint-*")}
    steps = {int(step): folder for folder, step in folders.items() if step.isdigit()}
    for _, folder in sorted(steps.items(), reverse=True):
        try:
            json.loads((folder / "trainer_state.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue
        if all(map(zipfile.is_zipfile, [*folder.rglob("*.pt"), *folder.rglob("*.pth")])):
            return str(folder)
    return None


def where_to_go_on(output_dir: str | Path) -> str:
    """One sentence about the checkpoint that a run which failed can go on from."""
    last = last_whole_checkpoint(output_dir)
    if last is None:
        return "There is no checkpoint yet"
    return f"{last} is whole; go on from it with --resume_from_checkpoint true"


@contextmanager
def saving_to(output_dir: str | Path) -> Iterator[None]:
    """Turns what the writing libraries raise when the disk is full, or not writable, into one line.

    Raises:
        InputError: A file could not be written.
    """
    try:
        yield
    except (OSError, SafetensorError, RuntimeError) as error:
        cause = " ".join(str(error).split())
        if isinstance(error, RuntimeError) and not any(words in cause for words in _TORCH_CANNOT_WRITE):
            raise
        existing = next(p for p in (Path(output_dir), *Path(output_dir).resolve().parents) if p.exists())
        free = shutil.disk_usage(existing).free / 1e9
        raise InputError(
            f"output_dir: {output_dir} cannot be written, {free:.1f} GB are free there ({cause[:150]}); make room or "
            f"lower save_total_limit. {where_to_go_on(output_dir)}"
        ) from error


@contextmanager
def naming_what_takes_memory(describe: Callable[[], str], output_dir: str | Path) -> Iterator[None]:
    """Turns an out-of-memory error of the device into one line.

    Args:
        describe: Makes that line's beginning: where memory ran out and what to do.
        output_dir: Of the run.

    Raises:
        InputError: Memory ran out, or `metric_for_best_model` is no figure of the evaluation.
    """
    try:
        yield
    except KeyError as error:
        if "metric_for_best_model" not in str(error):
            raise
        raise InputError(f"{' '.join(str(error).split())[:600]}. {where_to_go_on(output_dir)}") from error
    except torch.OutOfMemoryError as error:
        raise InputError(f"{describe()}. {where_to_go_on(output_dir)}") from error


def checkpoint_to_resume(args: TrainingArguments) -> str | None:
    """Which checkpoint a run continues from; none for a new one.

    `resume_from_checkpoint: true` means the last one in `output_dir`. A path must lie inside `output_dir`, because
    the optimizer's state is a pickle, which is only to be read where the run itself wrote it.

    Raises:
        InputError: `output_dir` is a file, there is nothing to resume, a path lies outside `output_dir`, or a new run
            would go over an earlier one's checkpoints or model.
    """
    output_dir = Path(args.output_dir)
    require_folder(output_dir)
    last = last_whole_checkpoint(output_dir)
    wanted = args.resume_from_checkpoint
    if wanted is None or str(wanted).lower() == "false":
        if list(output_dir.glob("checkpoint-*")):
            raise InputError(
                f"output_dir: {output_dir} holds checkpoints of an earlier run; continue it with "
                "--resume_from_checkpoint true, or name another output_dir"
            )
        finished = next((name for pattern in _MODEL_FILES for name in output_dir.glob(pattern)), None)
        if finished is not None:
            raise InputError(
                f"output_dir: {output_dir} holds the model of an earlier run ({finished.name}); name another "
                "output_dir, or remove it"
            )
        return None
    if str(wanted).lower() in ("true", "last"):
        if last is None:
            raise InputError(f"resume_from_checkpoint: {output_dir} holds no checkpoint that is whole")
        return last
    if not Path(wanted).is_dir():
        raise InputError(f"resume_from_checkpoint: {wanted}: no such folder")
    if not Path(wanted).resolve().is_relative_to(output_dir.resolve()):
        raise InputError(f"resume_from_checkpoint: {wanted} lies outside output_dir ({output_dir}); it is not read")
    return str(wanted)


def splits_for_training(
    rows: datasets.DatasetDict, tasks: list[str], args: TrainingArguments
) -> tuple[datasets.Dataset, datasets.Dataset | None]:
    """The training and validation rows of the wanted tasks.

    Raises:
        InputError: No training row is left, or an evaluation is asked for and there is no validation row.
    """
    found = {}
    for name in ("train", "validation"):
        dataset = rows.get(name)
        if dataset is not None:
            wanted = [i for i, task in enumerate(dataset["task"]) if task in tasks]
            found[name] = dataset.select(wanted)
    if not len(found.get("train", [])):
        raise InputError(f"{args.data_dir}: no training rows of the tasks {', '.join(tasks)}")
    if args.eval_strategy == "no":
        return found["train"], None
    if not len(found.get("validation", [])):
        raise InputError(
            f"{args.data_dir}: no validation rows of the tasks {', '.join(tasks)}; prepare them with "
            "validation_fraction, or train with eval_strategy: no"
        )
    return found["train"], found["validation"]


def describe_run(args: TrainingArguments, num_rows: int, num_validation: int, checkpoint: str | None = None) -> str:
    """What a run will be, in optimiser steps: epochs and batches hide how few there are.

    Args:
        args: The run's settings.
        num_rows: Training rows.
        num_validation: Validation rows; 0 where the run evaluates nothing.
        checkpoint: Which one it goes on from.
    """
    batch = args.per_device_train_batch_size * args.gradient_accumulation_steps * args.world_size
    steps_per_epoch = math.ceil(num_rows / batch)
    steps = args.max_steps if args.max_steps > 0 else math.ceil(steps_per_epoch * args.num_train_epochs)
    warmup = args.get_warmup_steps(steps)
    validation = "no evaluation" if args.eval_strategy == "no" else f"{num_validation:,} validation rows"
    lines = [
        f"{num_rows:,} training rows, {validation}; effective batch {batch} "
        f"({args.per_device_train_batch_size} x {args.gradient_accumulation_steps} accumulation x {args.world_size} "
        f"processes); {steps:,} optimiser steps ({steps_per_epoch:,} an epoch), {warmup:,} of them warm-up"
    ]
    if checkpoint is not None:
        lines.append(f"going on from {checkpoint}")
    decay = (args.lr_scheduler_kwargs or {}).get("num_decay_steps")
    if isinstance(decay, int) and warmup + decay > steps:
        lines.append(
            f"WARNING: {decay:,} steps of decay (lr_scheduler_kwargs) and {warmup:,} of warm-up are more than the "
            f"run's {steps:,}: it never reaches its learning rate; lower num_decay_steps, or set lr_scheduler_type: "
            "constant and lr_scheduler_kwargs: null"
        )
    return "\n".join(lines)


def finish(trainer: Trainer, args: TrainingArguments) -> None:
    """Saves the model, its processor, the history and the resolved configuration into `output_dir`."""
    with saving_to(args.output_dir):
        trainer.save_model()
        trainer.save_state()
    if trainer.is_world_process_zero():
        what = "the adapter (not the weights it stands on)" if getattr(args, "use_peft", False) else "the model"
        print(f"saved to {args.output_dir}: {what}, its processor, trainer_state.json and config.yaml")
