"""What of a SigLIP learns: a frozen tower, or LoRA adapters in place of the weights."""

from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel
from peft.utils import SAFETENSORS_WEIGHTS_NAME
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import SiglipModel

from medfinetune.encoder.config import SigLIPConfig
from medfinetune.encoder.model import load_encoder
from medfinetune.encoder.parameter_groups import SCALE_AND_BIAS
from medfinetune.errors import InputError


class SigLIPAdapter(PeftModel):
    """LoRA on a SigLIP whose temperature and bias learn too, and are saved with the adapter.

    PEFT's `modules_to_save` takes modules, and these two are bare parameters. They stand in the adapter's file under
    their own names, where plain `PeftModel.from_pretrained` finds them.
    """

    def save_pretrained(self, save_directory: str, *args: Any, **kwargs: Any) -> None:
        """As `PeftModel.save_pretrained`; temperature and bias go into the same file."""
        super().save_pretrained(save_directory, *args, **kwargs)
        if kwargs.get("is_main_process", True):
            path = Path(save_directory) / SAFETENSORS_WEIGHTS_NAME
            weights = kwargs.get("state_dict") or self.state_dict()
            scalars = {name: value.cpu() for name, value in weights.items() if name.endswith(SCALE_AND_BIAS)}
            save_file(load_file(path) | scalars, path, metadata={"format": "pt"})


def prepare_to_learn(model: nn.Module, args: SigLIPConfig) -> nn.Module:
    """Freezes a tower and adds adapters, as the run's settings ask; temperature and bias learn in every case.

    Returns:
        The model itself, or a `SigLIPAdapter` around it.

    Raises:
        InputError: The model is an adapter already, or `lora_target_modules` matches nothing that would learn.
    """
    if isinstance(model, PeftModel):
        raise InputError(
            f"model_name_or_path: {args.model_name_or_path} is an adapter; train from its merged copy (merge: true)"
        )
    if args.freeze != "none":
        freeze_tower(getattr(model, f"{args.freeze}_model"))
    return add_lora(model, args) if args.use_peft else model


def freeze_tower(tower: nn.Module) -> None:
    """Takes a tower out of training, in place: no gradient, no stored activations, no dropout, whatever comes later."""
    tower.requires_grad_(False)
    tower.eval()
    # On the instance, so that the model stays a plain SiglipModel; the Trainer calls `train()` at each step.
    tower.train = lambda mode=True: tower
    tower.forward = torch.no_grad()(tower.forward)


def add_lora(model: SiglipModel, args: SigLIPConfig) -> SigLIPAdapter:
    """Wraps a SigLIP in LoRA adapters (Hu et al. 2021, arXiv:2106.09685); they begin as no change.

    Raises:
        InputError: `lora_target_modules` matches no module of a tower that is not frozen.
    """
    config = LoraConfig(
        r=args.lora_r,
        lora_alpha=args.lora_alpha,
        lora_dropout=args.lora_dropout,
        target_modules=args.lora_target_modules,
        exclude_modules=None if args.freeze == "none" else rf".*{args.freeze}_model.*",
        base_model_name_or_path=model.name_or_path,
        revision=args.model_revision,
    )
    try:
        with torch.random.fork_rng():
            torch.manual_seed(args.seed)
            adapter = SigLIPAdapter(model, config)
    except ValueError as error:
        cause = " ".join(str(error).split())[:200]
        raise InputError(f"lora_target_modules: {args.lora_target_modules} does not fit a SigLIP ({cause})") from error
    model.logit_scale.requires_grad_(True)
    model.logit_bias.requires_grad_(True)
    return adapter


def save_merged(adapter_dir: str | Path, output_dir: str | Path) -> None:
    """Writes an adapter and the weights it stands on as one plain SigLIP, with its processor.

    Args:
        adapter_dir: Where the adapter was saved; the base model is loaded anew.
        output_dir: A folder of its own.
    """
    model, processor = load_encoder(str(adapter_dir))
    model.merge_and_unload().save_pretrained(output_dir)
    processor.save_pretrained(output_dir)


def save_merged_copies(trainer: Any, args: SigLIPConfig) -> None:
    """Where `args.merge` is set, writes `merged/` into the output folder, and into its `wise_ft/` where there is one.

    Args:
        trainer: A `Trainer` that has saved its model.
        args: Its settings.
    """
    if args.merge and trainer.is_world_process_zero():
        for folder in (Path(args.output_dir), Path(args.output_dir) / "wise_ft"):
            if (folder / "adapter_config.json").is_file():
                save_merged(folder, folder / "merged")
                print(f"saved to {folder / 'merged'}: adapter and weights as one plain SigLIP")
