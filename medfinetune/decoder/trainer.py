"""TRL's supervised fine-tuning with the labels and masks that Mllama needs."""

from collections.abc import Callable
from typing import Any

import datasets
import torch
from torch import nn
from torch.utils.data import Sampler
from trl import SFTTrainer

from medfinetune.decoder.collator import MllamaCollator
from medfinetune.decoder.config import MllamaSFTConfig
from medfinetune.decoder.head import score_labels_only
from medfinetune.decoder.model import lora_config, skip_cross_attention_without_image
from medfinetune.decoder.recompute import GIB, RecomputeLayers, measure_stored_bytes
from medfinetune.decoder.sampler import BatchSampler, has_images, identify_images, measure_lengths
from medfinetune.decoder.vision import use_fast_vision
from medfinetune.training import StopOnNonFiniteLoss


class MllamaSFTTrainer(SFTTrainer):
    """Fine-tunes a Mllama on chats with images.

    TRL's own collators put image tokens and prompts into the labels or crash on Mllama; `MllamaCollator` takes their
    place. Adapters and frozen parts follow from the run's settings.
    """

    def __init__(
        self,
        model: nn.Module,
        args: MllamaSFTConfig,
        train_dataset: datasets.Dataset,
        eval_dataset: datasets.Dataset | None = None,
        processing_class: Any = None,
        data_collator: Callable | None = None,
        **kwargs: Any,
    ):
        """
        Args:
            model: A `MllamaForConditionalGeneration`.
            args: The run's settings.
            train_dataset: Rows with `images` and `messages` (as `load_chats` gives them).
            eval_dataset: The same.
            processing_class: The `MllamaProcessor`; saved with every checkpoint.
            data_collator: A `MllamaCollator` where left out.
            **kwargs: As for `trl.SFTTrainer`.
        """
        skip_cross_attention_without_image(model)
        use_fast_vision(model, args.fast_vision)
        if args.use_peft:
            kwargs.setdefault("peft_config", lora_config(args))
        elif args.freeze_vision:
            model.model.vision_model.requires_grad_(False)
        super().__init__(
            model=model,
            args=args,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            processing_class=processing_class,
            data_collator=data_collator
            or MllamaCollator(processing_class, args.max_length, args.train_on, args.date_string),
            **kwargs,
        )
        score_labels_only(self.model.get_base_model() if args.use_peft else self.model)
        self.add_callback(RecomputeLayers(num_recomputed_layers(self.model, args, train_dataset)))
        self.add_callback(StopOnNonFiniteLoss())

    def _get_train_sampler(self, train_dataset: datasets.Dataset | None = None) -> Sampler | None:
        """Transformers' own order, unless rows of like length or of one image are to come together."""
        rows, args = self.train_dataset if train_dataset is None else train_dataset, self.args
        by_length = args.train_sampling_strategy == "group_by_length"
        if not (by_length or args.same_image_together) or isinstance(rows, datasets.IterableDataset):
            return super()._get_train_sampler(train_dataset)
        return BatchSampler(
            len(rows),
            args.per_device_train_batch_size,
            identify_images(rows) if args.same_image_together else None,
            measure_lengths(rows, self.data_collator) if by_length else None,
            args.gradient_accumulation_steps * args.world_size,
            args.seed if args.data_seed is None else args.data_seed,
        )


def num_recomputed_layers(model: Any, args: MllamaSFTConfig, train_dataset: Any) -> int:
    """How many text layers a run recomputes.

    Args:
        model: With or without adapters, what is frozen frozen.
        args: The run's settings.
        train_dataset: Rows with `images`; where none has one, stock stores nothing in the tower either.
    """
    num_layers = model.config.text_config.num_hidden_layers
    if not args.activation_checkpointing or args.recompute == "none":
        return 0
    if args.recompute == "all":
        return num_layers
    stored = measure_stored_bytes(
        model.config,
        lora_config(args) if args.use_peft else None,
        args.per_device_train_batch_size,
        args.max_length,
        int(has_images(train_dataset)),
        getattr(torch, args.dtype),
        args.bf16,
    )
    if args.recompute_memory_gib is not None:
        return stored.num_recomputed(int(args.recompute_memory_gib * GIB))
    trains = any("vision_model" in name and parameter.requires_grad for name, parameter in model.named_parameters())
    saves_tower = args.fast_vision and not trains
    return stored.num_recomputed(stored.budget if saves_tower else stored.peak(num_layers))
