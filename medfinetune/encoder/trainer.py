"""The Hugging Face Trainer with SigLIP's loss and with metrics over the whole evaluation set."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import datasets
import torch
from accelerate import DistributedType
from accelerate.utils.memory import clear_device_cache
from torch import Tensor, nn
from transformers import EarlyStoppingCallback, EvalPrediction, Trainer
from transformers.trainer_utils import EvalLoopOutput, TrainOutput

from medfinetune.distributed import gather, rank, world_size
from medfinetune.encoder.adapter import prepare_to_learn
from medfinetune.encoder.cache import PairCache
from medfinetune.encoder.checks import require_honoured, require_one_to_choose_by
from medfinetune.encoder.collator import SigLIPCollator
from medfinetune.encoder.config import SigLIPConfig
from medfinetune.encoder.exact import Loss, exact_backward, whole_batch_loss
from medfinetune.encoder.metrics import embed_texts
from medfinetune.encoder.model import set_text_length
from medfinetune.encoder.parameter_groups import SCALE_AND_BIAS, learning_rates, split_groups
from medfinetune.encoder.preflight import count_run
from medfinetune.encoder.sampler import UniqueCaptionSampler, pair_keys
from medfinetune.encoder.temperature import initialise_temperature_and_bias, scale_and_bias
from medfinetune.evaluation.while_training import EvaluatedRows, read_known_tasks
from medfinetune.preflight.advice import what_would_fit
from medfinetune.training import FollowEpoch, NamedBatches, StopOnNonFiniteLoss, naming_what_takes_memory


class SigLIPTrainer(Trainer):
    """Fine-tunes a `SiglipModel` with the learnable temperature and bias sigmoid loss.

    The loss is that of the whole batch of all processes, whatever `micro_batch_size`; pairs that say the same are
    known (`duplicates`). Gradient accumulation on top averages such losses.

    Logs `logit_scale` (the log that the checkpoint stores), `temperature` (its exponential) and `logit_bias`; keeps
    these two parameters out of weight decay; evaluates recall and mean average precision over the whole set, in both
    directions and by language, calibration, nearest neighbours, and zero-shot grades by the tasks of `zero_shot_file`.
    """

    def __init__(
        self,
        model: nn.Module,
        args: SigLIPConfig,
        train_dataset: datasets.Dataset | PairCache,
        eval_dataset: datasets.Dataset | PairCache | dict[str, datasets.Dataset | PairCache] | None = None,
        processing_class: Any = None,
        data_collator: Callable | None = None,
        **kwargs: Any,
    ):
        """
        Args:
            model: A `SiglipModel`.
            args: The run's settings.
            train_dataset: Rows with `images` and `text` (as `load_pairs` gives them), or a `PairCache`.
            eval_dataset: Rows that also have `language` and `pixel_sha256`; or several such sets by name.
            processing_class: The `SiglipProcessor`; saved with every checkpoint.
            data_collator: A `SigLIPCollator` where left out.
            **kwargs: As for `transformers.Trainer`.
        """
        if processing_class is not None:
            set_text_length(model, processing_class, args.max_text_length)
        sets = [] if eval_dataset is None else [eval_dataset]
        if isinstance(eval_dataset, dict):
            sets = list(eval_dataset.values())
            require_one_to_choose_by(args, list(eval_dataset))
        require_honoured(model, args, train_dataset, sets)
        self._tasks = read_known_tasks(args.zero_shot_file, sets)
        self._by_label = args.duplicates == "positive"
        # Before the first step, so that what is wrong with them is said at once.
        self._known_rows = [(dataset, EvaluatedRows(dataset, self._tasks, self._by_label)) for dataset in sets]
        initialise_temperature_and_bias(model, args.temperature_bias_init, args.num_texts_compared)
        super().__init__(
            model=prepare_to_learn(model, args),
            args=args,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            processing_class=processing_class,
            data_collator=data_collator or SigLIPCollator(processing_class),
            compute_metrics=self._figures,
            **kwargs,
        )
        self._ids: list[str] = []
        self._stop = StopOnNonFiniteLoss()
        self.add_callback(self._stop)
        self._follow_epoch = FollowEpoch()
        if hasattr(train_dataset, "set_epoch"):
            self._follow_epoch.followers.append(train_dataset)
        self.add_callback(self._follow_epoch)
        if args.early_stopping_patience:
            self.add_callback(EarlyStoppingCallback(args.early_stopping_patience, args.early_stopping_threshold))

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Tensor],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | None = None,
    ) -> Any:
        """Loss of one batch of this process alone, in one piece; `training_step` takes in the other processes."""
        inputs = dict(inputs)
        groups = inputs.pop("group_ids", None)
        outputs = model(**inputs)
        log_scale, bias = scale_and_bias(model)
        loss = self._loss(groups, groups, 0)(outputs.image_embeds, outputs.text_embeds, log_scale.exp(), bias)
        return (loss, outputs) if return_outputs else loss

    def train(self, *args: Any, **kwargs: Any) -> TrainOutput:
        """As in transformers; raises `InputError` where memory runs out or a loss is not finite."""
        # Around it all: `auto_find_batch_size` works inside, and the optimiser's states first appear in its step.
        with naming_what_takes_memory(self._describe_step, self.args.output_dir):
            return super().train(*args, **kwargs)

    def _describe_step(self) -> str:
        fits = what_would_fit(self.args, partial(count_run, config=self.model.config))
        return f"step {self.state.global_step}: out of memory. For such batches {fits}"

    def training_step(
        self, model: nn.Module, inputs: dict[str, Tensor], num_items_in_batch: Tensor | int | None = None
    ) -> Tensor:
        """Loss and gradients of the whole batch: all micro-batches, all processes."""
        loss = self._whole_step(model, inputs, num_items_in_batch)
        self._stop.watch(loss, self._ids)
        return loss

    def _get_grad_norm(self, model: nn.Module, grad_norm: Tensor | None = None) -> Tensor | float | None:
        norm = super()._get_grad_norm(model, grad_norm)
        self._stop.watch_gradients(norm, self.accelerator)
        return norm

    def _get_dataloader(self, *args: Any, **kwargs: Any) -> Any:
        collator = self.data_collator
        try:
            self.data_collator = NamedBatches(collator)
            return super()._get_dataloader(*args, **kwargs)
        finally:
            self.data_collator = collator

    def _prepare_inputs(self, inputs: dict[str, Any]) -> dict[str, Any]:
        inputs = dict(super()._prepare_inputs(inputs))
        self._ids = inputs.pop("ids", [])
        return inputs

    def _whole_step(
        self, model: nn.Module, inputs: dict[str, Tensor], num_items_in_batch: Tensor | int | None
    ) -> Tensor:
        batch_size = len(inputs["input_ids"])
        micro_batch_size = min(self.args.micro_batch_size or batch_size, batch_size)
        if world_size() == 1 and micro_batch_size == batch_size:
            return super().training_step(model, inputs, num_items_in_batch)
        self._enter_step(model)
        inputs = self._prepare_inputs(inputs)
        groups = inputs.pop("group_ids", None)
        all_groups = None if groups is None else gather(groups)
        log_scale, bias = scale_and_bias(model)
        share = 1 / self.current_gradient_accumulation_steps
        self._make_room_for_gradients(model)

        def embed(piece: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
            outputs = model(**piece)
            return outputs.image_embeds, outputs.text_embeds

        loss = exact_backward(
            embed,
            inputs,
            micro_batch_size,
            log_scale,
            bias,
            self._loss(groups, all_groups, rank() * batch_size),
            lambda surrogate, last: self._backward(model, surrogate * share, last),
            lambda: self.accelerator.no_sync(model),
        )
        return loss * share

    def _enter_step(self, model: nn.Module) -> None:
        """What `Trainer.training_step` does besides the loss and its gradients."""
        model.train()
        if callable(getattr(self.optimizer, "train", None)):
            self.optimizer.train()  # schedule-free optimizers keep other weights for evaluation
        every = self.args.torch_empty_cache_steps
        if every is not None and self.state.global_step % every == 0:
            clear_device_cache()

    def _make_room_for_gradients(self, model: nn.Module) -> None:
        """Gives gradients their memory before the activations get theirs.

        Made during the first backward, they would settle in the gaps that its activations leave, and the next
        micro-batch would need new memory: 15% more at the peak on a CPU. DeepSpeed and FSDP keep gradients themselves.
        """
        if self.accelerator.distributed_type in (DistributedType.NO, DistributedType.MULTI_CPU):
            for parameter in model.parameters():
                if parameter.requires_grad and parameter.grad is None:
                    parameter.grad = torch.zeros_like(parameter)

    def _loss(self, groups: Tensor | None, all_groups: Tensor | None, first_text: int) -> Loss:
        return whole_batch_loss(groups, all_groups, first_text, self.args.duplicates, self.args.loss_type)

    def _backward(self, model: nn.Module, loss: Tensor, last: bool) -> None:
        if self.accelerator.distributed_type != DistributedType.DEEPSPEED:
            self.accelerator.backward(loss)
        elif last:
            # At the end of an accumulation this also steps.
            self.accelerator.backward(loss, scale_wrt_gas=False)
        else:
            model.set_gradient_accumulation_boundary(False)
            model.backward(loss, scale_wrt_gas=False)

    def get_decay_parameter_names(self, model: nn.Module) -> list[str]:
        """Weight decay would pull the temperature towards 1: it and the bias are left out."""
        names = super().get_decay_parameter_names(model)
        return [name for name in names if not name.endswith(SCALE_AND_BIAS)]

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """Gives each tower and layer the rate that `layer_decay`, `vision_lr`, `text_lr` and `logit_lr` ask for."""
        if self.optimizer is None:
            optimizer, model, args = super().create_optimizer(model), model or self.model, self.args
            layers = {
                "vision": model.config.vision_config.num_hidden_layers,
                "text": model.config.text_config.num_hidden_layers,
            }
            names = [name for name, _ in model.named_parameters()]
            rates = args.learning_rate, args.layer_decay, args.vision_lr, args.text_lr, args.logit_lr
            split_groups(optimizer, model, learning_rates(names, layers, *rates))
        return self.optimizer

    def _get_train_sampler(self, train_dataset: Any = None) -> torch.utils.data.Sampler | None:
        if not self.args.unique_captions:
            return super()._get_train_sampler(train_dataset)
        seed = self.args.seed if self.args.data_seed is None else self.args.data_seed
        batch_size = self.args.train_batch_size * self.args.world_size
        dataset = train_dataset or self.train_dataset
        texts, image_keys = pair_keys(dataset)
        input_ids = getattr(dataset, "input_ids", None)
        if input_ids is None and self.processing_class is not None:
            collator = SigLIPCollator(self.processing_class, self.args.max_text_length)
            input_ids = collator.texts(texts)["input_ids"]
        sampler = UniqueCaptionSampler(texts, image_keys, batch_size, seed, input_ids)
        self._follow_epoch.followers.append(sampler)
        if self.is_world_process_zero():
            repeats = sampler.num_repeats(sampler.order(0))
            print(
                f"unique_captions: {repeats:,} of {len(sampler):,} pairs share text or image with another of their "
                f"batch of {batch_size}, which could not be avoided"
            )
        return sampler

    def prediction_step(
        self,
        model: nn.Module,
        inputs: dict[str, Tensor],
        prediction_loss_only: bool,
        ignore_keys: list[str] | None = None,
    ) -> tuple[Tensor | None, Any, Tensor | None]:
        """Returns both embeddings and no loss: a contrastive loss depends on the evaluation's batch size."""
        inputs = self._prepare_inputs(inputs)
        inputs.pop("group_ids", None)
        with torch.no_grad(), self.compute_loss_context_manager():
            outputs = model(**inputs)
        embeds = (outputs.image_embeds.float(), outputs.text_embeds.float())
        # The Trainer asks for labels before it computes metrics; which row is which follows from their order.
        return None, embeds, torch.zeros(len(embeds[0]), device=embeds[0].device)

    def evaluation_loop(self, dataloader: Any, *args: Any, **kwargs: Any) -> EvalLoopOutput:
        """As the Trainer's; the figures are those of the rows that are evaluated, whichever set they are of.

        Raises:
            InputError: Memory runs out.
        """
        known = [rows for dataset, rows in self._known_rows if dataset is dataloader.dataset]
        self._rows = known[0] if known else EvaluatedRows(dataloader.dataset, self._tasks, self._by_label)
        what = f"evaluation at step {self.state.global_step}: out of memory; lower per_device_eval_batch_size"
        what += f" ({self.args.per_device_eval_batch_size})"
        with naming_what_takes_memory(lambda: what, self.args.output_dir):
            return super().evaluation_loop(dataloader, *args, **kwargs)

    def _figures(self, prediction: EvalPrediction) -> dict[str, float]:
        """Every process takes them all: where the model is split over them, each must go through it."""

        def embed(texts: list[str]) -> Tensor:
            with self.compute_loss_context_manager():
                return embed_texts(self.model, self.processing_class, texts, self.args.per_device_eval_batch_size)

        embeds = (torch.as_tensor(part) for part in prediction.predictions)
        scale, bias = scale_and_bias(self.model)
        return self._rows.figures(*embeds, embed, scale.exp().item(), bias.item())

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Adds temperature and bias to every line that has a training loss."""
        if "loss" in logs:
            scale, bias = scale_and_bias(self.model)
            log_scale = scale.item()
            logs |= {"logit_scale": log_scale, "temperature": math.exp(log_scale), "logit_bias": bias.item()}
        super().log(logs, *args, **kwargs)
