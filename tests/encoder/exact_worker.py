"""Trains a tiny SigLIP by the real trainer, alone or as one of several processes, and saves what came of it.

python -m torch.distributed.run --nproc_per_node 2 tests/encoder/exact_worker.py '[{"model": ..., "output": ...}]'
"""

import json
import os
import sys

import torch
from accelerate import PartialState
from transformers import TrainerCallback

from medfinetune.distributed import leave
from medfinetune.encoder.config import SigLIPConfig
from medfinetune.encoder.model import load_encoder
from medfinetune.encoder.trainer import SigLIPTrainer

NUM_ROWS = 96


class RandomPairs(torch.utils.data.Dataset):
    """Noise with random words; some share a text, an image or a patient."""

    def __init__(self, vocabulary: int, side_px: int):
        random = torch.Generator().manual_seed(1)
        self.pixel_values = torch.rand(NUM_ROWS, 3, side_px, side_px, generator=random) * 2 - 1
        self.input_ids = torch.randint(5, vocabulary, (NUM_ROWS, 16), generator=random)
        self.group_ids = torch.stack(
            [torch.randint(1, n, (NUM_ROWS,), generator=random) for n in (60, 40, 30, 20, 70)], dim=1
        )

    def __len__(self) -> int:
        return NUM_ROWS

    def __getitem__(self, i: int) -> dict[str, torch.Tensor]:
        return {name: getattr(self, name)[i] for name in ("pixel_values", "input_ids", "group_ids")}


class KeepGradients(TrainerCallback):
    """The gradients of the first step, as the optimizer gets them."""

    def __init__(self):
        self.gradients: dict[str, torch.Tensor] = {}

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        if not self.gradients:
            model = getattr(model, "module", model)
            self.gradients = {n: p.grad.detach().clone() for n, p in model.named_parameters() if p.grad is not None}


def train(model: str, output: str, dtype: str, **changes) -> None:
    if "deepspeed" in changes:
        # Without a GPU DeepSpeed needs its process group made first, and the Trainer must not make another.
        PartialState(backend="gloo")
        changes |= {"accelerator_config": {"use_configured_state": True}, "use_cpu": False}
    network, processor = load_encoder(model)
    network.to(getattr(torch, dtype))
    args = SigLIPConfig(
        **{
            "output_dir": f"{output}.run",
            "use_cpu": True,
            "optim": "sgd",
            "learning_rate": 0.5,
            "lr_scheduler_type": "constant",
            "max_grad_norm": 0.0,
            "max_steps": 3,
            "train_sampling_strategy": "sequential",
            "eval_strategy": "no",
            "save_strategy": "no",
            "disable_tqdm": True,
            "logging_steps": 1,
            "dataloader_pin_memory": False,
        }
        | changes
    )
    keep = KeepGradients()
    data = RandomPairs(network.config.text_config.vocab_size, network.config.vision_config.image_size)
    collate = torch.utils.data.default_collate
    trainer = SigLIPTrainer(network, args, data, None, processor, data_collator=collate, callbacks=[keep])
    trainer.train()
    if args.process_index == 0:
        losses = [line["loss"] for line in trainer.state.log_history if "loss" in line]
        weights = {name: p.detach().cpu() for name, p in network.named_parameters()}
        torch.save({"losses": losses, "gradients": keep.gradients, "weights": weights}, output)


if __name__ == "__main__":
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    for run in json.loads(sys.argv[1]):
        train(**run)
    leave()
