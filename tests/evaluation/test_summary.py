from medfinetune.evaluation.summary import describe_results


def test_each_figure_stands_beside_its_control():
    results = {
        "encoder": {
            "recall_at_1_among_64": {"en": 0.5},
            "recall_at_1_among_64_shuffled_image": {},
            "recall_at_1_chance": {"en": 0.167},
            "zero_shot_accuracy": 0.75,
            "zero_shot_chance": 0.25,
        },
        "decoder": {
            "bleu": {"zh": {"score": 31.25}},
            "bleu_shuffled_image": {"zh": {"score": 12.0}},
            "perplexity": 2.5,
            "finding_accuracy": None,
        },
    }
    lines = describe_results(results).splitlines()
    assert len(lines) == 4
    for line, words in zip(
        lines, ("en 0.500 0.167", "0.750 (chance: 0.250)", "zh 31.250 12.000", "2.500"), strict=True
    ):
        assert all(word in line for word in words.split()), line
    assert describe_results({}) == ""


def test_the_system_stands_beside_its_controls_and_other_runs():
    paired = {"finding_f1": {"difference": 0.4, "difference_ci": [0.3, 0.5]}}
    reports = {
        "evidence": "both",
        "conditions": {
            "own": {"finding_f1": 0.8, "finding_f1_ci": [0.7, 0.9]},
            "blank_image": {"finding_f1": 0.4, "finding_f1_ci": None},
            "no_evidence": {"finding_f1": None},
        },
        "differences": {"blank_image": paired, "no_evidence": {}},
        "compared_with": {"old": {"figures": {"finding_f1": 0.4}, "differences": paired}},
    }
    decoder = {"bleu": {"en": {"score": 10.0}}, "perplexity": None}
    first, own, blank, other = describe_results({"decoder": decoder, "reports": reports}).splitlines()
    assert first.startswith("decoder, told nothing")
    assert "own" in own
    assert "0.800 [0.700, 0.900]" in own
    assert "(own - this" not in own
    assert "blank image" in blank
    assert "0.400   (own - this: +0.400 [+0.300, +0.500])" in blank
    assert "run old" in other
    assert "(own - this: +0.400" in other
    alone = describe_results({"decoder": decoder, "reports": reports | {"evidence": "none"}})
    assert alone.startswith("decoder  BLEU")
