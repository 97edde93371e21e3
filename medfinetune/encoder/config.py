"""Every setting of a SigLIP run."""

from dataclasses import dataclass, field
from typing import Literal

import torch
from transformers import TrainingArguments

from medfinetune.errors import InputError


@dataclass
class SigLIPConfig(TrainingArguments):
    """`TrainingArguments` and what fine-tuning a SigLIP needs besides. Flat YAML files hold these keys."""

    model_name_or_path: str = field(
        default="google/siglip-base-patch16-224", metadata={"help": "Folder or Hub name of the SigLIP to start from."}
    )
    model_revision: str | None = field(
        default=None, metadata={"help": "Commit, tag or branch on the Hub; pin the commit for a run to be repeatable."}
    )
    image_size_px: int | None = field(
        default=None,
        metadata={"help": "Width and height of the images that the model takes; the checkpoint's own where left out."},
    )
    data_dir: str = field(
        default="", metadata={"help": "Folder that recipes/prepare.py wrote (all_med_pairs.parquet and images/)."}
    )
    tasks: list[str] = field(
        default_factory=lambda: ["caption", "report", "question"],
        metadata={"help": "Kinds of pairs to train on: caption, report, question."},
    )
    max_text_length: int = field(default=64, metadata={"help": "Tokens of every text; SigLIP was trained with 64."})
    micro_batch_size: int | None = field(
        default=None,
        metadata={
            "help": "Images and texts that are on the device at once with a graph; the loss is still that of the whole "
            "batch."
        },
    )
    loss_type: Literal["sigmoid", "softmax_normalized"] = field(
        default="sigmoid",
        metadata={"help": "sigmoid: SigLIP's own. softmax_normalized: each image's softmax over all texts."},
    )
    duplicates: Literal["positive", "ignore", "negative"] = field(
        default="positive",
        metadata={
            "help": "Other texts of a batch that say the same, or are of the same label or image: positive, ignore, or "
            "negative as in the paper. Unless negative, texts of the same patient with another finding are ignored."
        },
    )
    temperature_bias_init: Literal["keep", "paper", "prior"] = field(
        default="keep",
        metadata={
            "help": "keep: the checkpoint's own temperature and bias. From scratch, paper: log 10 and -10; prior: "
            "log 10 and the log odds of a match in a batch."
        },
    )
    logit_lr: float | None = field(
        default=None, metadata={"help": "Learning rate of temperature and bias; learning_rate where left out."}
    )
    zero_shot_file: str | list[str] | None = field(
        default=None,
        metadata={"help": "Tasks to grade the validation images for: knee_grade, skin_diagnosis, or YAML files."},
    )
    save_strategy: str = field(default="steps", metadata={"help": "When to save: steps, epoch or no."})
    metric_for_best_model: str = field(
        default="recall_at_1", metadata={"help": "The validation figure that chooses the checkpoint."}
    )
    greater_is_better: bool = field(default=True, metadata={"help": "Whether more of that figure is better."})
    load_best_model_at_end: bool = field(
        default=True, metadata={"help": "Keep the best checkpoint on the validation split, not the last."}
    )
    ddp_find_unused_parameters: bool | None = field(
        default=False, metadata={"help": "Looking for parameters without gradient costs time, and there are none."}
    )
    remove_unused_columns: bool = field(
        default=False, metadata={"help": "Must stay false: the collator reads the images from the rows."}
    )
    report_to: str | list[str] | None = field(
        default="none", metadata={"help": "Where to log to: none, tensorboard, wandb ..."}
    )
    dry_run: bool = field(
        default=False,
        metadata={"help": "Check configuration and data, say what would be trained, and load no weights."},
    )

    def __post_init__(self):
        if self.remove_unused_columns:
            raise InputError("remove_unused_columns: must be false, or the Trainer drops the images from the rows")
        if self.eval_strategy != "no":
            # The best checkpoint can only be kept if one is saved wherever it is measured.
            self.save_strategy, self.save_steps = self.eval_strategy, self.eval_steps or self.save_steps
        elif self.load_best_model_at_end:
            self.load_best_model_at_end = False
        if self.micro_batch_size is not None and self.micro_batch_size < 1:
            raise InputError(f"micro_batch_size: {self.micro_batch_size}: must be at least 1")
        if self.dry_run and not torch.accelerator.is_available():
            self.use_cpu = True  # or a 16-bit recipe could only be checked where it can run
        super().__post_init__()

    @property
    def num_texts_compared(self) -> int:
        """How many texts each image is compared with: those of one batch of all processes."""
        return self.per_device_train_batch_size * self.world_size
