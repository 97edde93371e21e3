"""Every setting of a Mllama run."""

from dataclasses import dataclass, field
from typing import Literal

import torch
from trl import SFTConfig

from medfinetune.distributed import check_deepspeed, join_deepspeed_on_cpu
from medfinetune.errors import InputError

TEXT_LAYERS = r".*language_model.*\.(self_attn|cross_attn)\.(q_proj|k_proj|v_proj|o_proj)"
"""Attention of the text layers only: plain names such as `q_proj` land in the vision tower too."""
CROSS_ATTENTION_LAYERS = TEXT_LAYERS.replace("(self_attn|cross_attn)", "cross_attn")


@dataclass
class MllamaSFTConfig(SFTConfig):
    """`trl.SFTConfig` and what fine-tuning a Mllama needs besides. Flat YAML files hold these keys."""

    model_name_or_path: str = field(
        default="meta-llama/Llama-3.2-11B-Vision-Instruct",
        metadata={"help": "Folder or Hub name of the Mllama to start from."},
    )
    model_revision: str | None = field(
        default=None, metadata={"help": "Commit, tag or branch on the Hub; pin the commit for a run to be repeatable."}
    )
    dtype: Literal["float32", "bfloat16", "float16"] = field(
        default="bfloat16", metadata={"help": "Precision in which the weights are loaded and kept."}
    )
    data_dir: str = field(
        default="", metadata={"help": "Folder that recipes/prepare.py wrote (chat_instructions.jsonl and images/)."}
    )
    tasks: list[str] = field(
        default_factory=lambda: ["caption", "report", "question"],
        metadata={"help": "Kinds of chats to train on: caption, report, question."},
    )
    train_on: Literal["assistant", "all"] = field(
        default="assistant",
        metadata={"help": "assistant: learn the assistant's words and its end of turn. all: the user's words too."},
    )
    date_string: str = field(
        default="26 Jul 2024",
        metadata={"help": "The date that the chat template writes into a prompt; fixed, or a run is not repeatable."},
    )
    use_peft: bool = field(default=False, metadata={"help": "Train LoRA adapters instead of the weights."})
    lora_r: int = field(default=16, metadata={"help": "Rank of the LoRA adapters."})
    lora_alpha: int = field(default=32, metadata={"help": "Scale of the LoRA adapters."})
    lora_dropout: float = field(default=0.05, metadata={"help": "Dropout before the LoRA adapters."})
    lora_target_modules: str = field(
        default=TEXT_LAYERS, metadata={"help": "Regular expression of the modules that get an adapter."}
    )
    lora_use_dora: bool = field(default=False, metadata={"help": "Learn the size of each weight's columns too (DoRA)."})
    lora_use_rslora: bool = field(
        default=False, metadata={"help": "Scale adapters by alpha over the root of the rank (rsLoRA)."}
    )
    load_in_4bit: bool = field(default=False, metadata={"help": "Keep the frozen weights in 4 bits; needs use_peft."})
    load_in_8bit: bool = field(default=False, metadata={"help": "Keep the frozen weights in 8 bits; needs use_peft."})
    bnb_4bit_quant_type: Literal["nf4", "fp4"] = field(
        default="nf4", metadata={"help": "The 16 values that 4 bits stand for."}
    )
    bnb_4bit_use_double_quant: bool = field(
        default=True, metadata={"help": "Quantise the scales of the 4-bit blocks too: 0.4 bits less a weight."}
    )
    merge_adapter: bool = field(
        default=False,
        metadata={"help": "Write the model with its adapter merged in, checked, into merged/ below output_dir."},
    )
    freeze_vision: bool = field(default=True, metadata={"help": "Leave the vision tower as it is."})
    freeze_projector: bool = field(
        default=False, metadata={"help": "Leave the projector from the tower to the text layers as it is."}
    )
    train_cross_attention_only: bool = field(
        default=False,
        metadata={"help": "Train the text model's cross-attention layers alone (with use_peft: adapters in them)."},
    )
    fast_vision: bool = field(
        default=True,
        metadata={
            "help": "Encode images without padded and repeated tiles and without the backward of a frozen tower: the "
            "same features to rounding."
        },
    )
    remove_unused_columns: bool = field(
        default=False, metadata={"help": "Must stay false: the collator reads images and messages from the rows."}
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
        if self.packing:
            raise InputError("packing: must be false; chats of one row would see the images of another")
        if self.max_length is None or self.max_length < 1:
            raise InputError("max_length: give the largest number of tokens of a chat, for example 512")
        self._check_what_trains()
        deepspeed = self.deepspeed
        if deepspeed:
            check_deepspeed(deepspeed, self.dry_run)
        no_accelerator = not torch.accelerator.is_available()
        if self.dry_run:
            self.deepspeed = None  # counting needs no DeepSpeed
            self.use_cpu = self.use_cpu or no_accelerator  # or a 16-bit recipe could only be checked where it can run
        elif deepspeed and no_accelerator:
            # DeepSpeed takes no `use_cpu`: its processes are joined first, and the Trainer must not join them again.
            join_deepspeed_on_cpu()
            self.use_cpu, self.accelerator_config = False, {"use_configured_state": True}
        super().__post_init__()
        self.deepspeed = deepspeed

    def _check_what_trains(self) -> None:
        bits = [key for key in ("load_in_4bit", "load_in_8bit") if getattr(self, key)]
        if len(bits) == 2:
            raise InputError("load_in_4bit: is true, and so is load_in_8bit; choose one")
        for key in bits:
            if not self.use_peft:
                raise InputError(f"{key}: quantised weights do not train; set use_peft: true")
            if self.deepspeed:
                raise InputError(f"{key}: does not go with deepspeed; train without one of the two")
        if self.merge_adapter and not self.use_peft:
            raise InputError("merge_adapter: there is no adapter to merge; set use_peft: true")
        if self.train_cross_attention_only:
            if not self.freeze_vision:
                raise InputError("train_cross_attention_only: freezes the vision tower, but freeze_vision is false")
            if self.lora_target_modules != TEXT_LAYERS:
                raise InputError("train_cross_attention_only: gives the adapters their place; drop lora_target_modules")
        kwargs = self.activation_checkpointing_kwargs or self.gradient_checkpointing_kwargs
        if isinstance(kwargs, dict) and kwargs.get("use_reentrant"):
            raise InputError(
                "activation_checkpointing_kwargs: use_reentrant must be false; image features would get no gradient"
            )
