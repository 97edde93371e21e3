"""Trains and evaluates in one of several processes:

python -m torch.distributed.run --nproc_per_node 2 tests/decoder/processes_worker.py tiny_mllama folder
"""

import json
import os
import sys
import warnings
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

import datasets
import torch

from medfinetune.decoder.model import load_decoder
from medfinetune.decoder.trainer import MllamaSFTTrainer
from medfinetune.distributed import leave, rank, world_size
from tests.decoder.test_trainer import config


def trained(checkpoint, rows, folder, use_peft):
    """Weights after three steps of four rows."""
    torch.manual_seed(0)  # of the adapters
    model, processor = load_decoder(checkpoint)
    args = config(
        folder,
        use_peft=use_peft,
        lora_dropout=0.0,
        per_device_train_batch_size=4 // int(os.environ.get("WORLD_SIZE", 1)),
        train_sampling_strategy="sequential",
        learning_rate=1e-2,
        adam_epsilon=1e-3,  # or gradients that are rounding alone would decide where weights go
        weight_decay=0.1,
        max_steps=3,
        save_strategy="no",
    )
    trainer = MllamaSFTTrainer(model, args, rows, None, processor)
    trainer.train()
    return {name: p.detach().clone() for name, p in trainer.model.named_parameters() if p.requires_grad}


def perplexities(checkpoint, rows, folder):
    """Of five rows, two at once, with every loss."""
    measured = []
    for loss in ({}, {"loss_type": "dft"}, {"label_smoothing_factor": 0.1}):
        model, processor = load_decoder(checkpoint)
        args = config(folder, eval_strategy="steps", eval_steps=1, per_device_eval_batch_size=2, **loss)
        with warnings.catch_warnings(category=FutureWarning, action="ignore"):  # TRL's, of label smoothing
            measured.append(MllamaSFTTrainer(model, args, rows, rows, processor).evaluate()["eval_perplexity"])
    return measured


def work(checkpoint, folder):
    for use_peft in (False, True):
        weights = trained(checkpoint, datasets.load_from_disk(str(folder / "train")), folder, use_peft)
        torch.save(weights, folder / f"{use_peft}-{world_size()}-{rank()}.pt")
    measured = perplexities(checkpoint, datasets.load_from_disk(str(folder / "validation")), folder)
    (folder / f"perplexities-{world_size()}-{rank()}.json").write_text(json.dumps(measured))


if __name__ == "__main__":
    work(sys.argv[1], Path(sys.argv[2]))
    leave()
