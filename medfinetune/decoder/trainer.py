"""TRL's supervised fine-tuning with the labels and masks that Mllama needs."""

from collections.abc import Callable
from typing import Any

import datasets
from torch import nn
from trl import SFTTrainer

from medfinetune.decoder.collator import MllamaCollator
from medfinetune.decoder.config import MllamaSFTConfig
from medfinetune.decoder.head import score_labels_only
from medfinetune.decoder.model import lora_config, skip_cross_attention_without_image
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
        self.add_callback(StopOnNonFiniteLoss())
