"""What of a SigLIP run's settings has to be true of its model and data before the first step."""

from typing import Any

from torch import nn

from medfinetune.encoder.augment import AugmentedPairs, augments
from medfinetune.encoder.cache import PairCache
from medfinetune.encoder.config import SigLIPConfig
from medfinetune.errors import InputError


def require_honoured(model: nn.Module, args: SigLIPConfig, train_dataset: Any, eval_datasets: list[Any]) -> None:
    """What the trainer itself cannot do must have been done before: no setting is silently passed over."""
    own = model.config.vision_config.image_size
    if args.image_size_px not in (None, own):
        raise InputError(f"image_size_px: {args.image_size_px}: the model takes {own} px; give load_encoder the size")
    for dataset in (train_dataset, *eval_datasets):
        cached = dataset.input_ids.shape[1] if isinstance(dataset, PairCache | AugmentedPairs) else args.max_text_length
        if cached != args.max_text_length:
            made = f"the pairs were cached with {cached} tokens; give load_encoder the length before"
            raise InputError(f"max_text_length: {args.max_text_length}: {made}")
    asked = augments(args)
    if asked and not isinstance(train_dataset, AugmentedPairs):
        raise InputError(f"{asked[0]}: train_dataset alters no images; make it with medfinetune.augment_pairs")


def require_one_to_choose_by(args: SigLIPConfig, names: list[str]) -> None:
    """Of several validation sets, the figures' names begin with the set's; said here, not at the first evaluation."""
    metric = args.metric_for_best_model
    if args.load_best_model_at_end and not metric.removeprefix("eval_").startswith(tuple(f"{name}_" for name in names)):
        known = f"validation sets are {', '.join(names)}; name one, as in {names[0]}_{metric}"
        raise InputError(f"metric_for_best_model: {metric}: the {known}")
