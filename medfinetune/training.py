"""What both trainers and both training recipes share: callbacks, resuming, and saying what a run will be."""

import math
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from medfinetune.errors import InputError


class MeasureLastStep(TrainerCallback):
    """Evaluates and saves at the last step too; the Trainer does so only at multiples of `eval_steps`."""

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if state.global_step >= state.max_steps:
            control.should_evaluate = control.should_evaluate or args.eval_strategy != "no"
            control.should_save = control.should_save or args.save_strategy != "no"


class StopOnNonFiniteLoss(TrainerCallback):
    """Ends the run at the first logged loss that is nan or infinite."""

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        loss = (logs or {}).get("loss")
        if loss is not None and not math.isfinite(loss):
            raise InputError(
                f"step {state.global_step}: the loss is {loss}; lower learning_rate, or use bf16 instead of fp16. "
                f"Earlier checkpoints in {args.output_dir} are unharmed"
            )
