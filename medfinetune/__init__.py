"""Fine-tune SigLIP and Llama 3.2 Vision on medical image and text pairs.

Names are imported when they are first used: `import medfinetune` alone takes no torch.
"""

import importlib
from typing import Any

_HOME = {
    "SigLIPTrainer": "medfinetune.encoder.trainer",
    "SigLIPConfig": "medfinetune.encoder.config",
    "SigLIPCollator": "medfinetune.encoder.collator",
    "augment_pairs": "medfinetune.encoder.augment",
    "sweep_wise_ft": "medfinetune.encoder.wise_ft",
    "save_merged_copies": "medfinetune.encoder.adapter",
    "sigmoid_loss": "medfinetune.encoder.loss",
    "load_encoder": "medfinetune.encoder.model",
    "MllamaSFTTrainer": "medfinetune.decoder.trainer",
    "MllamaSFTConfig": "medfinetune.decoder.config",
    "MllamaCollator": "medfinetune.decoder.collator",
    "load_decoder": "medfinetune.decoder.model",
    "prepare": "medfinetune.data.prepare",
    "load_pairs": "medfinetune.data.load",
    "load_chats": "medfinetune.data.load",
    "ReportPipeline": "medfinetune.inference.pipeline",
}
__version__ = "0.1.0"
__all__ = ["__version__", *_HOME]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'medfinetune' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
