import pytest

from medfinetune.errors import InputError
from medfinetune.evaluation.findings import read_findings
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
        ("findings: {mass: {values: {a: {en: b}}, side: true}}", "mass: side: unknown key"),
        ("findings: {mass: {values: {a: {en: b}}, opposites: [c]}}", "opposites: must be two values"),
        ("findings: {mass: {values: {a: {en: b}}, opposites: [c, d]}}", "the values are"),
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
