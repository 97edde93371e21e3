"""Grading tasks: the classes, the prompts that describe them in each language, and where the truth stands."""

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from medfinetune.data.schema import SOURCES
from medfinetune.errors import InputError
from medfinetune.parser import read_yaml

_FOLDER = Path(__file__).parent / "prompts"
_KEYS = ("task", "truth", "sources", "ordered", "statements", "classes")


@dataclass(frozen=True)
class Task:
    """One thing that images are graded for.

    Attributes:
        name: Of the task; it begins the names of its figures.
        classes: Value -> language -> prompts; the language is empty for prompts that are used whatever the language.
        truth: `label`, or `metadata` for the key of that name in a row's metadata.
        sources: Only rows of these sources have a truth; all where empty.
        ordered: The classes stand in an order, so that a near miss is better than a far one.
        statements: Value -> language -> a few words that state it; for the values that the file has some for.
    """

    name: str
    classes: Mapping[str, Mapping[str, Sequence[str]]]
    truth: str = "metadata"
    sources: tuple[str, ...] = ()
    ordered: bool = False
    statements: Mapping[str, Mapping[str, str]] = field(default_factory=dict)

    def statement(self, value: str, language: str) -> str:
        """The words that state a value in a language: the file's own, else its first prompt, else `name: value`.

        A prompt states a class only where the file tells its language: prompts in short are whole texts.
        """
        own = self.statements.get(value, {})
        if language in own:
            return own[language]
        prompts = self.classes[value].get(language)
        return prompts[0] if prompts else f"{self.name.replace('_', ' ')}: {value}"

    @property
    def values(self) -> list[str]:
        """The classes' names, in their order."""
        return list(self.classes)

    def prompts(self, languages: Collection[str] = ()) -> list[list[str]]:
        """The prompts of each class.

        Args:
            languages: Keeps the prompts of these languages, where every class has some: an encoder that has seen
                English alone is not asked in Chinese.
        """
        lists = [_of_languages(prompts, languages) for prompts in self.classes.values()]
        return lists if all(lists) else [_of_languages(prompts, ()) for prompts in self.classes.values()]

    @property
    def languages(self) -> list[str]:
        """Those that every class has prompts in; none where the file does not tell them."""
        shared = set.intersection(*(set(prompts) for prompts in self.classes.values()))
        return sorted(shared - {""})


def read_tasks(names: str | Path | Sequence[str | Path]) -> list[Task]:
    """Reads tasks from one or more files.

    Args:
        names: Of files that come with the library (`knee_grade`, `skin_diagnosis`), or paths to YAML files. A file
            holds one task (`task`, `truth`, `sources`, `ordered`, `statements: {value: {language: words}}`,
            `classes: {value: {language: [prompt, ...]}}`), or several in short, `attribute: {value: [prompt, ...]}`,
            whose truth is in the metadata; there a value may map `prompts` and `statement: {language: words}`.

    Raises:
        InputError: A file is missing or not in that form, or two tasks have one name.
    """
    tasks: dict[str, Task] = {}
    for name in [names] if isinstance(names, str | Path) else names:
        path = _path(name)
        for task in _read(path):
            if task.name in tasks:
                raise InputError(f"{path}: task {task.name}: another zero-shot file has a task of that name")
            tasks[task.name] = task
    return list(tasks.values())


def known_truths(task: Task, rows: Mapping[str, Sequence[Any]]) -> dict[int, int]:
    """Row -> the number of its class, for the rows that know it.

    Args:
        rows: The columns `id`, `source`, `label` and `metadata` of `data.schema.FEATURES`.

    Raises:
        InputError: A row holds a value that is no class of the task.
    """
    numbers = {value: number for number, value in enumerate(task.classes)}
    truths = {}
    for row, source in enumerate(rows["source"]):
        if task.sources and source not in task.sources:
            continue
        value = rows["label"][row] if task.truth == "label" else _metadata(rows["metadata"][row]).get(task.name)
        if value is None or value == "":
            continue
        if str(value) not in numbers:
            where = "label" if task.truth == "label" else f"metadata: {task.name}"
            raise InputError(
                f"pair {rows['id'][row]}: {where}: {value!r} has no prompts in the zero-shot file "
                f"(it has {', '.join(numbers)})"
            )
        truths[row] = numbers[str(value)]
    return truths


def require_truths(task: Task, rows: Mapping[str, Sequence[Any]]) -> dict[int, int]:
    """What `known_truths` gives.

    Raises:
        InputError: No row knows its class, or a row holds a value that is no class of the task.
    """
    truths = known_truths(task, rows)
    if truths:
        return truths
    if task.truth == "metadata":
        raise InputError(f"metadata: no pair has the key {task.name}, which the zero-shot file asks for")
    of_sources = f" of the sources {', '.join(task.sources)}" if task.sources else ""
    raise InputError(f"zero_shot_file: task {task.name}: no pair{of_sources} has a label")


def _path(name: str | Path) -> Path:
    named = _FOLDER / f"{name}.yaml"
    path = named if named.is_file() else Path(name)
    if not path.is_file() and len(path.parts) == 1 and not path.suffix:
        known = ", ".join(sorted(file.stem for file in _FOLDER.glob("*.yaml")))
        raise InputError(f"zero_shot_file {name}: no such file, and no task of that name (known: {known})")
    return path


def _read(path: Path) -> list[Task]:
    table = read_yaml(path)
    if not table:
        raise InputError(f"{path}: is empty; it must map each attribute to its values, and each value to its prompts")
    # In the short form every key is an attribute, and maps its values.
    if any(not isinstance(table.get(key, {}), dict) for key in _KEYS[:-1]):
        return [_task(path, table)]
    return [_short_task(f"{path}: {attribute}", str(attribute), values) for attribute, values in table.items()]


def _short_task(where: str, name: str, values: Any) -> Task:
    stated, plain = {}, values
    if isinstance(values, dict):
        plain = {}
        for value, given in values.items():
            if isinstance(given, dict):
                if set(given) - {"prompts", "statement"}:
                    raise InputError(f"{where}: {value}: must be a list of prompts, or map prompts and statement")
                stated[value] = given.get("statement", {})
                given = given.get("prompts")
            plain[value] = given
    classes = _classes(where, plain, by_language=False)
    return Task(name, classes, statements=_statements(where, stated, classes))


def _task(path: Path, table: dict[str, Any]) -> Task:
    for key in table:
        if key not in _KEYS:
            raise InputError(f"{path}: {key}: unknown key (known: {', '.join(_KEYS)})")
    for key in ("task", "classes"):
        if key not in table:
            raise InputError(f"{path}: {key} is missing")
    if not isinstance(table["task"], str) or not table["task"].isidentifier():
        raise InputError(f"{path}: task: must be a name of letters, digits and _, but is {table['task']!r}")
    truth, sources, ordered = table.get("truth", "label"), table.get("sources", []), table.get("ordered", False)
    if truth not in ("label", "metadata"):
        raise InputError(f"{path}: truth: must be label or metadata, but is {truth!r}")
    if not isinstance(sources, list) or not set(map(str, sources)) <= set(SOURCES):
        raise InputError(f"{path}: sources: must be a list of some of {', '.join(SOURCES)}, but is {sources!r}")
    if not isinstance(ordered, bool):
        raise InputError(f"{path}: ordered: must be true or false, but is {ordered!r}")
    classes = _classes(f"{path}: classes", table["classes"], by_language=True)
    statements = _statements(f"{path}: statements", table.get("statements", {}), classes)
    return Task(table["task"], classes, truth, tuple(sources), ordered, statements)


def _statements(where: str, table: Any, classes: Mapping[str, Any]) -> dict[str, dict[str, str]]:
    if not isinstance(table, dict):
        raise InputError(f"{where}: must map values to words by language")
    stated = {}
    for value, by_language in table.items():
        if str(value) not in classes:
            raise InputError(f"{where}: {value}: is no class (known: {', '.join(classes)})")
        if not isinstance(by_language, dict) or not all(isinstance(words, str) for words in by_language.values()):
            raise InputError(f"{where}: {value}: must map each language to the words that state it")
        stated[str(value)] = {str(language): words for language, words in by_language.items()}
    return stated


def _classes(where: str, values: Any, by_language: bool) -> dict[str, dict[str, list[str]]]:
    if not isinstance(values, dict) or len(values) < 2:
        raise InputError(f"{where}: must map at least two values to lists of prompts")
    classes = {}
    for value, prompts in values.items():
        lists = prompts if by_language and isinstance(prompts, dict) and prompts else {"": prompts}
        for language, texts in lists.items():
            if not isinstance(texts, list) or not texts or not all(isinstance(text, str) for text in texts):
                place = f"{value}: {language}" if language else value
                raise InputError(f"{where}: {place}: must be a list of prompts")
        classes[str(value)] = {str(language): texts for language, texts in lists.items()}
    return classes


def _of_languages(prompts: Mapping[str, Sequence[str]], languages: Collection[str]) -> list[str]:
    return [
        text
        for language, texts in prompts.items()
        if not language or not languages or language in languages
        for text in texts
    ]


def _metadata(text: str | None) -> dict[str, Any]:
    return json.loads(text) if text else {}
