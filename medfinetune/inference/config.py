"""The keys of `recipes/index.py` and `recipes/report.py`."""

from dataclasses import dataclass, field
from typing import Literal

from medfinetune.errors import InputError, require_folder
from medfinetune.inference.report import WritingOptions


@dataclass
class IndexConfig:
    """Which images are indexed, by which encoder, and what is told of an image that is looked up."""

    encoder_dir: str = field(metadata={"help": "a SigLIP checkpoint: a folder or a Hub name"})
    data_dir: str = field(metadata={"help": "the folder that prepare wrote; its training split is indexed"})
    output_dir: str = field(metadata={"help": "the index is written here; it holds reports: guard it as the data"})
    encoder_revision: str | None = field(default=None, metadata={"help": "its commit, tag or branch on the Hub"})
    tasks: list[str] = field(
        default_factory=lambda: ["report"], metadata={"help": "pairs of these tasks are indexed, with their texts"}
    )
    zero_shot_file: str | list[str] | None = field(
        default=None,
        metadata={
            "help": "tasks whose labels are told: knee_grade, skin_diagnosis, or YAML files of classes and prompts"
        },
    )
    num_neighbours: int = field(default=3, metadata={"help": "reports of similar images that are told at most"})
    max_similarity_drop: float | None = field(
        default=None,
        metadata={
            "help": "a neighbour whose cosine is further below the nearest's is left out; where not given, it is "
            "the 95th percentile of what the validation split shows between the nearest and the last"
        },
    )
    index_type: Literal["auto", "flat", "ivf"] = field(
        default="auto", metadata={"help": "flat is exact; auto takes ivf above 1,000,000 images"}
    )
    batch_size: int = field(default=64, metadata={"help": "images or texts at once"})
    overwrite: bool = field(
        default=False, metadata={"help": "replace an index of another encoder, other data or other settings"}
    )
    dry_run: bool = field(default=False, metadata={"help": "check config, data and encoder's files, write nothing"})

    def __post_init__(self) -> None:
        require_folder(self.output_dir)
        if not self.tasks:
            raise InputError("tasks: must name at least one task")
        for name in ("num_neighbours", "batch_size"):
            if getattr(self, name) < 1:
                raise InputError(f"{name}: must be at least 1")
        if self.max_similarity_drop is not None and self.max_similarity_drop < 0:
            raise InputError("max_similarity_drop: must be at least 0")


@dataclass
class ReportConfig:
    """Which images reports are written of, by which models, and where the reports go."""

    encoder_dir: str = field(metadata={"help": "a SigLIP checkpoint: a folder or a Hub name"})
    decoder_dir: str = field(metadata={"help": "a Mllama checkpoint: a folder or a Hub name"})
    input: str = field(
        metadata={
            "help": "a folder of images, or a list of them: .txt with a path a line, .csv or .jsonl with the columns "
            "image, language, patient_id, prompt, of which image is needed; paths are relative to the list"
        }
    )
    output_dir: str = field(metadata={"help": "reports.jsonl, failed.jsonl and index.html are written here"})
    index_dir: str | None = field(
        default=None, metadata={"help": "the folder that recipes/index.py wrote; without it there is no evidence"}
    )
    encoder_revision: str | None = field(default=None, metadata={"help": "its commit, tag or branch on the Hub"})
    decoder_revision: str | None = field(default=None, metadata={"help": "its commit, tag or branch on the Hub"})
    decoder_dtype: Literal["float32", "bfloat16", "float16"] = field(
        default="float32", metadata={"help": "the real decoder needs 43 GB in float32, half of it in bfloat16"}
    )
    language: Literal["en", "zh"] = field(default="en", metadata={"help": "of reports whose row names none"})
    task: Literal["report", "caption"] = field(default="report", metadata={"help": "what the decoder is asked for"})
    evidence: Literal["none", "labels", "reports", "both"] | None = field(
        default=None,
        metadata={"help": "what goes into the prompt; left out, what the decoder was trained with, or both if unknown"},
    )
    min_probability: float = field(default=0.0, metadata={"help": "labels less probable than this are not told"})
    num_candidates: int = field(
        default=1, metadata={"help": "texts written of an image: the greedy one and drawn ones; the best stays"}
    )
    temperature: float = field(default=1.0, metadata={"help": "of the draws"})
    top_p: float = field(default=0.95, metadata={"help": "share of the probability that draws are made from"})
    rerank_weight: float = field(
        default=0.5, metadata={"help": "of the candidates' agreement beside the encoder's similarity, in [0, 1]"}
    )
    lexicon: str | None = field(
        default=None, metadata={"help": "candidates agree where they state its findings alike; else in words"}
    )
    max_new_tokens: int = field(default=256, metadata={"help": "longest text that the decoder writes, in tokens"})
    max_length: int = field(default=2048, metadata={"help": "longest prompt, in tokens; evidence is cut first"})
    batch_size: int = field(default=8, metadata={"help": "texts written at once, in each process"})
    shard_size: int = field(default=256, metadata={"help": "images that are sorted by the length of their prompts"})
    num_processes: int = field(default=1, metadata={"help": "processes that share the images, one for each GPU"})
    patient_key_file: str | None = field(
        default=None,
        metadata={"help": "the key that prepare hashed patients' ids with, for column patient_id and DICOM headers"},
    )
    num_on_page: int = field(
        default=200, metadata={"help": "reports on the page; of more, the most doubtful are shown; 0: no page"}
    )
    seed: int = field(default=0, metadata={"help": "of the draws, beside the image itself"})
    dry_run: bool = field(default=False, metadata={"help": "check config, input and index, load no model"})

    def __post_init__(self) -> None:
        require_folder(self.output_dir)
        for name in ("shard_size", "num_processes"):
            if getattr(self, name) < 1:
                raise InputError(f"{name}: must be at least 1")
        if self.num_on_page < 0:
            raise InputError("num_on_page: must be at least 0")
        if self.evidence not in (None, "none") and self.index_dir is None:
            raise InputError(f"evidence: {self.evidence} needs index_dir; recipes/index.py makes an index")
        self.options()

    def options(self) -> WritingOptions:
        """How reports are written."""
        names = set(WritingOptions.__dataclass_fields__) & set(self.__dataclass_fields__)
        return WritingOptions(**{name: getattr(self, name) for name in names})
