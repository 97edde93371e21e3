"""TRL's supervised fine-tuning with the labels and masks that Mllama needs."""

import math
from collections.abc import Callable, Mapping
from functools import partial
from itertools import zip_longest
from pathlib import Path
from typing import Any

import datasets
import torch
from peft import PeftModel
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset, Sampler
from transformers.trainer_utils import EvalLoopOutput, TrainOutput
from trl import SFTTrainer
from trl.trainer.utils import FusedCausalLMOutput

from medfinetune.data.evidence import Evidence
from medfinetune.decoder.collator import MllamaCollator
from medfinetune.decoder.config import NO_ADAPTER, MllamaSFTConfig
from medfinetune.decoder.cross_attention import mllama_inside, use_exact_rows
from medfinetune.decoder.evidence import PromptEvidence
from medfinetune.decoder.head import score_labels_only
from medfinetune.decoder.model import freeze, keep_stock_names, lora_config
from medfinetune.decoder.predictions import PredictionSample
from medfinetune.decoder.preflight import count_run, num_recomputed_layers
from medfinetune.decoder.recompute import RecomputeLayers
from medfinetune.decoder.rows import ReadableRows, describe_longest, with_empty_image
from medfinetune.decoder.sampler import BatchSampler, identify_images, measure_lengths, most_images
from medfinetune.decoder.vision import use_fast_vision
from medfinetune.decoder.vision_cache import describe_size, use_vision_cache
from medfinetune.distributed import gather_objects
from medfinetune.errors import InputError
from medfinetune.preflight.advice import what_would_fit
from medfinetune.training import FollowEpoch, NamedBatches, StopOnNonFiniteLoss, naming_what_takes_memory, saving_to


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
        evidence: Mapping[str, Evidence] | None = None,
        **kwargs: Any,
    ):
        """
        Args:
            model: A `MllamaForConditionalGeneration`.
            args: The run's settings.
            train_dataset: Rows with `images` and `messages` (as `load_chats` gives them), or `prompt` and `completion`.
            eval_dataset: The same.
            processing_class: The `MllamaProcessor`; saved with every checkpoint.
            data_collator: A `MllamaCollator` where left out.
            evidence: What the encoder found, by the ids of both datasets' chats, where `args.evidence` asks for it.
            **kwargs: As for `trl.SFTTrainer`.

        Raises:
            InputError: `lora_target_modules` names no module, the model has adapters already, a dataset is a stream, or
                a chat with an image has no evidence.
        """
        if isinstance(model, PeftModel):
            raise InputError(f"model: {NO_ADAPTER}")
        for key, rows in (("train_dataset", train_dataset), ("eval_dataset", eval_dataset)):
            if any(isinstance(part, IterableDataset) for part in (rows.values() if isinstance(rows, dict) else [rows])):
                raise InputError(f"{key}: is a stream; load it without streaming, for rows are taken by their number")
        self._evidence = PromptEvidence(evidence, args, train_dataset, eval_dataset)
        if getattr(model.config, "reference_attention_mask", False) and not args.reference_attention_mask:
            raise InputError("reference_attention_mask: the model was trained with true; set it so to train it on")
        if args.reference_attention_mask:
            model.config.reference_attention_mask = True
        use_exact_rows(model, args.reference_attention_mask)
        use_fast_vision(model, args.fast_vision)
        keep_stock_names(model)
        if args.use_peft:
            kwargs.setdefault("peft_config", lora_config(args, model))
        else:
            freeze(model, args)
        # Else TRL tokenises chats without images itself, and holds whole-vocabulary scores of all tokens for metrics.
        args.dataset_kwargs = (args.dataset_kwargs or {}) | {"skip_prepare_dataset": True}
        kwargs.setdefault("preprocess_logits_for_metrics", lambda logits, labels: logits.argmax(dim=-1))
        of_texts = (args.max_length, args.train_on, args.date_string)
        super().__init__(
            model=model,
            args=args,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            processing_class=processing_class,
            data_collator=data_collator
            or MllamaCollator(processing_class, *of_texts, pad_to_multiple_of=args.pad_to_multiple_of),
            **kwargs,
        )
        self._ids: list[str] = []
        self._batch: dict[str, Tensor] = {}
        # TRL asks for reentrant checkpointing under PEFT and ZeRO-3, where the image's features would get no gradient.
        without_reentry = {**(args.activation_checkpointing_kwargs or {}), "use_reentrant": False}
        args.activation_checkpointing_kwargs = args.gradient_checkpointing_kwargs = without_reentry
        score_labels_only(self.model.get_base_model() if args.use_peft else self.model)
        self.add_callback(RecomputeLayers(num_recomputed_layers(self.model, args, most_images(train_dataset))))
        self._stop = StopOnNonFiniteLoss()
        for callback in (self._stop, FollowEpoch([self._evidence])):
            self.add_callback(callback)
        self._set_up_vision_cache()
        self._check_predictions()
        self._scored: list[list[tuple[float, int]]] = []

    def _check_predictions(self) -> None:
        """What is wrong with the answers to write is told before the first step."""
        if self.args.predict_with_generate:
            if self.eval_dataset is None:
                raise InputError("predict_with_generate: there is no validation set; set eval_strategy and give one")
            for rows in self.eval_dataset.values() if isinstance(self.eval_dataset, dict) else [self.eval_dataset]:
                PredictionSample(rows, self.args, self._evidence)

    def _set_up_vision_cache(self) -> None:
        args = self.args
        beside = args.data_dir if args.data_dir and Path(args.data_dir).is_dir() else args.output_dir
        folder = Path(beside) / "cache" / "vision"
        use_vision_cache(self.model, args.vision_cache, args.vision_cache_gib, folder, args.world_size)
        if args.vision_cache != "off" and args.process_index == 0:
            mllama, processor = mllama_inside(self.model), self.processing_class.image_processor
            print(describe_size(mllama, processor, self.train_dataset, args.vision_cache, args.vision_cache_gib))

    def describe_cuts(self) -> str:
        """What `max_length` costs the training chats, each at its longest: told all of its evidence."""
        told = "" if self.args.evidence == "none" else f"with evidence ({self.args.evidence}), "
        return told + self.data_collator.describe_cuts(self._evidence.longest(self.train_dataset))

    def train(self, *args: Any, **kwargs: Any) -> TrainOutput:
        """As in TRL.

        Raises:
            InputError: No chat has a word to learn, memory runs out, or a loss is not finite.
        """
        if isinstance(self.data_collator, MllamaCollator) and isinstance(self.train_dataset, datasets.Dataset):
            self.data_collator.require_words(self._evidence.longest(self.train_dataset))
        # Around it all: `auto_find_batch_size` works inside, and the optimiser's states first appear in its step.
        with naming_what_takes_memory(self._describe_step, self.args.output_dir):
            return super().train(*args, **kwargs)

    def _describe_step(self) -> str:
        num_images = self._batch["aspect_ratio_ids"].shape[1] if "aspect_ratio_ids" in self._batch else 0
        count = partial(count_run, config=self.model.config, num_images=num_images)
        return (
            f"step {self.state.global_step}: out of memory{self._name_longest()}. For the longest chats "
            f"{what_would_fit(self.args, count)}"
        )

    def _describe_evaluation(self) -> str:
        answers = "" if self._batch or not self.args.predict_with_generate else " or predict_max_new_tokens"
        return (
            f"evaluation at step {self.state.global_step}: out of memory{self._name_longest()}; lower "
            f"per_device_eval_batch_size ({self.args.per_device_eval_batch_size}){answers}"
        )

    def _name_longest(self) -> str:
        if not self._batch:
            return ""
        return f"; the longest row of the batch is {describe_longest(self._batch, self._ids)}"

    def prediction_step(self, model: nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> tuple:
        """As `SFTTrainer.prediction_step`; remembers what perplexity is made of, whatever the run's loss is."""
        rows: list[tuple[float, int]] = []

        def remember(_: nn.Module, __: tuple, output: Any) -> None:
            if isinstance(output, FusedCausalLMOutput):
                nll, num_tokens = -output.log_probs.double().sum(dim=1), output.label_mask.sum(dim=1)
                rows[:] = zip(nll.tolist(), num_tokens.tolist(), strict=True)

        hook = self.model.register_forward_hook(remember)
        try:
            return super().prediction_step(model, inputs, *args, **kwargs)
        finally:
            hook.remove()
            self._scored.append(rows)

    def evaluation_loop(
        self,
        dataloader: DataLoader,
        description: str,
        prediction_loss_only: bool | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> EvalLoopOutput:
        """Adds `perplexity`, over all labelled tokens, and where asked for the scores of written answers."""
        with naming_what_takes_memory(self._describe_evaluation, self.args.output_dir):
            self._scored, self._batch = [], {}
            output = super().evaluation_loop(
                dataloader, description, prediction_loss_only, ignore_keys, metric_key_prefix
            )
            self._batch = {}
            figures = self._perplexity(len(dataloader.dataset)) | self._score_answers(dataloader)
        output.metrics.update({f"{metric_key_prefix}_{name}": figure for name, figure in figures.items()})
        return output

    def _perplexity(self, num_rows: int) -> dict[str, float]:
        # The processes take the batches in turn; rows that fill up the last ones are the set's first ones again.
        steps = zip_longest(*gather_objects(self._scored), fillvalue=())
        rows = [row for step in steps for batch in step for row in batch][:num_rows]
        num_tokens = sum(count for _, count in rows)
        if not num_tokens:
            return {}
        mean = sum(nll for nll, _ in rows) / num_tokens
        return {"perplexity": math.exp(mean) if mean < 700 else math.inf}

    def _score_answers(self, dataloader: DataLoader) -> dict[str, float]:
        if not self.args.predict_with_generate:
            return {}
        sample = PredictionSample(getattr(dataloader.dataset, "rows", dataloader.dataset), self.args, self._evidence)
        with self.compute_loss_context_manager():
            return sample.score(sample.predict(self.model, self.processing_class))

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        super()._save(output_dir, state_dict)
        if self.args.use_peft and self.args.reference_attention_mask:
            # An adapter's folder has no config of the model; `load_decoder` reads the rule from this one.
            self.model.get_base_model().config.save_pretrained(output_dir or self.args.output_dir)

    def _get_train_sampler(self, train_dataset: datasets.Dataset | None = None) -> Sampler | None:
        """Transformers' own order, unless rows of like length or of one image are to come together."""
        rows, args = self.train_dataset if train_dataset is None else train_dataset, self.args
        by_length = args.train_sampling_strategy == "group_by_length"
        if not (by_length or args.same_image_together):
            return super()._get_train_sampler(train_dataset)
        collator = getattr(self.data_collator, "collator", self.data_collator)
        return BatchSampler(
            len(rows),
            args.per_device_train_batch_size,
            identify_images(rows) if args.same_image_together else None,
            measure_lengths(self._evidence.longest(rows), collator, args.length_column_name) if by_length else None,
            args.gradient_accumulation_steps * args.world_size,
            args.seed if args.data_seed is None else args.data_seed,
        )

    def _get_eval_sampler(self, eval_dataset: datasets.Dataset) -> None:
        """In order; transformers would take `train_sampling_strategy` here too, and look for `input_ids`."""

    def _get_dataloader(self, dataset: Any, *args: Any, sampler_fn: Callable | None = None, **kwargs: Any) -> Any:
        collator = self.data_collator
        training = bool(kwargs.get("is_training"))
        rows = ReadableRows(dataset, "" if training else ", and counts twice in the evaluation")
        rows = self._evidence.put_into(rows, training)
        # Samplers look at the dataset's columns, which only the dataset itself has.
        sampler = (lambda _: sampler_fn(dataset)) if sampler_fn is not None else None
        try:
            self.data_collator = NamedBatches(collator)
            return super()._get_dataloader(rows, *args, sampler_fn=sampler, **kwargs)
        finally:
            self.data_collator = collator

    def _prepare_inputs(self, inputs: dict[str, Any]) -> dict[str, Any]:
        inputs = dict(super()._prepare_inputs(inputs))
        self._ids = inputs.pop("ids", [])
        self._batch = {name: inputs[name] for name in ("attention_mask", "aspect_ratio_ids") if name in inputs}
        if self.args.world_size > 1:
            inputs = with_empty_image(inputs, self.model.config)
        return inputs

    def training_step(self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Any = None) -> Tensor:
        """As in TRL."""
        loss = super().training_step(model, inputs, num_items_in_batch)
        self._stop.watch(loss, self._ids)
        if self.args.world_size == 1 and not self.is_deepspeed_enabled and "pixel_values" not in inputs:
            # As among several processes, which all run the same layers: AdamW passes over weights without a gradient.
            for parameter in model.parameters():
                if parameter.requires_grad and parameter.grad is None:
                    parameter.grad = torch.zeros_like(parameter)
        return loss

    def _get_grad_norm(self, model: nn.Module, grad_norm: Tensor | None = None) -> Tensor | float | None:
        norm = super()._get_grad_norm(model, grad_norm)
        self._stop.watch_gradients(norm, self.accelerator)
        return norm

    def _load_from_checkpoint(self, *args: Any, **kwargs: Any) -> None:
        """As the Trainer does; PEFT reads adapters as fp32, but those of quantised runs train in bf16."""
        dtypes = {name: parameter.dtype for name, parameter in self.model.named_parameters()}
        super()._load_from_checkpoint(*args, **kwargs)
        for name, parameter in self.model.named_parameters():
            if parameter.requires_grad:
                parameter.data = parameter.data.to(dtypes[name])

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """None: TRL's draft is that of a text model, without the base model's name."""

    def _save_checkpoint(self, *args: Any, **kwargs: Any) -> None:
        with saving_to(self.args.output_dir):
            super()._save_checkpoint(*args, **kwargs)
