import copy

import pytest
from PIL import Image

from medfinetune.evaluation.page import write_page
from medfinetune.evaluation.page_grading import calibration_rows, grading_parts
from tests.evaluation.test_page import ATTACK, ENCODER, _Page

FIGURES = {
    "accuracy": 0.75,
    "accuracy_ci": [0.5, 1.0],
    "accuracy_shuffled_image": 0.25,
    "balanced_accuracy": 0.7,
    "auc": 0.8,
    "kappa": 0.654,
    "kappa_ci": [None, None],
    "chance": 0.5,
    "majority": 0.6,
    "num_images": 4,
    "num_classes": 2,
    "confusion": [[2, 1], [0, 1]],
}
NEIGHBOURS = [
    {
        "id": "query" + ATTACK,
        "image": "images/1.png",
        "label": "grade_0",
        "neighbours": [
            {"id": "a", "image": "images/1.png", "label": "grade_0", "right": True, "cosine": 0.91},
            {"id": "b", "image": "images/gone.png", "label": "grade_1", "right": False, "cosine": 0.5},
        ],
    }
]
GRADED = ENCODER | {
    "zero_shot_by_attribute": {"knee_grade": FIGURES | {"by_language": {"zh": FIGURES | {"accuracy": 0.5}}}},
    "classes_by_attribute": {"knee_grade": ["0", "1"]},
    "knn_by_attribute": {"knee_grade": {"5": FIGURES | {"num_training_images": 77}}},
    "linear_probe_by_attribute": {"knee_grade": FIGURES | {"C": 10.0, "num_training_images": 77}},
    "neighbours_by_attribute": {"knee_grade": NEIGHBOURS},
    "calibration": {
        "match": {
            "as_trained": {"expected_calibration_error": 0.31, "brier": 0.4},
            "refitted": {"expected_calibration_error": 0.04, "brier": 0.2},
        },
        "classes_by_attribute": {"knee_grade": {"as_trained": {"expected_calibration_error": 0.2, "brier": 0.9}}},
    },
}


@pytest.fixture
def run(tmp_path):
    (tmp_path / "images").mkdir()
    Image.new("RGB", (600, 300), (200, 10, 10)).save(tmp_path / "images" / "1.png")
    return tmp_path


def test_every_way_of_grading_is_shown_with_its_interval(run):
    text = write_page({"encoder": GRADED}, run, data_dir=run).read_text(encoding="utf-8")
    page = _Page(text)
    for expected in (
        "4 images; chance 0.500, always the most common class 0.600.",
        "prompts 0.750 [0.50, 1.00] 0.250 0.700 0.800 0.654 0",
        "prompts, zh 0.500 [0.50, 1.00]",
        "5 nearest 0.750 [0.50, 1.00] 0.250 0.700 0.800 0.654 77",
        "linear probe 0.750",
        "Confusion: prompts. Rows are true, columns stated, in images true 0 1 0 2 1 1 0 1",
        "Confusion: 5 nearest",
        "text belongs to image as trained 0.310 0.400",
        "text belongs to image refitted 0.040 0.200",
        "class: knee grade as trained 0.200 0.900",
        "query: grade 0 ✓ grade 0, 0.910 no image ✗ grade 1, 0.500",
    ):
        assert expected in page.text, expected
    assert ("section", "id", "grading") in page.attributes
    assert ("a", "href", "#grading") in page.attributes
    classes = [value for tag, name, value in page.attributes if tag == "figure" and name == "class"]
    assert classes == ["right", "wrong"]
    pictures = [value for tag, name, value in page.attributes if tag == "img" and name == "src"]
    assert len(pictures) == 2
    assert all(value.startswith("data:image/jpeg;base64,") for value in pictures)
    shares = [value for tag, name, value in page.attributes if tag == "td" and name == "style"]
    assert shares[:4] == ["--share: 66.7%", "--share: 33.3%", "--share: 0.0%", "--share: 100.0%"]
    assert "script" not in page.tags
    assert "http" not in text


def test_unordered_classes_have_no_kappa(run):
    plain = copy.deepcopy(GRADED)
    del plain["zero_shot_by_attribute"]["knee_grade"]["kappa"]
    assert "quadratic kappa" in write_page({"encoder": GRADED}, run).read_text(encoding="utf-8")
    assert "quadratic kappa" not in write_page({"encoder": plain}, run).read_text(encoding="utf-8")


def test_intervals_stand_beside_search(run):
    encoder = copy.deepcopy(ENCODER) | {"recall_ci": {"recall_at_1": [0.7, 0.9]}}
    encoder["recall_pools"]["en"]["image_to_text_ci"] = [0.95, 0.99]
    page = _Page(write_page({"encoder": encoder}, run).read_text(encoding="utf-8"))
    assert "95% interval 0.950 to 0.990" in page.text
    assert "recall at 1 0.810 0.020 0.70 to 0.90" in page.text


def test_results_without_confusions_have_no_section(run):
    assert grading_parts(ENCODER, run) == []
    assert calibration_rows(ENCODER) == []
    assert 'id="grading"' not in write_page({"encoder": ENCODER}, run).read_text(encoding="utf-8")
