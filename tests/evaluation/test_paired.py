import json

import numpy as np
import pytest

from medfinetune.errors import InputError
from medfinetune.evaluation.bootstrap import Bootstrap
from medfinetune.evaluation.case_statistics import mean_of_cases
from medfinetune.evaluation.paired import paired_differences, read_texts, two_sided_p


def drawn(gain, number=120, seed=0):
    """Scores of two systems whose cases are hard for both alike; the first is better by `gain`."""
    rng = np.random.default_rng(seed)
    hardness = rng.normal(size=number)
    return hardness + rng.normal(scale=0.2, size=number) + gain, hardness + rng.normal(scale=0.2, size=number)


def compared(one, other, rows=None, resamples=500, seed=0):
    bootstrap = Bootstrap(range(len(one)), resamples, seed)
    return paired_differences(bootstrap, {"score": mean_of_cases(one)}, {"score": mean_of_cases(other)}, rows)["score"]


def test_the_pair_shows_what_two_intervals_hide():
    one, other = drawn(0.1)
    found = compared(one, other)
    assert found["difference"] == pytest.approx(one.mean() - other.mean())
    assert found["difference_ci"][0] > 0
    assert found["p_value"] < 0.02
    assert found["num_cases"] == 120
    bootstrap = Bootstrap(range(120), 500)
    intervals = [bootstrap.interval(bootstrap.figures([mean_of_cases(values)])[0]) for values in (one, other)]
    assert intervals[0][0] < intervals[1][1]  # they overlap by far


def test_differences_are_those_of_the_same_draws():
    one, other = drawn(0.0, 20)
    bootstrap = Bootstrap(range(20), 100)
    expected = [(counts * (one - other)).sum() / counts.sum() for counts in bootstrap.counts]
    np.testing.assert_allclose(
        compared(one, other, resamples=100)["difference_ci"], np.percentile(expected, [2.5, 97.5])
    )


def test_a_p_value_below_5_percent_and_an_interval_without_0_say_the_same():
    agreed = []
    for seed in range(60):
        found = compared(*drawn(0.05, 60, seed), resamples=999, seed=seed)
        excludes = found["difference_ci"][0] > 0 or found["difference_ci"][1] < 0
        agreed.append((found["p_value"] < 0.05) == excludes)
    assert sum(agreed) >= 59  # but for the ties of one resample


def test_equal_systems_are_called_different_about_as_often_as_p_says():
    p_values = [compared(*drawn(0.0, 60, seed), resamples=300, seed=seed)["p_value"] for seed in range(200)]
    assert 0.01 < np.mean(np.array(p_values) < 0.05) < 0.11
    assert 0.35 < np.median(p_values) < 0.65


def test_two_sided_p_by_hand():
    assert two_sided_p(np.array([1.0, 2, 3, -1])) == 2 * 2 / 5
    assert two_sided_p(np.array([1.0, 2, 3])) == 2 / 4
    assert two_sided_p(np.zeros(9)) == 1.0
    assert two_sided_p(np.array([np.nan, -1.0])) == 1.0
    assert two_sided_p(np.array([np.nan])) is None


def test_what_cannot_be_compared_is_left_out():
    one, other = np.array([1.0, np.nan]), np.array([0.0, np.nan])
    assert compared(one, other, rows=[0]) == {
        "difference": 1.0,
        "difference_ci": None,
        "p_value": None,
        "num_cases": 1,
    }
    bootstrap = Bootstrap(range(2), 10)
    assert paired_differences(bootstrap, {"a": mean_of_cases(one)}, {"b": mean_of_cases(one)}) == {}
    assert paired_differences(bootstrap, {"a": mean_of_cases(one)}, {"a": mean_of_cases(one)}, [1]) == {}


def test_texts_of_another_run_are_found_by_id(tmp_path):
    path = tmp_path / "predictions.jsonl"
    rows = [{"id": "b", "generated": "two"}, {"id": "a", "generated": "one", "other": "1"}]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert read_texts(path, ["a", "b"]) == ["one", "two"]
    with pytest.raises(InputError, match=r"lacks 1 of 2 cases, e.g. c; both runs"):
        read_texts(path, ["a", "c"])
    with pytest.raises(InputError, match="line 1 has no id, or no text in other"):
        read_texts(path, ["a"], "other")
    with pytest.raises(InputError, match="no such file"):
        read_texts(tmp_path / "none.jsonl", [])
    path.write_text('{"id": "a", "generated": "x"}\n' * 2)
    with pytest.raises(InputError, match="line 2: the case a stands there twice"):
        read_texts(path, ["a"])
    path.write_text("{\n")
    with pytest.raises(InputError, match="line 1 is no JSON"):
        read_texts(path, ["a"])
