from medfinetune.evaluation.summary import describe_results


def test_each_figure_stands_beside_its_control():
    results = {
        "encoder": {
            "recall_at_1_among_64": {"en": 0.5},
            "recall_at_1_among_64_shuffled_image": {},
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
        lines, ("en 0.500 0.016", "0.750 (chance: 0.250)", "zh 31.250 12.000", "2.500"), strict=True
    ):
        assert all(word in line for word in words.split()), line
    assert describe_results({}) == ""
