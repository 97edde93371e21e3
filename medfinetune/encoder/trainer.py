"""The Hugging Face Trainer with SigLIP's loss and with metrics over the whole evaluation set."""

import math
from collections.abc import Callable
from typing import Any

import datasets
import torch
from torch import Tensor, nn
from transformers import EarlyStoppingCallback, EvalPrediction, Trainer

from medfinetune.encoder.adapter import prepare_to_learn
from medfinetune.encoder.cache import PairCache
from medfinetune.encoder.collator import SigLIPCollator
from medfinetune.encoder.config import SigLIPConfig
from medfinetune.encoder.loss import sigmoid_loss
from medfinetune.encoder.metrics import retrieval_metrics
from medfinetune.encoder.parameter_groups import SCALE_AND_BIAS, learning_rates, split_groups
from medfinetune.encoder.sampler import FollowEpoch, UniqueCaptionSampler, pair_keys
from medfinetune.training import StopOnNonFiniteLoss


class SigLIPTrainer(Trainer):
    """Fine-tunes a `SiglipModel` with the learnable temperature and bias sigmoid loss.

    Logs `logit_scale` (the log that the checkpoint stores), `temperature` (its exponential) and `logit_bias`; keeps
    these two parameters out of weight decay; evaluates recall over the whole set, in both directions and by language.
    """

    def __init__(
        self,
        model: nn.Module,
        args: SigLIPConfig,
        train_dataset: datasets.Dataset | PairCache,
        eval_dataset: datasets.Dataset | PairCache | None = None,
        processing_class: Any = None,
        data_collator: Callable | None = None,
        **kwargs: Any,
    ):
        """
        Args:
            model: A `SiglipModel`.
            args: The run's settings.
            train_dataset: Rows with `images` and `text` (as `load_pairs` gives them), or a `PairCache`.
            eval_dataset: Rows that also have `language` and `pixel_sha256`.
            processing_class: The `SiglipProcessor`; saved with every checkpoint.
            data_collator: A `SigLIPCollator` where left out.
            **kwargs: As for `transformers.Trainer`.
        """
        initialise_temperature_and_bias(model, args.temperature_bias_init)
        super().__init__(
            model=prepare_to_learn(model, args),
            args=args,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            processing_class=processing_class,
            data_collator=data_collator or SigLIPCollator(processing_class, args.max_text_length),
            compute_metrics=None if eval_dataset is None else _metrics_of(eval_dataset),
            **kwargs,
        )
        self.add_callback(StopOnNonFiniteLoss())
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
        """Sigmoid loss of one batch: every other text of this process's batch is a negative."""
        outputs = model(**inputs)
        scale, bias = _scale_and_bias(model)
        loss = sigmoid_loss(outputs.image_embeds, outputs.text_embeds, scale.exp(), bias)
        return (loss, outputs) if return_outputs else loss

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
        sampler = UniqueCaptionSampler(*pair_keys(train_dataset or self.train_dataset), batch_size, seed)
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
        with torch.no_grad(), self.compute_loss_context_manager():
            outputs = model(**inputs)
        embeds = (outputs.image_embeds.float(), outputs.text_embeds.float())
        # The Trainer asks for labels before it computes metrics; which row is which follows from their order.
        return None, embeds, torch.zeros(len(embeds[0]), device=embeds[0].device)

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Adds temperature and bias to every line that has a training loss."""
        if "loss" in logs:
            scale, bias = _scale_and_bias(self.model)
            log_scale = scale.item()
            logs |= {"logit_scale": log_scale, "temperature": math.exp(log_scale), "logit_bias": bias.item()}
        super().log(logs, *args, **kwargs)


def initialise_temperature_and_bias(model: nn.Module, init: str) -> None:
    """Sets the two learnable scalars.

    Args:
        model: A `SiglipModel`.
        init: `keep` leaves the checkpoint's own; `paper` sets log 10 and -10 (Zhai et al. 2023, section 3.1), which
            suits a start from scratch and undoes what a pretrained checkpoint has learned.
    """
    if init == "paper":
        with torch.no_grad():
            model.logit_scale.fill_(math.log(10))
            model.logit_bias.fill_(-10.0)


def _scale_and_bias(model: nn.Module) -> tuple[Tensor, Tensor]:
    model = getattr(model, "module", model)
    return model.logit_scale.squeeze(), model.logit_bias.squeeze()


def _metrics_of(dataset: datasets.Dataset | PairCache) -> Callable[[EvalPrediction], dict[str, float]]:
    if isinstance(dataset, PairCache):
        languages, texts, image_keys = dataset.languages, dataset.texts, dataset.image_keys
    else:
        columns = dataset.select_columns(["language", "pixel_sha256", "text"])
        languages, texts = list(columns["language"]), list(columns["text"])
        image_keys = [hashes[0] for hashes in columns["pixel_sha256"]]

    def compute(prediction: EvalPrediction) -> dict[str, float]:
        image_embeds, text_embeds = (torch.as_tensor(embeds) for embeds in prediction.predictions)
        return retrieval_metrics(image_embeds, text_embeds, languages, image_keys, texts)

    return compute
