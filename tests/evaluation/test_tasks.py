import json
import re

import pytest

from medfinetune.data.kellgren_lawrence import caption
from medfinetune.data.sources.pad_ufes import DIAGNOSES
from medfinetune.errors import InputError
from medfinetune.evaluation.tasks import known_truths, read_tasks, require_truths

SHORT = "side: {left: [l1, l2], right: [r1]}\ngrade: {0: [g0], 1: [g1], 2: [g2]}\n"
LONG = """
task: grade
truth: label
sources: [knee]
ordered: true
classes:
  0: {en: [none, normal], zh: [无]}
  1: {en: [some], zh: [有]}
"""


def rows(*given):
    """Rows of (source, label, metadata)."""
    columns = {"id": [], "source": [], "label": [], "metadata": []}
    for identity, (source, label, metadata) in zip("abcdef", given, strict=False):
        for name, value in zip(columns, (identity, source, label, json.dumps(metadata)), strict=True):
            columns[name].append(value)
    return columns


@pytest.fixture
def read(tmp_path):
    def of(content, name="own.yaml"):
        path = tmp_path / name
        path.write_text(content, encoding="utf-8")
        return read_tasks(path)

    return of


def test_the_short_form_takes_its_truth_from_the_metadata(read):
    side, grade = read(SHORT)
    assert (side.name, side.values, side.prompts(["zh"])) == ("side", ["left", "right"], [["l1", "l2"], ["r1"]])
    assert (grade.truth, grade.ordered, grade.languages) == ("metadata", False, [])
    known = rows(("reports", "9", {"side": "left", "grade": 2}), ("knee", None, {"side": "right"}), ("knee", "1", {}))
    assert known_truths(side, known) == {0: 0, 1: 1}
    assert known_truths(grade, known) == {0: 2}


def test_a_whole_task_takes_its_truth_from_the_label_of_its_sources(read):
    (task,) = read(LONG)
    assert (task.name, task.truth, task.sources, task.ordered) == ("grade", "label", ("knee",), True)
    assert task.languages == ["en", "zh"]
    assert task.prompts() == task.prompts(["en", "zh"]) == [["none", "normal", "无"], ["some", "有"]]
    assert task.prompts(["zh"]) == [["无"], ["有"]]
    assert task.prompts(["fr"]) == task.prompts()  # better those there are than none
    known = rows(("knee", "1", {}), ("pad_ufes", "MEL", {}), ("knee", "", {}), ("knee", None, {}), ("knee", "0", {}))
    assert known_truths(task, known) == {0: 1, 4: 0}


def test_the_tasks_of_the_library():
    knee, skin = read_tasks(["knee_grade", "skin_diagnosis"])
    assert (knee.values, knee.ordered, knee.sources) == (list("01234"), True, ("knee", "chen"))
    assert (skin.values, skin.ordered, skin.sources) == (sorted(DIAGNOSES), False, ("pad_ufes",))
    for task in (knee, skin):
        assert (task.truth, task.languages) == ("label", ["en", "zh"])
        for language in task.languages:
            prompts = task.prompts([language])
            assert len({len(texts) for texts in prompts}) == 1  # no class is favoured by having more to say
            assert len({text for texts in prompts for text in texts}) == sum(map(len, prompts))
    for grade in range(5):
        words = {caption(grade, language, str(i)) for language in ("en", "zh") for i in range(40)}
        assert set(knee.prompts()[grade]) == words
    for code, names in DIAGNOSES.items():
        for name, language in zip(names, ("en", "zh"), strict=True):
            assert all(name in text for text in skin.classes[code][language])


def test_missing_keys_and_unknown_values_are_named(read):
    side, grade = read(SHORT)
    with pytest.raises(InputError, match="no pair has the key grade"):
        require_truths(grade, rows(("knee", "1", {"side": "left"})))
    with pytest.raises(InputError, match="pair b: metadata: side: 'up' has no prompts"):
        require_truths(side, rows(("knee", "1", {"side": "left"}), ("knee", "1", {"side": "up"})))
    (task,) = read(LONG, "long.yaml")
    with pytest.raises(InputError, match="task grade: no pair of the sources knee has a label"):
        require_truths(task, rows(("chen", "1", {})))
    with pytest.raises(InputError, match=r"pair a: label: '7' has no prompts in the zero-shot file \(it has 0, 1\)"):
        require_truths(task, rows(("knee", "7", {})))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "is empty"),
        ("grade: [a]", "grade: must map at least two values"),
        ("grade: {0: [a]}", "grade: must map at least two values"),
        ("grade: {0: [a], 1: b}", "grade: 1: must be a list of prompts"),
        ("grade: {0: [a], 1: []}", "grade: 1: must be a list of prompts"),
        ("grade: {0: {en: [a]}, 1: {en: [b]}}", "grade: 0: must be a list of prompts"),
        (LONG + "prompt: x\n", "prompt: unknown key"),
        (LONG.replace("task: grade\n", ""), "task is missing"),
        (LONG.replace("task: grade", "task: a b"), "task: must be a name"),
        (LONG[: LONG.index("classes")], "classes is missing"),
        (LONG.replace("truth: label", "truth: caption"), "truth: must be label or metadata"),
        (LONG.replace("[knee]", "[hip]"), "sources: must be a list of some of knee"),
        (LONG.replace("[knee]", "knee"), "sources: must be a list"),
        (LONG.replace("true", "maybe"), "ordered: must be true or false"),
        (LONG.replace("[some]", "some"), "classes: 1: en: must be a list of prompts"),
        (LONG.replace("{en: [some], zh: [有]}", "{}"), "classes: 1: must be a list of prompts"),
    ],
)
def test_a_wrong_file_is_named_with_its_key(read, tmp_path, content, message):
    with pytest.raises(InputError) as error:
        read(content)
    assert message in str(error.value)
    assert str(tmp_path / "own.yaml") in str(error.value)
    assert "\n" not in str(error.value)


def test_missing_files_and_doubled_names(tmp_path):
    with pytest.raises(InputError, match=r"zero_shot\.yaml: no such file"):
        read_tasks(tmp_path / "zero_shot.yaml")
    with pytest.raises(InputError, match=r"knee: no such file, and no task of that name \(known: knee_grade, skin_"):
        read_tasks(["knee"])
    with pytest.raises(InputError, match="task knee_grade: another zero-shot file has a task of that name"):
        read_tasks(["knee_grade", "knee_grade"])


def test_a_value_is_stated_in_the_files_words_or_by_its_first_prompt(read):
    side, grade = read(
        "side: {left: {prompts: [l1], statement: {en: On the left, zh: 左}}, right: [r1]}\ngrade: {0: [g0], 1: [g1]}\n"
    )
    assert (side.prompts(), side.statement("left", "zh")) == ([["l1"], ["r1"]], "左")
    assert (side.statement("right", "en"), grade.statement("0", "en")) == ("side: right", "grade: 0")
    (task,) = read(LONG + "statements: {1: {en: Some of it}}\n")
    assert (task.statement("1", "en"), task.statement("1", "zh"), task.statement("0", "en")) == (
        "Some of it",
        "有",
        "none",
    )


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (LONG + "statements: {7: {en: Some}}\n", "statements: 7: is no class (known: 0, 1)"),
        (LONG + "statements: {1: Some}\n", "statements: 1: must map each language to the words that state it"),
        ("side: {left: {prompts: [a], words: x}, right: [b]}", "side: left: must be a list of prompts, or map"),
        ("side: {left: {statement: {en: x}}, right: [b]}", "side: left: must be a list of prompts"),
    ],
)
def test_wrong_statements_are_named(read, content, message):
    with pytest.raises(InputError, match=re.escape(message)):
        read(content)
