"""The keys of `recipes/evaluate.py`."""

from dataclasses import dataclass, field
from typing import Literal

from medfinetune.data.evidence import EVIDENCE_KINDS, EvidenceKind
from medfinetune.data.schema import SPLITS
from medfinetune.errors import InputError, require_folder


@dataclass
class EvaluateConfig:
    """What is evaluated, on which cases, and where the results go."""

    data_dir: str = field(metadata={"help": "the folder that prepare wrote"})
    output_dir: str = field(metadata={"help": "results.json, predictions.jsonl and index.html are written here"})
    encoder_dir: str | None = field(default=None, metadata={"help": "a SigLIP checkpoint: a folder or a Hub name"})
    encoder_revision: str | None = field(default=None, metadata={"help": "its commit, tag or branch on the Hub"})
    decoder_dir: str | None = field(default=None, metadata={"help": "a Mllama checkpoint: a folder or a Hub name"})
    decoder_revision: str | None = field(default=None, metadata={"help": "its commit, tag or branch on the Hub"})
    decoder_dtype: Literal["float32", "bfloat16", "float16"] = field(
        default="float32", metadata={"help": "the real decoder needs 43 GB in float32, half of it in bfloat16"}
    )
    index_dir: str | None = field(
        default=None,
        metadata={"help": "what recipes/index.py wrote, with this encoder and these data: evidence, nearest reports"},
    )
    evidence: EvidenceKind = field(
        default="none", metadata={"help": "what the decoder is told of an image: none, labels, reports, both"}
    )
    evidence_min_probability: float = field(
        default=0.0, metadata={"help": "labels less probable than this are not told; as in training"}
    )
    num_candidates: int = field(
        default=1, metadata={"help": "texts written of a case, of which the encoder and agreement choose one"}
    )
    rerank_weight: float = field(
        default=0.5, metadata={"help": "of the candidates' agreement, beside the encoder's similarity, in [0, 1]"}
    )
    variants: list[str] = field(
        default_factory=list,
        metadata={"help": "scored beside the system: labels, reports, both (other evidence), reranked_8 (candidates)"},
    )
    compared_with: dict[str, str] = field(
        default_factory=dict,
        metadata={"help": "name: output folder of another run on the same cases, for paired differences"},
    )
    split: str = field(default="test", metadata={"help": "the split that is evaluated: test, validation, train"})
    tasks: list[str] = field(default_factory=lambda: ["report"], metadata={"help": "the tasks that are evaluated"})
    max_cases: int | None = field(default=None, metadata={"help": "so many cases, drawn at random; all where left out"})
    lexicon: str | None = field(
        default=None,
        metadata={"help": "for finding F1 and accuracy: chest, knee, skin, slake, phantom, or a YAML file of your own"},
    )
    zero_shot_file: str | list[str] | None = field(
        default=None,
        metadata={
            "help": "tasks to grade images for: knee_grade, skin_diagnosis, or YAML files of classes and prompts"
        },
    )
    max_training_images: int | None = field(
        default=None,
        metadata={
            "help": "training images for neighbours and linear probe, drawn at random; all where left out, 0: none"
        },
    )
    num_resamples: int = field(
        default=1000, metadata={"help": "resamples of patients or images for the 95% intervals; 0 leaves them out"}
    )
    num_pictures: int = field(
        default=12, metadata={"help": "images that the page shows beside their nearest training images"}
    )
    pool_size: int = field(default=64, metadata={"help": "cases that the encoder's recall@1 is measured among"})
    batch_size: int = field(default=16, metadata={"help": "cases at once"})
    max_new_tokens: int = field(default=256, metadata={"help": "longest text that the decoder writes, in tokens"})
    max_length: int = field(default=512, metadata={"help": "longest chat for perplexity, in tokens"})
    max_prompt_length: int = field(
        default=2048, metadata={"help": "longest prompt with evidence, in tokens; a longer one loses evidence first"}
    )
    num_gallery: int = field(default=48, metadata={"help": "cases in the page's gallery"})
    seed: int = field(default=0, metadata={"help": "draws cases and pools, and shuffles the images"})
    dry_run: bool = field(default=False, metadata={"help": "check config and data, load no model, write nothing"})

    def __post_init__(self) -> None:
        require_folder(self.output_dir)
        if self.encoder_dir is None and self.decoder_dir is None:
            raise InputError("encoder_dir or decoder_dir must be given: there is nothing to evaluate")
        if self.split not in SPLITS:
            raise InputError(f"split: {self.split!r} is none of {', '.join(SPLITS)}")
        if not self.tasks:
            raise InputError("tasks: must name at least one task")
        for name in ("pool_size", "batch_size", "max_new_tokens", "max_length", "max_prompt_length", "num_candidates"):
            if getattr(self, name) < 1:
                raise InputError(f"{name}: must be at least 1")
        for name in ("max_training_images", "num_resamples", "num_pictures"):
            if (getattr(self, name) or 0) < 0:
                raise InputError(f"{name}: must be at least 0")
        if self.pool_size < 2:
            raise InputError("pool_size: must be at least 2")
        if self.max_cases is not None and self.max_cases < 1:
            raise InputError("max_cases: must be at least 1")
        self._check_system()

    def _check_system(self) -> None:
        for name in ("evidence_min_probability", "rerank_weight"):
            if not 0 <= getattr(self, name) <= 1:
                raise InputError(f"{name}: must be in [0, 1]")
        told = [variant for variant in self.variants if variant in EVIDENCE_KINDS]
        if (self.evidence != "none" or told) and self.index_dir is None:
            key = "evidence" if self.evidence != "none" else "variants"
            raise InputError(f"{key}: {told[0] if told else self.evidence} needs index_dir; recipes/index.py makes it")
        if self.encoder_dir is None:
            for name in ("index_dir", "num_candidates"):
                if getattr(self, name) not in (None, 1):
                    raise InputError(f"{name}: needs the encoder, encoder_dir")
        if self.decoder_dir is None:
            for name in ("compared_with", "variants"):
                if getattr(self, name):
                    raise InputError(f"{name}: is of reports, which decoder_dir writes")
