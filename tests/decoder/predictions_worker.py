"""Evaluates with written answers in each of several processes:

python -m torch.distributed.run --nproc_per_node 2 tests/decoder/predictions_worker.py tiny_mllama folder
"""

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

import datasets

from medfinetune.decoder.model import load_decoder
from medfinetune.decoder.trainer import MllamaSFTTrainer
from medfinetune.distributed import leave, rank
from tests.decoder.test_trainer import config

checkpoint, folder = sys.argv[1], Path(sys.argv[2])
validation = datasets.load_from_disk(str(folder / "validation"))
for samples in (3, 1):
    args = config(
        folder,
        predict_with_generate=True,
        predict_samples=samples,
        predict_max_new_tokens=6,
        lexicon="phantom",
        eval_strategy="steps",
        eval_steps=1,
        per_device_eval_batch_size=2,
        max_length=128,
        max_steps=1,
    )
    model, processor = load_decoder(checkpoint)
    trainer = MllamaSFTTrainer(model, args, validation, validation, processor)
    (folder / f"{samples}-{rank()}.json").write_text(json.dumps(trainer.evaluate()))
    trainer.train()  # the same within a run, wrapped for several processes
leave()
