"""TRL's supervised fine-tuning with the labels and masks that Mllama needs."""

from collections.abc import Callable
from typing import Any

import datasets
import torch
from torch import Tensor, nn
from trl import SFTTrainer

from medfinetune.decoder.collator import MllamaCollator
from medfinetune.decoder.config import MllamaSFTConfig
from medfinetune.decoder.model import freeze, keep_stock_names, lora_config, skip_cross_attention_without_image
from medfinetune.decoder.rows import NamedBatches, ReadableRows, describe_longest, with_empty_image
from medfinetune.decoder.vision import use_fast_vision
from medfinetune.errors import InputError
from medfinetune.training import StopOnNonFiniteLoss, saving_to, where_to_go_on


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

        Raises:
            InputError: `lora_target_modules` names no module.
        """
        skip_cross_attention_without_image(model)
        use_fast_vision(model, args.fast_vision)
        keep_stock_names(model)
        if args.use_peft:
            kwargs.setdefault("peft_config", lora_config(args, model))
        else:
            freeze(model, args)
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
        self._ids: list[str] = []
        # TRL asks for reentrant checkpointing under PEFT and ZeRO-3, where the image's features would get no gradient.
        without_reentry = {**(args.activation_checkpointing_kwargs or {}), "use_reentrant": False}
        args.activation_checkpointing_kwargs = args.gradient_checkpointing_kwargs = without_reentry
        self.add_callback(StopOnNonFiniteLoss())

    def _get_dataloader(self, dataset: Any, *args: Any, sampler_fn: Callable | None = None, **kwargs: Any) -> Any:
        collator = self.data_collator
        # Samplers look at the dataset's columns, which only the dataset itself has.
        sampler = (lambda _: sampler_fn(dataset)) if sampler_fn is not None else None
        try:
            self.data_collator = NamedBatches(collator)
            return super()._get_dataloader(ReadableRows(dataset), *args, sampler_fn=sampler, **kwargs)
        finally:
            self.data_collator = collator

    def _prepare_inputs(self, inputs: dict[str, Any]) -> dict[str, Any]:
        inputs = dict(super()._prepare_inputs(inputs))
        self._ids = inputs.pop("ids", [])
        if self.args.world_size > 1:
            inputs = with_empty_image(inputs, self.model.config)
        return inputs

    def training_step(self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Any = None) -> Tensor:
        """As in TRL.

        Raises:
            InputError: The first batch has no token to learn from, or memory runs out.
        """
        if not self.state.global_step and num_items_in_batch is not None and not int(num_items_in_batch):
            raise InputError(
                f"{self.args.data_dir}: the first batch has no token to learn from ({', '.join(inputs.get('ids', []))}"
                "); are the assistant's turns empty?"
            )
        try:
            return super().training_step(model, inputs, num_items_in_batch)
        except torch.OutOfMemoryError as error:
            raise InputError(
                f"step {self.state.global_step}: out of memory; the longest row of the batch is "
                f"{describe_longest(inputs, self._ids)}. {_what_saves_memory(self.args)}. "
                f"{where_to_go_on(self.args.output_dir)}"
            ) from error

    def _save_checkpoint(self, *args: Any, **kwargs: Any) -> None:
        with saving_to(self.args.output_dir):
            super()._save_checkpoint(*args, **kwargs)


def _what_saves_memory(args: MllamaSFTConfig) -> str:
    ways = []
    if args.per_device_train_batch_size > 1:
        ways.append("per_device_train_batch_size: 1 (and gradient_accumulation_steps as many times larger)")
    if not args.activation_checkpointing:
        ways.append("activation_checkpointing: true")
    if not args.use_peft:
        ways.append("use_peft: true")
    elif not (args.load_in_4bit or args.deepspeed):
        ways.append("load_in_4bit: true")
    ways.append(f"a max_length below {args.max_length}")
    return f"Try, in this order: {'; '.join(ways)}"
