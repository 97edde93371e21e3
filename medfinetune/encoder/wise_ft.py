"""Weights between the start checkpoint and the fine-tuned one: what was known before is forgotten less."""

import json
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor, nn

from medfinetune.encoder.config import SigLIPConfig
from medfinetune.encoder.model import load_encoder
from medfinetune.errors import InputError

FIGURES_FILE = "wise_ft.json"


def sweep_wise_ft(trainer: Any, args: SigLIPConfig) -> None:
    """Evaluates mixtures of start and fine-tuned weights, prints the figures and keeps the best in `wise_ft`.

    WiSE-FT (Wortsman et al. 2022, arXiv:2109.01903, equation 1): `(1 - alpha) * start + alpha * fine_tuned`, for
    temperature (its log) and bias too. An adapter is scaled by alpha, which is the same. Does nothing where
    `args.wise_ft` is empty. The trainer's model is afterwards as it was.

    Args:
        trainer: A `SigLIPTrainer` after training, with a validation set.
        args: Its settings; `model_name_or_path` is read again, so that no copy is held during training.

    Raises:
        InputError: The weights are spread over processes (ZeRO-3, FSDP), there are several validation sets, or the
            start checkpoint has changed.
    """
    if not args.wise_ft:
        return
    if getattr(trainer, "is_fsdp_enabled", False) or _zero_stage(trainer) == 3:
        raise InputError("wise_ft: the weights are spread over processes (ZeRO-3 or FSDP), which it cannot mix")
    if isinstance(trainer.eval_dataset, dict):
        raise InputError("wise_ft: several validation sets are given, and it chooses by one; give one eval_dataset")
    model = trainer.accelerator.unwrap_model(trainer.model)
    learned = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    tuned = {name: parameter.detach().cpu().clone() for name, parameter in learned.items()}
    start = _start_weights(model, tuned, args)
    wanted = f"wise_ft_{args.metric_for_best_model.removeprefix('eval_')}"
    figures = []
    for alpha in sorted(set(args.wise_ft)):
        _mix(learned, start, tuned, alpha)
        metrics = trainer.predict(trainer.eval_dataset, metric_key_prefix="wise_ft").metrics
        if wanted not in metrics:
            raise InputError(f"metric_for_best_model: {args.metric_for_best_model} is none of the validation figures")
        figures.append({"alpha": alpha} | {key: value for key, value in metrics.items() if "_per_second" not in key})
    sign = 1 if args.greater_is_better else -1
    # Of equal ones, the least changed.
    best = max(figures, key=lambda row: (sign * row[wanted], -row["alpha"]))
    folder = Path(args.output_dir) / "wise_ft"
    _mix(learned, start, tuned, best["alpha"])
    trainer.save_model(str(folder))
    _mix(learned, tuned, tuned, 1.0)
    if trainer.is_world_process_zero():
        _print_table(figures, best, wanted)
        found = {"alpha": best["alpha"], "metric": wanted.removeprefix("wise_ft_"), "figures": figures}
        (folder / FIGURES_FILE).write_text(json.dumps(found, indent=2), encoding="utf-8")


def _start_weights(model: nn.Module, tuned: dict[str, Tensor], args: SigLIPConfig) -> dict[str, Tensor]:
    """What each parameter that learned was before, read from the start checkpoint at the run's image size."""
    size = model.config.vision_config.image_size
    checkpoint, _ = load_encoder(args.model_name_or_path, args.model_revision, size)
    before = checkpoint.state_dict()
    start = {}
    for name, weight in tuned.items():
        plain = name.removeprefix("base_model.model.") if isinstance(model, PeftModel) else name
        if "lora_" in plain:
            # The change is B A: with B scaled and A as it is, the change is scaled.
            start[name] = torch.zeros_like(weight) if "lora_B" in plain else weight
        elif plain in before and before[plain].shape == weight.shape:
            start[name] = before[plain].to(weight.dtype)
        else:
            raise InputError(f"wise_ft: {args.model_name_or_path} has no {plain} of shape {tuple(weight.shape)}")
    return start


@torch.no_grad()
def _mix(learned: dict[str, nn.Parameter], start: dict[str, Tensor], tuned: dict[str, Tensor], alpha: float) -> None:
    for name, parameter in learned.items():
        # Not `lerp`, whose ends are not exact.
        ends = {0.0: start[name], 1.0: tuned[name]}
        parameter.copy_(ends[alpha] if alpha in ends else (1 - alpha) * start[name] + alpha * tuned[name])


def _zero_stage(trainer: Any) -> int:
    plugin = getattr(trainer.accelerator.state, "deepspeed_plugin", None)
    return plugin.zero_stage if plugin is not None else 0


def _print_table(figures: list[dict[str, float]], best: dict[str, float], wanted: str) -> None:
    shown = [f"wise_ft_recall_at_{k}" for k in (1, 5, 10)]
    shown = [wanted, *(key for key in shown if key != wanted and key in best)]
    print("alpha  " + "  ".join(key.removeprefix("wise_ft_") for key in shown))
    for row in figures:
        cells = "  ".join(f"{row[key]:{len(key.removeprefix('wise_ft_'))}.4f}" for key in shown)
        print(f"{row['alpha']:5.2f}  {cells}{'  <- kept in wise_ft' if row is best else ''}")
