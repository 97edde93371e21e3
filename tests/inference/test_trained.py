import pytest

from medfinetune.inference.trained import trained_evidence, trained_num_neighbours, warn_of_evidence


@pytest.mark.parametrize(
    ("config", "kind", "known", "warning"),
    [
        ("evidence: both\n", "labels", "both", ""),
        ("evidence: none\n", "none", "none", ""),
        ("evidence: none\n", "both", "none", "was trained without evidence: told both, it may write worse"),
        ("evidence: labels\n", "reports", "labels", "was trained with evidence: labels, and is told reports"),
        ("learning_rate: 1.0\n", "both", None, ""),
        ("evidence: 7\n", "both", None, ""),
        ("- of another program\n", "both", None, ""),
        (None, "both", None, ""),
    ],
)
def test_what_a_decoder_was_told_is_read_from_its_run(tmp_path, config, kind, known, warning):
    if config is not None:
        (tmp_path / "config.yaml").write_text(config, encoding="utf-8")
    assert trained_evidence(tmp_path) == known
    said = warn_of_evidence(tmp_path, kind)
    assert (warning in said) if warning else said == ""
    if warning:
        assert said.startswith(f"{tmp_path} ")


@pytest.mark.parametrize(
    ("config", "number"),
    [
        ("evidence: both\nevidence_num_neighbours: 1\n", 1),
        ("evidence: labels\nevidence_num_neighbours: 1\n", None),
        ("evidence: both\n", None),
        (None, None),
    ],
)
def test_as_many_reports_are_told_as_in_training(tmp_path, config, number):
    if config is not None:
        (tmp_path / "config.yaml").write_text(config, encoding="utf-8")
    assert trained_num_neighbours(tmp_path) == number
