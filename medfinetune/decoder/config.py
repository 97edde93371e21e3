"""Every setting of a Mllama run."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import torch
from trl import SFTConfig

from medfinetune.data.evidence import EvidenceKind
from medfinetune.distributed import check_deepspeed, join_deepspeed_on_cpu
from medfinetune.errors import InputError

TEXT_LAYERS = r".*language_model.*\.(self_attn|cross_attn)\.(q_proj|k_proj|v_proj|o_proj)"
"""Attention of the text layers only: plain names such as `q_proj` land in the vision tower too."""
CROSS_ATTENTION_LAYERS = TEXT_LAYERS.replace("(self_attn|cross_attn)", "cross_attn")
NO_ADAPTER = (
    "is an adapter; merge it first (recipes/merge.py) and start from that, or go on with its run "
    "(resume_from_checkpoint)"
)


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
    freeze_vision: bool = field(
        default=True, metadata={"help": "Leave the vision tower as it is; with use_peft it always is."}
    )
    freeze_projector: bool | None = field(
        default=None,
        metadata={
            "help": "Leave the projector from the tower to the text layers as it is. Left out: it trains, but not with "
            "use_peft."
        },
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
    reference_attention_mask: bool = field(
        default=False,
        metadata={
            "help": "Let tokens before the first image see nothing of it, as in Meta's own code; transformers lets "
            "them. Saved with the model, and honoured by everything here that loads it."
        },
    )
    vision_cache: Literal["off", "memory", "disk"] = field(
        default="off",
        metadata={
            "help": "Keep the features of images across epochs, where tower and projector are frozen. memory: in each "
            "process. disk: below data_dir (or output_dir), for all processes and later runs."
        },
    )
    vision_cache_gib: float = field(
        default=32.0, metadata={"help": "How much vision_cache keeps; what was not used the longest goes first."}
    )
    predict_with_generate: bool = field(
        default=False,
        metadata={"help": "Write answers at each evaluation and score them: eval_bleu_en ..., eval_finding_accuracy."},
    )
    predict_samples: int = field(
        default=64, metadata={"help": "Validation chats that are answered, always the same; -1 for all."}
    )
    predict_max_new_tokens: int = field(default=256, metadata={"help": "Longest answer written, in tokens."})
    lexicon: str | None = field(
        default=None,
        metadata={"help": "For finding accuracy: the name of a lexicon of the library (phantom), or a YAML file."},
    )
    recompute: Literal["auto", "all", "none"] = field(
        default="auto",
        metadata={
            "help": "Text layers that are recomputed in the backward to save memory. auto: as few as keep activations "
            "under recompute_memory_gib. all. none. activation_checkpointing: false is the same as none."
        },
    )
    recompute_memory_gib: float | None = field(
        default=None,
        metadata={
            "help": "GiB per process that recompute: auto lets a batch of the longest rows store in the text layers; "
            "left out, no more than stock TRL stores in the tower and the text together."
        },
    )
    same_image_together: bool = field(
        default=False,
        metadata={
            "help": "Bring questions about one image into one batch, where it is encoded once. Batches get less "
            "varied. Where train_sampling_strategy is group_by_length, lengths count too."
        },
    )
    remove_unused_columns: bool = field(
        default=False, metadata={"help": "Must stay false: the collator reads images and messages from the rows."}
    )
    logging_nan_inf_filter: bool = field(
        default=False, metadata={"help": "true hides losses that are not finite from the log; they end the run anyway."}
    )
    evidence: EvidenceKind = field(
        default="none",
        metadata={
            "help": "What the encoder found about an image, told in the prompt: labels (probable findings), reports "
            "(of similar training images), both."
        },
    )
    evidence_index: str | None = field(
        default=None,
        metadata={"help": "Folder of the index that recipes/index.py writes; built there where it is not."},
    )
    evidence_encoder: str | None = field(default=None, metadata={"help": "The SigLIP to build evidence_index with."})
    evidence_tasks: list[str] = field(
        default_factory=list,
        metadata={"help": "Zero-shot files (or their names in the library) whose labels evidence tells."},
    )
    evidence_num_neighbours: int = field(
        default=3, metadata={"help": "Reports of similar images that evidence tells, at most."}
    )
    evidence_min_probability: float = field(
        default=0.0, metadata={"help": "Labels whose best value is less probable than this are not told."}
    )
    evidence_dropout: float = field(
        default=0.3,
        metadata={"help": "Share of training rows that get no evidence, drawn anew each epoch; none in evaluation."},
    )
    evidence_wrong: float = field(
        default=0.1,
        metadata={"help": "Share of training rows that get the evidence of another image, so that the image counts."},
    )
    evidence_one_kind: float = field(
        default=0.5,
        metadata={
            "help": "With evidence: both, share of the told training rows that get labels alone or reports alone, in "
            "equal parts, so that the model reads either."
        },
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
        for key in ("packing", "eval_packing"):
            if getattr(self, key):
                raise InputError(f"{key}: must be false; chats of one row would see the images of another")
        if self.max_length is None or self.max_length < 1:
            raise InputError("max_length: give the largest number of tokens of a chat, for example 512")
        if self.same_image_together and self.train_sampling_strategy not in ("random", "group_by_length"):
            raise InputError(
                f"same_image_together: does not go with train_sampling_strategy: {self.train_sampling_strategy}; use "
                "random or group_by_length"
            )
        if self.recompute_memory_gib is not None and self.recompute_memory_gib <= 0:
            raise InputError("recompute_memory_gib: give GiB above 0, or leave it out")
        if (Path(self.model_name_or_path) / "adapter_config.json").is_file():
            raise InputError(f"model_name_or_path: {self.model_name_or_path} {NO_ADAPTER}")
        self._check_cache_and_predictions()
        self._check_evidence()
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
        if self.recompute == "all" and not self.activation_checkpointing:
            raise InputError("recompute: all does not go with activation_checkpointing: false; leave one of them out")
        if self.use_cpu or not torch.accelerator.is_available():
            self.dataloader_pin_memory = False  # there is no device to copy to

    def _check_cache_and_predictions(self) -> None:
        for key in ("assistant_only_loss", "completion_only_loss", "padding_free", "use_liger_kernel"):
            if getattr(self, key):
                raise InputError(f"{key}: leave it out; train_on says what is learned, and Mllama takes no other batch")
        if self.vision_cache != "off" and self.vision_cache_gib <= 0:
            raise InputError("vision_cache_gib: must be more than 0")
        if self.predict_samples < 1 and self.predict_samples != -1:
            raise InputError("predict_samples: must be at least 1, or -1 for all")
        if self.predict_max_new_tokens < 1:
            raise InputError("predict_max_new_tokens: must be at least 1")
        if self.lexicon is not None and not self.predict_with_generate:
            raise InputError("lexicon: is only used with predict_with_generate: true")
        metric = str(self.metric_for_best_model or "").removeprefix("eval_")
        if "finding_accuracy" in metric and self.lexicon is None:
            raise InputError(f"metric_for_best_model: {metric} needs predict_with_generate: true and a lexicon")
        if metric.startswith("bleu") and not self.predict_with_generate:
            raise InputError(f"metric_for_best_model: {metric} needs predict_with_generate: true")
        if metric == "perplexity" and self.greater_is_better is None:
            self.greater_is_better = False

    def _check_evidence(self) -> None:
        for key in ("min_probability", "dropout", "wrong", "one_kind"):
            if not 0 <= getattr(self, f"evidence_{key}") <= 1:
                raise InputError(f"evidence_{key}: must lie between 0 and 1")
        if self.evidence != "none" and self.evidence_dropout + self.evidence_wrong >= 1:
            raise InputError("evidence_dropout: with evidence_wrong it leaves no row its own evidence; lower it")
        if self.evidence_num_neighbours < 1:
            raise InputError("evidence_num_neighbours: must be at least 1; for none at all set evidence: labels")

    def _check_what_trains(self) -> None:
        bits = [key for key in ("load_in_4bit", "load_in_8bit") if getattr(self, key)]
        if len(bits) == 2:
            raise InputError("load_in_4bit: is true, and so is load_in_8bit; choose one")
        for key in bits:
            if not self.use_peft:
                raise InputError(f"{key}: quantised weights do not train; set use_peft: true")
            if self.deepspeed:
                raise InputError(f"{key}: does not go with deepspeed; train without one of the two")
        for key in ("freeze_vision", "freeze_projector"):
            if self.use_peft and getattr(self, key) is False:
                raise InputError(
                    f"{key}: false does not go with use_peft, which trains adapters alone; leave it out, and for "
                    "adapters there too let lora_target_modules match its layers"
                )
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
