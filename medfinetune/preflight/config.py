"""The command line of `recipes/preflight.py`: its own options, and a run's config."""

import dataclasses
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from medfinetune.errors import InputError
from medfinetune.parser import parse, read_yaml
from medfinetune.preflight.changes import Machine
from medfinetune.preflight.memory import Zero, read_zero
from medfinetune.preflight.step import device_bytes


@dataclass
class PreflightConfig:
    """What preflight is asked besides the run's own config."""

    kind: Literal["encoder", "decoder"] | None = field(
        default=None, metadata={"help": "Whose config it is; from its keys or its folder where left out."}
    )
    gpu_memory_gib: float = field(default=80.0, metadata={"help": "Memory of one GPU, in GiB."})
    host_memory_gib: float | None = field(
        default=None, metadata={"help": "Memory of the host, in GiB; not looked at where left out."}
    )
    num_gpus: int = field(default=1, metadata={"help": "GPUs of the machine, one process each."})
    tflops: float | None = field(
        default=None, metadata={"help": "1e12 operations a second that one GPU really does, for the time of an epoch."}
    )
    num_rows: int | None = field(
        default=None, metadata={"help": "Training rows; those in data_dir where left out and it is there."}
    )
    num_images: int = field(default=1, metadata={"help": "Decoder: images of a chat."})
    num_tiles: int = field(default=4, metadata={"help": "Decoder: tiles of an image, 1 to 4."})
    measure: bool = field(
        default=False,
        metadata={"help": "Also take two real steps on the longest batch and show them beside the prediction."},
    )

    def __post_init__(self):
        for key in ("gpu_memory_gib", "host_memory_gib", "num_gpus", "tflops", "num_rows"):
            value = getattr(self, key)
            if value is not None and value <= 0:
                raise InputError(f"{key}: {value}: must be more than 0")
        if self.num_images < 0:
            raise InputError(f"num_images: {self.num_images}: must be 0 or more")
        if not 1 <= self.num_tiles <= 4:
            raise InputError(f"num_tiles: {self.num_tiles}: must be 1 to 4")


@dataclass(frozen=True, slots=True)
class Asked:
    """What the command line asks for.

    Attributes:
        kind: `encoder` or `decoder`.
        options: Preflight's own.
        args: The run's settings, without DeepSpeed.
        machine: What it is to fit on.
        zero: DeepSpeed's part of the settings.
    """

    kind: str
    options: PreflightConfig
    args: Any
    machine: Machine
    zero: Zero | None


def read_arguments(configs: dict[str, type], argv: list[str] | None = None) -> Asked:
    """Reads `--config FILE`, preflight's own options, and keys of the run's config.

    Args:
        configs: The config class of each kind.
        argv: The arguments; those of the process where left out.

    Raises:
        InputError: As `parse`; no config; or a config that could be of either kind.
    """
    argv = sys.argv[1:] if argv is None else argv
    own, rest = _split(argv)
    options = parse(PreflightConfig, "Says what a run will take, before it starts.", argv=own)
    path, given = _config_and_keys(rest)
    values = read_yaml(Path(path)) | given
    kind = options.kind or _kind_of(path, values, configs)
    # Read here, so that DeepSpeed need not be installed; and any GPU's config can be checked where there is none.
    zero = read_zero(values.get("deepspeed"))
    args = parse(configs[kind], "", argv=[*rest, "--deepspeed", "null", "--dry_run"])
    on_cpu = str(values.get("use_cpu", False)).lower() == "true"
    host = None if options.host_memory_gib is None else round(options.host_memory_gib * 2**30)
    memory = round(options.gpu_memory_gib * 2**30)
    if on_cpu:
        memory = host or device_bytes(on_cpu)
    return Asked(kind, options, args, Machine(options.num_gpus, memory, host, on_cpu, options.tflops), zero)


def _split(argv: list[str]) -> tuple[list[str], list[str]]:
    names = {f"--{f.name}" for f in dataclasses.fields(PreflightConfig)} | {"--help", "-h"}
    own, rest, target = [], [], []
    for word in argv:
        if word.startswith("-") and not word[1:2].isdigit():
            target = own if word.split("=")[0] in names else rest
        target.append(word)
    return own, rest


def _config_and_keys(rest: list[str]) -> tuple[str, dict[str, str]]:
    words = [part for word in rest for part in (word.split("=", 1) if word.startswith("--") else [word])]
    pairs = dict(zip(words, [*words[1:], "true"], strict=False))
    given = {key[2:]: value for key, value in pairs.items() if key.startswith("--")}
    path = given.pop("config", "--")
    if path.startswith("--"):
        raise InputError("config: name one: python recipes/preflight.py --config recipes/decoder/llama32_11b_lora.yaml")
    return path, given


def _kind_of(path: str, values: dict[str, Any], configs: dict[str, type]) -> str:
    fields = {kind: {f.name for f in dataclasses.fields(config)} for kind, config in configs.items()}
    possible = [kind for kind, names in fields.items() if set(values) <= names]
    if len(possible) == 1:
        return possible[0]
    folder = Path(path).resolve().parent.name
    if folder in configs:
        return folder
    raise InputError(f"kind: {path}: its keys do not tell; say --kind encoder or --kind decoder")
