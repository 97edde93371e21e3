"""Every setting of a SigLIP run."""

from dataclasses import dataclass, field
from typing import Literal

import torch
from transformers import TrainingArguments

from medfinetune.errors import InputError

ATTENTION = r".*(vision_model|text_model)\.encoder\.layers\.\d+\.self_attn\.(q_proj|k_proj|v_proj|out_proj)"
"""Attention of both towers' layers; the pooling head is left alone."""


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
    max_text_length: int = field(
        default=64,
        metadata={"help": "Tokens of every text; SigLIP was trained with 64. Saved with the model's tokenizer."},
    )
    micro_batch_size: int | None = field(
        default=None,
        metadata={
            "help": "Images and texts that are on the device at once with a graph; the loss is still that of the whole "
            "batch."
        },
    )
    loss_type: Literal["sigmoid", "softmax_normalized"] = field(
        default="sigmoid",
        metadata={
            "help": "sigmoid: SigLIP's own. softmax_normalized: the formula that the original note printed, as we read "
            "it: each image's softmax over all texts."
        },
    )
    duplicates: Literal["positive", "ignore", "negative"] = field(
        default="positive",
        metadata={
            "help": "Other texts of a batch that say the same, or are of the same label or image: positive, ignore, or "
            "negative as in the paper. Unless negative, texts of the same patient with another finding are ignored."
        },
    )
    temperature_bias_init: Literal["keep", "paper", "prior"] | None = field(
        default=None,
        metadata={
            "help": "keep: the checkpoint's own temperature and bias. From scratch, paper: log 10 and -10; prior: "
            "log 10 and the log odds of a match in a batch. Left out: keep, and paper for a model whose two are both "
            "0, as a new one's are."
        },
    )
    logit_lr: float | None = field(
        default=None, metadata={"help": "Learning rate of temperature and bias; learning_rate where left out."}
    )
    zero_shot_file: str | list[str] | None = field(
        default=None,
        metadata={"help": "Tasks to grade the validation images for: knee_grade, skin_diagnosis, or YAML files."},
    )
    freeze: Literal["none", "vision", "text"] = field(
        default="none", metadata={"help": "The tower that stays as it is; vision is LiT (arXiv:2111.07991)."}
    )
    vision_lr: float | None = field(
        default=None, metadata={"help": "Learning rate of the vision tower; learning_rate where left out."}
    )
    text_lr: float | None = field(
        default=None, metadata={"help": "Learning rate of the text tower; learning_rate where left out."}
    )
    layer_decay: float = field(
        default=1.0,
        metadata={"help": "Rate of each layer over that of the layer above it, in (0, 1]; 1: all alike."},
    )
    use_peft: bool = field(default=False, metadata={"help": "Train LoRA adapters instead of the weights."})
    lora_r: int = field(default=16, metadata={"help": "Rank of the LoRA adapters."})
    lora_alpha: int = field(default=32, metadata={"help": "Scale of the LoRA adapters."})
    lora_dropout: float = field(default=0.05, metadata={"help": "Dropout before the LoRA adapters."})
    lora_target_modules: str = field(
        default=ATTENTION, metadata={"help": "Regular expression of the modules that get an adapter."}
    )
    merge: bool = field(
        default=False,
        metadata={"help": "With use_peft: also save adapter and weights as one plain SigLIP, in output_dir/merged."},
    )
    wise_ft: list[float] = field(
        default_factory=list,
        metadata={
            "help": "Shares of the fine-tuned weights, in [0, 1], to mix with the start checkpoint's at the end; the "
            "best on the validation split is saved in output_dir/wise_ft (arXiv:2109.01903)."
        },
    )
    early_stopping_patience: int | None = field(
        default=None, metadata={"help": "Stop after so many evaluations without a better metric_for_best_model."}
    )
    early_stopping_threshold: float = field(
        default=0.0, metadata={"help": "How much better it must be for early stopping to count it."}
    )
    unique_captions: bool = field(
        default=False,
        metadata={"help": "Keep pairs with one text or one image out of each other's batch, of all processes."},
    )
    rotation_degrees: float = field(
        default=0.0, metadata={"help": "Training images are turned by up to so many degrees, to either side."}
    )
    crop_scale_min: float = field(
        default=1.0, metadata={"help": "Smallest share of a training image's area that a random crop keeps, in (0, 1]."}
    )
    brightness: float = field(
        default=0.0, metadata={"help": "Training images are made brighter or darker by up to this share, in [0, 1)."}
    )
    contrast: float = field(
        default=0.0, metadata={"help": "The contrast of training images changes by up to this share, in [0, 1)."}
    )
    horizontal_flip_probability: float = field(
        default=0.0,
        metadata={
            "help": "Share of training images that are mirrored, with left and right swapped in their text; pairs "
            "whose sides cannot be swapped safely are left alone."
        },
    )
    restore_callback_states_from_checkpoint: bool | None = field(
        default=None,
        metadata={"help": "Resume with the callbacks' counts; left out: where early_stopping_patience is set."},
    )
    save_strategy: str = field(
        default="steps",
        metadata={"help": "When to save: steps, epoch, best or no; as eval_strategy with load_best_model_at_end."},
    )
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
    logging_nan_inf_filter: bool = field(
        default=False, metadata={"help": "true hides losses that are not finite from the log; they end the run anyway."}
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
        _align_saving(self)
        if self.restore_callback_states_from_checkpoint is None:
            self.restore_callback_states_from_checkpoint = self.early_stopping_patience is not None
        if self.micro_batch_size is not None and self.micro_batch_size < 1:
            raise InputError(f"micro_batch_size: {self.micro_batch_size}: must be at least 1")
        _check_fine_tuning(self)
        if self.dry_run and not torch.accelerator.is_available():
            self.use_cpu = True  # or a 16-bit recipe could only be checked where it can run
        try:
            super().__post_init__()
        except ValueError as error:
            raise InputError(" ".join(str(error).split())) from error

    @property
    def num_texts_compared(self) -> int:
        """How many texts each image is compared with: those of one batch of all processes."""
        return self.per_device_train_batch_size * self.world_size


def _align_saving(args: SigLIPConfig) -> None:
    if args.eval_strategy == "no":
        args.load_best_model_at_end = False
        return
    if args.eval_strategy == "steps" and not args.eval_steps:
        if not args.logging_steps:
            raise InputError("eval_steps: is missing, and logging_steps, which it would follow, is 0")
        args.eval_steps = args.logging_steps
    if args.load_best_model_at_end and args.save_strategy != "best":
        # The best checkpoint can only be kept if one is saved wherever it is measured.
        args.save_strategy = args.eval_strategy
        if args.eval_strategy == "steps":
            args.save_steps = args.eval_steps


def _check_fine_tuning(args: SigLIPConfig) -> None:
    for keys, right, wanted in (
        ("layer_decay crop_scale_min", lambda value: 0 < value <= 1, "in (0, 1]"),
        ("brightness contrast lora_dropout", lambda value: 0 <= value < 1, "in [0, 1)"),
        ("horizontal_flip_probability", lambda value: 0 <= value <= 1, "in [0, 1]"),
        ("rotation_degrees", lambda value: 0 <= value <= 180, "in [0, 180]"),
        ("logit_lr vision_lr text_lr", lambda value: value is None or value >= 0, "0 or more"),
        ("early_stopping_threshold", lambda value: value >= 0, "0 or more"),
        ("early_stopping_patience", lambda value: value is None or value >= 1, "1 or more"),
        ("lora_r lora_alpha", lambda value: value >= 1, "1 or more"),
        ("wise_ft", lambda values: all(0 <= value <= 1 for value in values), "a list of shares in [0, 1]"),
    ):
        for key in keys.split():
            if not right(getattr(args, key)):
                raise InputError(f"{key}: {getattr(args, key)} must be {wanted}")
    if args.eval_strategy == "no":
        for key in ("wise_ft", "early_stopping_patience"):
            if getattr(args, key):
                raise InputError(f"{key}: needs figures of the validation split; set eval_strategy to steps or epoch")
    if args.early_stopping_patience and not args.load_best_model_at_end:
        raise InputError("early_stopping_patience: needs load_best_model_at_end: true")
    if args.merge and not args.use_peft:
        raise InputError("merge: there is nothing to merge without use_peft: true")
