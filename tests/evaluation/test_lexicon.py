import pytest

from medfinetune.data.kellgren_lawrence import DESCRIPTIONS, GRADE_NAMES, WORDINGS
from medfinetune.data.sources.pad_ufes import DIAGNOSES, caption
from medfinetune.errors import InputError
from medfinetune.evaluation.findings import read_findings, read_statements
from medfinetune.evaluation.lexicon import load_lexicon


def test_a_lexicon_of_ones_own(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("findings: {mass: {opposites: [present, none], values: {present: {en: [mass], zh: [肿块]}}}}")
    lexicon = load_lexicon(path)
    assert lexicon.findings["mass"].values == ("present", "none")
    assert read_findings("No mass.", lexicon) == {"mass": "none"}
    assert read_findings("massive", lexicon) == {}
    assert read_findings("可见肿块", lexicon) == {"mass": "present"}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("findings: []", "findings: must map"),
        ("{}", "findings: must map"),
        ("findings: {mass: [a]}", "mass: values: must map"),
        ("findings: {mass: {values: {a: {en: [true]}}}}", "mass: values: a: True is no text; quote it"),
        ("findings: {mass: {values: {a: [b]}}}", "must map each language"),
        ("findings: {mass: {values: {}}}", "mass: has no phrase that could be read"),
        ("findings: {mass: {values: {a: {en: []}}}}", "mass: has no phrase that could be read"),
        ("findings: {mass: {values: {a: {en: b}, c: {zh: B}}}}", "mass: 'b' states both a and c"),
        ("findings: {mass: {values: {a: {en: b}}}, mass: {values: {a: {en: c}}}}", "findings: mass stands more than"),
        ("findings: {mass: {values: {a: {en: b}}, side: true}}", "mass: side: unknown key"),
        ("findings: {mass: {values: {a: {en: b}}, opposites: [c]}}", "opposites: must be two values"),
        ("findings: {mass: {values: {a: {en: b}}, opposites: [c, d]}}", "the values are"),
        ("findings: {mass: {values: {a: {en: b}}, severity: mild}}", "mass: severity: must be true or false"),
        ("findings: {mass: {values: {a: {en: b}}, opposites: [a, c], several: true}}", "several: of two opposites"),
        ("findings: {mass: {values: {a: {en: b}}, phrases: {c: {en: d}}}}", "mass: phrases: c: is none of the values"),
        ("findings: {mass: {values: {a: {en: b}}, phrases: [d]}}", "mass: phrases: must map"),
        ("{findings: {mass: {values: {a: {en: b}}}}, ignore: {en: c}}", "ignore: unknown key"),
        ("{findings: {mass: {values: {a: {en: b}}}}, ignored: c}", "ignored: must map each language"),
        ("{findings: {mass: {values: {a: {en: b}}}}, questions_count: 1}", "questions_count: must be true or false"),
    ],
)
def test_a_wrong_lexicon_is_named(tmp_path, content, message):
    path = tmp_path / "wrong.yaml"
    path.write_text(content)
    with pytest.raises(InputError, match=message) as error:
        load_lexicon(path)
    assert str(path) in str(error.value)


def test_a_missing_lexicon_is_named():
    with pytest.raises(InputError, match=r"lexicon phantoms: no such file.*known: .*phantom"):
        load_lexicon("phantoms")


def test_every_key_of_a_lexicon(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("""
questions_count: false
ignored: {en: [grade of 5]}
findings:
  tear:
    sided: true
    severity: true
    context: {en: [knee]}
    templates: {en: ["grade {}"]}
    values: {"1": {en: ["1", i]}, "2": {en: ["2"]}}
    phrases: {"2": {en: [complete tear]}}
  colour: {several: true, values: {red: {en: red}, blue: {en: [blue]}}}
""")
    lexicon = load_lexicon(path)

    def read(text):
        return [str(statement) for statement in read_statements(text, lexicon)]

    assert read("Knee: large left grade I.") == ["tear=1 present left severe"]
    assert read("Knee: complete tear, red and blue.") == ["tear=2 present", "colour=red present", "colour=blue present"]
    assert read("Knee: complete tear? Grade of 5. Elbow: grade 2.") == []


@pytest.mark.parametrize("language", ["en", "zh"])
@pytest.mark.parametrize("grade", range(5))
def test_knee_captions_read_the_same_in_every_wording(language, grade):
    narrowing = ("absent", "uncertain", "uncertain", "present", "present severe")[grade]
    osteophytes = ("absent", "uncertain", "present", "present", "present severe")[grade]
    expected = {f"knee_grade={grade} present", f"osteophytes {osteophytes}", f"joint_space_narrowing {narrowing}"}
    expected |= {"sclerosis present" + " severe" * (grade == 4)} if grade > 2 else set()
    expected |= {f"deformity {'present' if grade == 4 else 'uncertain'}"} if grade > 2 else set()
    for wording in WORDINGS[language]:
        text = wording.format(grade=grade, name=GRADE_NAMES[language][grade], description=DESCRIPTIONS[language][grade])
        assert set(map(str, read_statements(text, load_lexicon("knee")))) == expected, text


@pytest.mark.parametrize("language", ["en", "zh"])
@pytest.mark.parametrize("diagnosis", DIAGNOSES)
def test_skin_captions_are_read_whole(language, diagnosis):
    names = {"elevation": "elevation", "itch": "itch", "hurt": "pain", "bleed": "bleeding", "grew": "growth"}
    names |= {"changed": "change"}
    for number in range(2 ** len(names)):
        told = {column: number >> place & 1 for place, column in enumerate(names)}
        row = {column: str(bool(value)) for column, value in told.items()} | {"diagnostic": diagnosis, "region": "EAR"}
        expected = {f"{names[column]} {'present' if value else 'absent'}" for column, value in told.items()}
        expected |= {f"diagnosis={DIAGNOSES[diagnosis][0]} present", "region=ear present"}
        text = caption(row | {"age": "55", "gender": "FEMALE"}, language)
        assert set(map(str, read_statements(text, load_lexicon("skin")))) == expected, text


def test_a_lexicon_that_changes_is_read_again(tmp_path):
    path = tmp_path / "own.yaml"
    path.write_text("findings: {mass: {values: {seen: {en: [mass]}}}}", encoding="utf-8")
    assert read_findings("A mass.", load_lexicon(path)) == {"mass": "seen"}
    assert load_lexicon(path) is load_lexicon(path)
    path.write_text("findings: {lump: {values: {seen: {en: [mass]}}}}  # renamed", encoding="utf-8")
    assert read_findings("A mass.", load_lexicon(path)) == {"lump": "seen"}


def test_a_template_without_a_place_for_the_word_is_refused(tmp_path):
    path = tmp_path / "own.yaml"
    path.write_text("findings: {weber: {templates: {en: [weber]}, values: {b: {en: [b]}}}}", encoding="utf-8")
    with pytest.raises(InputError, match=r"weber: templates: 'weber' has no \{\}"):
        load_lexicon(path)
