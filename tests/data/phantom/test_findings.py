import numpy as np

from medfinetune.data.phantom.findings import ATTRIBUTES, combinations, report, sentences, zero_shot_prompts


def test_combinations_are_complete():
    rng = np.random.default_rng(0)
    every = combinations(rng)
    assert len(every) == 2 * 2 * 3 * 3 * 2 * 5 * 3 * 2
    assert len({tuple(findings.items()) for findings in every}) == len(every)
    assert every != combinations(rng)


def test_wordings_tell_values_apart():
    findings = combinations(np.random.default_rng(0))[0]
    for language in ("en", "zh"):
        for attribute, values in ATTRIBUTES.items():
            seen = [set(sentences(attribute, findings | {attribute: value}, language)) for value in values]
            assert all(len(wordings) == 3 for wordings in seen)
            assert len(set.union(*seen)) == 3 * len(values)


def test_reports_state_what_is_shown_and_vary():
    rng = np.random.default_rng(0)
    findings = combinations(rng)[0] | {"fracture": "left", "effusion": "none"}
    texts = {report(findings, "en", rng) for _ in range(30)}
    assert len(texts) > 20
    assert all("left" in text.lower() and "No " in text for text in texts)
    assert report({"knee_grade": "3"}, "zh", rng) in sentences("knee_grade", {"knee_grade": "3"}, "zh")


def test_prompts_are_whole_reports_for_every_value():
    prompts = zero_shot_prompts(np.random.default_rng(0), num_prompts=4)
    assert {attribute: tuple(values) for attribute, values in prompts.items()} == ATTRIBUTES
    assert all(len(texts) == 4 for values in prompts.values() for texts in values.values())
