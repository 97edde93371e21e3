"""The keys of the files under `recipes/prepare/`."""

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from medfinetune.data.images import ImageOptions
from medfinetune.data.schema import SOURCES
from medfinetune.data.sources import chen, knee, slake
from medfinetune.errors import InputError

LANGUAGES = ("en", "zh")
_FOLDERS = ("knee_dir", "chen_dir", "pad_ufes_dir", "slake_dir", "reports_dir")
_INPUTS = (*_FOLDERS, "reports_file")
_MIN_KEY_BYTES = 16


@dataclass
class PrepareConfig:
    """The keys of the files under `recipes/prepare/`."""

    output_dir: str = field(metadata={"help": "where the pairs, the chats, the images and the report go"})
    knee_dir: str | None = field(default=None, metadata={"help": "folder of the knee X-rays by Gornale & Patravali"})
    chen_dir: str | None = field(default=None, metadata={"help": "folder of the OAI knee X-rays by Chen"})
    pad_ufes_dir: str | None = field(default=None, metadata={"help": "folder of PAD-UFES-20"})
    slake_dir: str | None = field(default=None, metadata={"help": "folder of SLAKE 1.0"})
    reports_file: str | None = field(default=None, metadata={"help": "your own table: .csv, .tsv, .jsonl or .parquet"})
    reports_dir: str | None = field(default=None, metadata={"help": "your own images with .txt files beside them"})
    languages: list[str] = field(default_factory=lambda: list(LANGUAGES), metadata={"help": "en, zh or both"})
    validation_fraction: float = field(default=0.05, metadata={"help": "share of the pairs without a published split"})
    test_fraction: float = field(default=0.0, metadata={"help": "share of the pairs without a published split"})
    max_pairs: dict[str, int] = field(
        default_factory=dict, metadata={"help": f"at most so many pairs of a source ({', '.join(SOURCES)})"}
    )
    seed: int = field(default=0, metadata={"help": "decides what max_pairs keeps and how splits are drawn"})
    max_side_px: int = field(default=2240, metadata={"help": "longest side of the stored images"})
    knee_grader: knee.Grader = field(
        default="agree", metadata={"help": "agree leaves out images with more than one grade; I, II, both"}
    )
    knee_bilateral: knee.Bilateral = field(
        default="keep", metadata={"help": "strips of two knees: keep, split into halves, or drop"}
    )
    chen_split: chen.SplitBy = field(
        default="published", metadata={"help": "published: the folders' splits; pooled: drawn anew"}
    )
    slake_split: slake.SplitBy = field(
        default="image", metadata={"help": "image: the published split by image; fresh: drawn anew"}
    )
    reports_columns: dict[str, str] = field(
        default_factory=dict, metadata={"help": "our column names to those of reports_file"}
    )
    reports_encoding: str | None = field(
        default=None, metadata={"help": "of reports_file and .txt files, e.g. gb18030 (default: UTF-8, or its mark's)"}
    )
    reports_separator: str | None = field(
        default=None, metadata={"help": "between the cells of reports_file, e.g. ; (default: comma, or tab in .tsv)"}
    )
    allow_licenses: list[str] | None = field(
        default=None, metadata={"help": "keep only rows with these licences; `none` stands for a blank one"}
    )
    window_hu: dict[str, float] | None = field(
        default=None, metadata={"help": "for CT in DICOM, {center: 40, width: 400} (default: the file's own window)"}
    )
    dicom_frame: int = field(default=0, metadata={"help": "which frame of a DICOM file with several, from 0"})
    dicom_patients: Literal["hash", "ignore"] = field(
        default="hash", metadata={"help": "hash: DICOM patient ids keep patients apart; ignore: they are thrown away"}
    )
    patient_key_file: str | None = field(
        default=None, metadata={"help": "file with the secret key of the patients' hashes, 16 bytes or more"}
    )
    encoder_tokenizer: str | None = field(
        default=None, metadata={"help": "folder or name of SigLIP's tokenizer: text lengths are measured with it"}
    )
    encoder_max_length: int = field(default=64, metadata={"help": "tokens of a text for the encoder"})
    decoder_tokenizer: str | None = field(
        default=None, metadata={"help": "folder or name of Llama's tokenizer: text lengths are measured with it"}
    )
    decoder_max_length: int = field(default=512, metadata={"help": "tokens of a chat for the decoder"})
    remove_unused: bool = field(
        default=False, metadata={"help": "remove images of earlier runs that no record names any more"}
    )
    num_workers: int | None = field(default=None, metadata={"help": "processes that open images (default: all cores)"})

    def __post_init__(self) -> None:
        if not any(getattr(self, name) for name in _INPUTS):
            raise InputError(f"give at least one of {', '.join(_INPUTS)}")
        if not self.languages or set(self.languages) - set(LANGUAGES):
            raise InputError(f"languages: {self.languages}: must name {' or '.join(LANGUAGES)} or both")
        self.languages = list(dict.fromkeys(self.languages))
        for name in ("validation_fraction", "test_fraction"):
            if not 0 <= getattr(self, name) < 1:
                raise InputError(f"{name}: {getattr(self, name)}: must lie between 0 and 1")
        if self.validation_fraction + self.test_fraction >= 1:
            raise InputError("validation_fraction and test_fraction leave nothing to train on")
        for source, count in self.max_pairs.items():
            if source not in SOURCES:
                raise InputError(f"max_pairs: unknown source {source}; those are {', '.join(SOURCES)}")
            if count < 0:
                raise InputError(f"max_pairs: {source}: {count}: must not be negative")
        for name in ("max_side_px", "num_workers", "encoder_max_length", "decoder_max_length"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise InputError(f"{name}: {getattr(self, name)}: must be at least 1")
        if self.reports_separator is not None and len(self.reports_separator) != 1:
            raise InputError(f"reports_separator: {self.reports_separator!r}: must be one character")
        if self.dicom_frame < 0:
            raise InputError(f"dicom_frame: {self.dicom_frame}: must not be negative")
        if self.window_hu is not None and (
            set(self.window_hu) != {"center", "width"} or not self.window_hu["width"] > 0
        ):
            raise InputError(f"window_hu: {self.window_hu}: must be like {{center: 40, width: 400}}, width above 0")
        self._refuse_output_among_sources()

    def _refuse_output_among_sources(self) -> None:
        """The next run would take stored images for the source's, and `remove_unused` the source's for ours."""
        output = Path(self.output_dir).resolve()
        if str(output) != os.fsencode(output).decode("utf-8", "replace"):
            raise InputError(f"output_dir: {self.output_dir!r}: the name of the folder is not in UTF-8")
        for name in _INPUTS:
            if getattr(self, name):
                source = Path(getattr(self, name)).resolve()
                inside = name in _FOLDERS and output.is_relative_to(source)
                if inside or source.is_relative_to(output):
                    raise InputError(
                        f"output_dir: {self.output_dir}: must neither lie in {name} ({getattr(self, name)}) nor hold it"
                    )

    def image_options(self) -> ImageOptions:
        """How images are opened, with the patients' key read from its file.

        Raises:
            InputError: The key's file is missing or holds less than 16 bytes.
        """
        window = (self.window_hu["center"], self.window_hu["width"]) if self.window_hu else None
        ignore_patients = self.dicom_patients == "ignore"
        return ImageOptions(self.max_side_px, window, self.dicom_frame, self._patient_key(), ignore_patients)

    def _patient_key(self) -> bytes | None:
        if self.patient_key_file is None:
            return None
        path = Path(os.path.expanduser(self.patient_key_file))
        try:
            key = path.read_bytes().strip()
        except OSError as error:
            raise InputError(f"{path}: cannot be read (patient_key_file): {error.strerror}") from error
        if len(key) < _MIN_KEY_BYTES:
            raise InputError(
                f"{path}: holds {len(key)} bytes (patient_key_file); make a key of {_MIN_KEY_BYTES} or more, e.g. with "
                "`openssl rand -hex 32`"
            )
        return key
