"""The keys of `recipes/index.py` and `recipes/report.py`."""

from dataclasses import dataclass, field
from typing import Literal

from medfinetune.errors import InputError, require_folder


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
