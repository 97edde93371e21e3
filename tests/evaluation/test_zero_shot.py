import json
import math

import pytest
import torch
from torch.nn import functional as F

from medfinetune.errors import InputError
from medfinetune.evaluation.zero_shot import class_scores, embed_classes, read_prompts, true_values, zero_shot_accuracy

PROMPTS = {"side": {"left": ["l1", "l2"], "right": ["r1"]}, "grade": {"0": ["g0"], "1": ["g1"], "2": ["g2", "g2b"]}}
IDS = ["a", "b", "c"]


def _embed(texts):
    generator = torch.Generator().manual_seed(0)
    table = {
        text: torch.randn(5, generator=generator) for values in PROMPTS.values() for v in values.values() for text in v
    }
    return F.normalize(torch.stack([table[text] for text in texts]), dim=-1)


def test_prompts_are_embedded_class_by_class():
    classes = embed_classes(PROMPTS, _embed)
    assert [len(embeds) for embeds in classes["side"]] == [2, 1]
    assert [len(embeds) for embeds in classes["grade"]] == [1, 1, 2]
    torch.testing.assert_close(classes["grade"][2], _embed(["g2", "g2b"]))


def test_scores_and_accuracy_against_a_plain_loop():
    classes = embed_classes(PROMPTS, _embed)
    images = F.normalize(torch.randn(40, 5, generator=torch.Generator().manual_seed(1)), dim=-1)
    truths = {"side": {i: ("left", "right")[i % 2] for i in range(40)}, "grade": {i: str(i % 3) for i in range(3, 40)}}
    scores = {attribute: class_scores(images, embeds, 3.0, -1.0) for attribute, embeds in classes.items()}
    result = zero_shot_accuracy(scores, PROMPTS, truths)
    for attribute, by_row in truths.items():
        right = 0
        for row, truth in by_row.items():
            probability = []
            for embeds in classes[attribute]:
                each = [1 / (1 + math.exp(-(3.0 * float(images[row] @ embed) - 1.0))) for embed in embeds]
                probability.append(sum(each) / len(each))
            for score, expected in zip(scores[attribute][row].tolist(), probability, strict=True):
                assert math.isclose(score, math.log(expected), rel_tol=1e-4, abs_tol=1e-5)
            right += list(PROMPTS[attribute])[probability.index(max(probability))] == truth
        assert result[attribute]["accuracy"] == right / len(by_row)
    assert result["side"]["chance"] == 1 / 2
    assert result["side"]["majority"] == 1 / 2
    assert result["grade"]["num_images"] == 37
    assert result["grade"]["majority"] == 13 / 37


def test_true_values_come_from_the_metadata():
    metadata = [json.dumps({"side": "left", "grade": 2}), json.dumps({"side": "right"}), ""]
    assert true_values(IDS, metadata, PROMPTS) == {"side": {0: "left", 1: "right"}, "grade": {0: "2"}}


def test_missing_keys_and_unknown_values_are_named():
    with pytest.raises(InputError, match="no pair has the key grade"):
        true_values(IDS, ['{"side": "left"}'] * 3, PROMPTS)
    with pytest.raises(InputError, match="pair b: metadata: side: 'up' has no prompts"):
        true_values(IDS, ['{"side": "left"}', '{"side": "up"}', ""], PROMPTS)


def test_reads_the_file(tmp_path):
    path = tmp_path / "zero_shot.yaml"
    path.write_text("grade: {0: [a], 1: [b, c]}")
    assert read_prompts(path) == {"grade": {"0": ["a"], "1": ["b", "c"]}}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "is empty"),
        ("grade: [a]", "grade: must map at least two values"),
        ("grade: {0: [a]}", "grade: must map at least two values"),
        ("grade: {0: [a], 1: b}", "grade: 1: must be a list of prompts"),
        ("grade: {0: [a], 1: []}", "grade: 1: must be a list of prompts"),
    ],
)
def test_a_wrong_file_is_named(tmp_path, content, message):
    path = tmp_path / "zero_shot.yaml"
    path.write_text(content)
    with pytest.raises(InputError, match=message) as error:
        read_prompts(path)
    assert str(path) in str(error.value)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(InputError, match=r"zero_shot\.yaml: no such file"):
        read_prompts(tmp_path / "zero_shot.yaml")
