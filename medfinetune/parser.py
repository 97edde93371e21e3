"""YAML file and command line to a dataclass; an unknown key or a wrong type is an error."""

import argparse
import dataclasses
import difflib
import os
import re
import sys
import time
import typing
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import pydantic
import yaml
from tqdm import tqdm

from medfinetune.errors import InputError

Config = TypeVar("Config")
_SECONDS_TO_BE_ENDED = 5
_RECIPES = ("prepare", "encoder", "decoder", "evaluate", "index", "report")


class _Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):
    """YAML 1.2's plain words: `no` and `on` are text (`eval_strategy: no`), `1e-4` is a number."""


_Loader.yaml_implicit_resolvers = {
    first: [
        (tag, pattern) for tag, pattern in resolvers if tag not in ("tag:yaml.org,2002:bool", "tag:yaml.org,2002:float")
    ]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver("tag:yaml.org,2002:bool", re.compile(r"^(?:true|True|TRUE|false|False|FALSE)$"), "tTfF")
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(?:(?:\.\d+|\d+(?:\.\d*)?)[eE][-+]?\d+|\.\d+|\d+\.\d*|\.(?:inf|Inf|INF))$|^\.(?:nan|NaN|NAN)$"),
    "-+0123456789.",
)


class _OneLineParser(argparse.ArgumentParser):
    def error(self, message: str) -> typing.NoReturn:
        # argparse would print the usage of 150 options above the one line that matters.
        unknown = [word for word in message.split() if word.startswith("--")] if "unrecognized" in message else []
        near = difflib.get_close_matches(unknown[0], self._option_string_actions, n=1) if unknown else []
        hint = f"did you mean {near[0]}? " if near else ""
        raise InputError(f"command line: {message} ({hint}--help lists the options)")


def parse(
    config_class: type[Config],
    description: str,
    default_config: Path | None = None,
    on_default: Callable[[], None] | None = None,
    argv: list[str] | None = None,
) -> Config:
    """Reads `--config file.yaml` and `--key value` pairs into `config_class`; the command line wins.

    Args:
        config_class: A dataclass whose fields are the keys; `metadata={"help": ...}` is shown by `--help`.
        description: What the command does.
        default_config: The YAML file that is used where neither `--config` nor any key is given.
        on_default: Called when `default_config` is used: says so, and makes what that file names.
        argv: The arguments; those of the process where left out.

    Raises:
        InputError: A file that is missing or no YAML, an unknown key, a wrong type, or a combination that
            the dataclass refuses.
    """
    argv = sys.argv[1:] if argv is None else argv
    fields = {field.name: field for field in dataclasses.fields(config_class) if field.init}
    given = vars(_argument_parser(config_class, fields, description).parse_args(argv))
    path = given.pop("config", None)
    if path is None and not given and default_config is not None:
        path = default_config
        if on_default is not None:
            on_default()
    hints = typing.get_type_hints(config_class)
    values, origin = {}, {}
    if path is not None:
        for key, value in read_yaml(Path(path)).items():
            values[key], origin[key] = value, f"{path}: {key}"
    for key, value in given.items():
        values[key], origin[key] = _from_command_line(value, hints[key]), f"command line: --{key}"
    checked = {}
    for key, value in values.items():
        if key not in fields:
            near = difflib.get_close_matches(str(key), fields, n=1)
            kind = _kind_of(path) if key not in given else None
            hint = f"; this looks like a config of recipes/{kind}.py" if kind else ""
            raise InputError(f"{origin[key]}: unknown key{f'; did you mean {near[0]}?' if near else hint}")
        checked[key] = _check(value, hints[key], origin[key])
    missing = [name for name, field in fields.items() if name not in checked and _has_no_default(field)]
    if missing:
        raise InputError(
            f"{path or 'command line'}: {missing[0]} is missing ({fields[missing[0]].metadata.get('help')})"
        )
    try:
        return config_class(**checked)
    except InputError as error:
        named = str(error).partition(":")[0]
        raise InputError(f"{'command line' if named in given or path is None else path}: {error}") from error
    except (ValueError, ImportError) as error:
        # TrainingArguments checks its own combinations, with messages of several lines.
        message = " ".join(str(error).split())
        if "use_cpu" in message and "bf16" in message:
            message += " Here: --use_cpu true --bf16 false (--dry_run checks the rest without)"
        raise InputError(f"{path or 'command line'}: {message}") from error


def _kind_of(path: str | Path) -> str | None:
    """Whose config a file is, where its folder says so and it is not that of the recipe that runs."""
    kind = Path(path).resolve().parent.name
    return kind if kind in _RECIPES and kind != Path(sys.argv[0]).stem else None


def read_yaml(path: Path) -> dict[str, Any]:
    """Reads a YAML file that holds a mapping.

    Raises:
        InputError: The file is missing, is no YAML, holds something other than a mapping, or repeats a key.
    """
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    try:
        text = path.read_text(encoding="utf-8-sig")
        node = yaml.compose(text, Loader=_Loader)
        values = yaml.load(text, Loader=_Loader)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: is no YAML: {' '.join(str(error).split())}") from error
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise InputError(f"{path}: must hold `key: value` lines, but holds a {type(values).__name__}")
    repeated = next(_repeated_keys(node), None)
    if repeated is not None:
        # PyYAML silently keeps the last one.
        raise InputError(f"{path}: {repeated} stands more than once")
    return values


def _repeated_keys(node: yaml.Node, above: str = "") -> Iterator[str]:
    """Keys that stand twice in one mapping, with those above them: `findings: mass`."""
    if isinstance(node, yaml.SequenceNode):
        for item in node.value:
            yield from _repeated_keys(item, above)
    if isinstance(node, yaml.MappingNode):
        seen = set()
        for key, value in node.value:
            name = f"{above}{key.value}"
            if name in seen:
                yield name
            seen.add(name)
            yield from _repeated_keys(value, f"{name}: ")


def save_config(config: Any, path: Path) -> None:
    """Writes the resolved values of a config (a dataclass, `TrainingArguments` included) as YAML."""
    values = config.to_dict() if hasattr(config, "to_dict") else dataclasses.asdict(config)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(_plain(values), allow_unicode=True, sort_keys=True), encoding="utf-8")


def run(main: Callable[[], None]) -> None:
    """Runs a recipe's `main`; an `InputError` becomes one line on standard error and exit status 2.

    Of several processes that fail alike only the first says so; one that fails alone is named by its rank.
    """
    try:
        main()
    except InputError as error:
        rank = int(os.environ.get("RANK", "0"))
        if rank:
            # Where the first process failed too, it speaks for all, and the launcher ends this one meanwhile.
            time.sleep(_SECONDS_TO_BE_ENDED)
        # From a process that loads data it comes with that process's traceback above it.
        message = str(error).strip().splitlines()[-1].removeprefix("medfinetune.errors.InputError: ")
        open_bar = "\n" if getattr(tqdm, "_instances", None) else ""  # a progress bar leaves its line unfinished
        print(f"{open_bar}{f'[rank {rank}] ' if rank else ''}error: {message}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("interrupted; what was saved so far is kept", file=sys.stderr)
        sys.exit(130)


def _argument_parser(config_class: type, fields: dict[str, dataclasses.Field], description: str) -> _OneLineParser:
    parser = _OneLineParser(description=description, allow_abbrev=False, argument_default=argparse.SUPPRESS)
    parser.add_argument("--config", metavar="FILE", help="a YAML file; keys given on the command line win over it")
    hints = typing.get_type_hints(config_class)
    inherited = {name for base in config_class.__mro__[1:] for name in getattr(base, "__annotations__", {})}
    inherited -= set(config_class.__annotations__)
    own = parser.add_argument_group("options of medfinetune")
    other = parser.add_argument_group("options of the Hugging Face trainer") if inherited else own
    for name, field in fields.items():
        help_text = str(field.metadata.get("help", ""))
        help_text += _values_of(hints[name], help_text)
        if not _has_no_default(field):
            default = field.default if field.default is not dataclasses.MISSING else field.default_factory()
            help_text += f" (default: {getattr(default, 'value', default)})"
        kwargs: dict[str, Any] = {"help": help_text.replace("%", "%%"), "metavar": "VALUE"}
        if bool in (hints[name], *typing.get_args(hints[name])):
            kwargs |= {"nargs": "?", "const": "true"}
        elif list in [typing.get_origin(hint) for hint in (hints[name], *typing.get_args(hints[name]))]:
            kwargs |= {"nargs": "+"}
        (other if name in inherited else own).add_argument(f"--{name}", **kwargs)
    return parser


def _values_of(hint: Any, help_text: str) -> str:
    """The values that a key takes, where they are few and its help does not name them."""
    parts = [part for part in (hint, *typing.get_args(hint)) if typing.get_origin(part) is typing.Literal]
    values = [str(value) for part in parts for value in typing.get_args(part)]
    return f" [{', '.join(values)}]" if any(value not in help_text for value in values) else ""


def _has_no_default(field: dataclasses.Field) -> bool:
    return field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING


def _from_command_line(value: str | list[str], hint: Any) -> Any:
    """A command-line word means what it would mean in the YAML file, but text is never taken for a number.

    `null` unsets a key.
    """
    if isinstance(value, list):
        if len(value) == 1 and value[0].startswith("["):  # as it stands in a file
            return _from_command_line(value[0], typing.Any)
        return [_from_command_line(item, (typing.get_args(hint) or (hint,))[0]) for item in value]
    if hint is str:
        return value
    if set(typing.get_args(hint)) == {str, type(None)}:
        return None if value == "null" else value
    try:
        return yaml.load(value, Loader=_Loader)
    except yaml.YAMLError:
        return value


def _check(value: Any, hint: Any, origin: str) -> Any:
    try:
        return _adapter(hint).validate_python(value)
    except pydantic.ValidationError as error:
        problems = [item["msg"][0].lower() + item["msg"][1:] for item in error.errors()]
        raise InputError(f"{origin}: {value!r}: {' or '.join(dict.fromkeys(problems))}") from error


def _adapter(hint: Any) -> pydantic.TypeAdapter:
    config = pydantic.ConfigDict(arbitrary_types_allowed=True, coerce_numbers_to_str=False)
    try:
        return pydantic.TypeAdapter(hint, config=config)
    except pydantic.PydanticUserError:
        # A hint that is itself a dataclass or a model takes no config.
        return pydantic.TypeAdapter(hint)


def _plain(value: Any) -> Any:
    """Turns enums, paths and tuples into what YAML can hold."""
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set):
        return [_plain(item) for item in value]
    if value is None or (isinstance(value, bool | int | float | str) and type(value) in (bool, int, float, str)):
        return value
    return _plain(value.value) if hasattr(value, "value") else str(value)
