import pytest
import torch
from PIL import Image

from medfinetune.encoder.collator import SigLIPCollator
from medfinetune.encoder.labels import group_ids_of, labels_from_groups
from medfinetune.encoder.loss import sigmoid_loss
from medfinetune.encoder.model import load_encoder

COLUMNS = {
    "pixel_sha256": [["a"], ["b"], ["a"], ["c"], ["d"], ["e"]],
    "text": ["Grade 2.", "grade 2", "二级。", "Grade 3.", "Yes", "yes!"],
    "label": ["2", "2", "2", "3", "yes", "yes"],
    "patient_id": ["p", None, "p", "p", None, None],
    "source": ["knee"] * 4 + ["slake"] * 2,
    "task": ["caption"] * 4 + ["question"] * 2,
}


def reference(columns, duplicates):
    """Row by row, as the rule reads."""
    n = len(columns["text"])
    targets, weights = torch.zeros(n, n), torch.ones(n, n)
    words = [text.lower().strip(".!。") for text in columns["text"]]
    for i in range(n):
        for j in range(n):
            same_label = (
                columns["task"][i] != "question"
                and columns["task"][j] != "question"
                and columns["source"][i] == columns["source"][j]
                and columns["label"][i] == columns["label"][j] is not None
            )
            same = words[i] == words[j] or columns["pixel_sha256"][i] == columns["pixel_sha256"][j] or same_label
            patient = columns["source"][i] == columns["source"][j] and columns["patient_id"][i] is not None
            patient = patient and columns["patient_id"][i] == columns["patient_id"][j]
            if i == j or (same and duplicates == "positive"):
                targets[i, j] = 1
            elif duplicates != "negative" and (same or patient):
                weights[i, j] = 0
    return targets, weights


@pytest.mark.parametrize("duplicates", ["positive", "ignore", "negative"])
def test_labels_of_a_batch(duplicates):
    groups = group_ids_of(COLUMNS)
    targets, weights = labels_from_groups(groups, groups, duplicates=duplicates)
    expected_targets, expected_weights = reference(COLUMNS, duplicates)
    assert torch.equal(targets, expected_targets)
    assert torch.equal(weights, expected_weights)


def test_a_process_sees_its_rows_of_the_whole():
    groups = group_ids_of(COLUMNS)
    whole = labels_from_groups(groups, groups)
    part = labels_from_groups(groups[2:4], groups, first_text=2)
    assert torch.equal(part[0], whole[0][2:4])
    assert torch.equal(part[1], whole[1][2:4])


def test_labels_and_patients_count_within_their_source_and_answers_only_with_their_question():
    columns = {"text": ["a", "b", "c", "d"], "label": ["1", "1", "yes", "yes"], "patient_id": ["7", "7", None, None]}
    columns |= {"source": ["knee", "chen", "slake", "slake"], "task": ["caption", "caption", "question", "question"]}
    groups = group_ids_of(columns)
    targets, weights = labels_from_groups(groups, groups)
    assert torch.equal(targets, torch.eye(4))
    assert torch.equal(weights, torch.ones(4, 4))


def test_what_the_tokenizer_would_confuse_is_not_the_same_text():
    groups = group_ids_of({"text": ["<5 mm", ">5 mm", "less than 5 MM."]})
    targets, _ = labels_from_groups(groups, groups)
    assert targets.tolist() == [[1, 0, 1], [0, 1, 0], [1, 0, 1]]


def test_what_differs_behind_the_last_token_is_the_same_text(tiny_siglip):
    """On the fly, from the cache's columns, and in the targets; also beside a text that is spelt otherwise."""
    tokenizer = load_encoder(str(tiny_siglip))[1]
    long = "no fracture of the left knee " * 20
    texts = [long + "but of the right one", long, long.upper(), "no fracture"]
    collator = SigLIPCollator(tokenizer)
    input_ids = collator.texts(texts)["input_ids"]
    assert torch.equal(input_ids[0], input_ids[1])
    rows = [{"images": [Image.new("RGB", (48, 48), (i, 0, 0))], "text": text} for i, text in enumerate(texts)]
    groups = collator(rows)["group_ids"]
    assert torch.equal(groups, group_ids_of({"text": texts}, input_ids.to(torch.int32)))
    targets, _ = labels_from_groups(groups, groups)
    same = [[1, 1, 1, 0], [1, 1, 1, 0], [1, 1, 1, 0], [0, 0, 0, 1]]
    assert targets.tolist() == same
    assert labels_from_groups(groups, groups, duplicates="ignore")[1][0].tolist() == [1, 0, 0, 1]
    # Where a tokenizer keeps capitals, the text's own rule still joins the second and the third.
    without = group_ids_of({"text": texts}, torch.tensor([[1], [1], [2], [3]]))
    assert labels_from_groups(without, without)[0][1].tolist() == [1, 1, 1, 0]


def test_unknown_is_never_the_same():
    groups = group_ids_of({"text": ["a", "b"], "label": [None, ""], "patient_id": ["", None]})
    assert torch.equal(labels_from_groups(groups, groups)[0], torch.eye(2))
    assert (groups[:, [0, 2, 3]] == 0).all()


def test_numbers_do_not_depend_on_the_run():
    assert group_ids_of({"text": ["a"]}).tolist() == [[0, -6145202483109484030, 0, 0, 0]]


def test_the_optimum_calls_every_right_text_right():
    """Two images of one grade: with `negative` the best a model can do is 1 in 2, with `positive` it is certain."""
    image = torch.nn.functional.normalize(torch.ones(2, 3), dim=1)
    columns = {"text": ["grade 2", "grade 2"]}
    groups = group_ids_of(columns)
    losses = {}
    for duplicates in ("positive", "negative"):
        targets, weights = labels_from_groups(groups, groups, duplicates=duplicates)
        biases = torch.linspace(-20, 20, 401)
        values = [sigmoid_loss(image, image, torch.tensor(1.0), b, targets, weights).item() for b in biases]
        best = min(range(len(values)), key=values.__getitem__)
        losses[duplicates] = torch.sigmoid(1 + biases[best]).item()
    assert losses["positive"] > 0.999
    assert losses["negative"] == pytest.approx(0.5, abs=0.02)
