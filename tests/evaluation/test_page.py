import json
from html.parser import HTMLParser

import pytest
from PIL import Image

from medfinetune.evaluation.page import read_predictions, write_page, write_results

ENCODER = {
    "num_pairs": 40,
    "num_images": 20,
    "num_parameters": 280_000,
    "recall_pools": {
        "en": {
            "image_to_text": 0.975,
            "text_to_image": 0.9,
            "image_to_text_shuffled_image": 0.0125,
            "chance": 1 / 64,
            "pool_size": 64,
            "num_pools": 2,
            "num_cases": 130,
        }
    },
    "recall": {"recall_at_1": 0.81},
    "recall_shuffled_image": {"recall_at_1": 0.02},
    "zero_shot_accuracy": 0.91,
    "zero_shot_accuracy_shuffled_image": 0.43,
    "zero_shot_chance": 0.42,
    "zero_shot_majority": 0.5,
    "zero_shot_by_attribute": {
        "knee_grade": {"accuracy": 0.91, "chance": 0.2, "majority": 0.3, "num_images": 20, "num_classes": 5}
    },
}
DECODER = {
    "num_cases": 2,
    "num_findings": 4,
    "num_parameters": 410_000,
    "bleu": {"zh": {"score": 61.5, "signature": "nrefs:1|tok:zh", "num_texts": 1}},
    "bleu_shuffled_image": {"zh": {"score": 30.5, "signature": "nrefs:1|tok:zh", "num_texts": 1}},
    "perplexity": 1.375,
    "perplexity_num_tokens": 99,
    "finding_accuracy": 0.75,
    "finding_accuracy_shuffled_image": 0.25,
    "finding_accuracy_majority": 0.5,
    "finding_accuracy_by_finding": {"heart": {"finding_accuracy": None, "num_findings": 0}},
}
ATTACK = "<script>alert('x')</script> & <b>bold</b>"


def _finding(reference, stated):
    return {"reference": reference, "stated": stated, "right": reference == stated}


PREDICTIONS = [
    {
        "id": "good",
        "image": "images/1.png",
        "language": "zh",
        "reference": "心影正常。",
        "generated": "心脏大小正常。",
        "generated_shuffled_image": "心影增大。",
        "findings": {"heart": _finding("normal", "normal"), "effusion": _finding("left", "left")},
    },
    {
        "id": "bad" + ATTACK,
        "image": "images/missing.png",
        "language": "en",
        "reference": "Left effusion." + ATTACK,
        "generated": ATTACK,
        "findings": {"heart": _finding("normal", "enlarged"), "effusion": _finding("left", None)},
    },
]


class _Page(HTMLParser):
    """Collects texts, tags and attributes, and checks that tags close in order."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.texts, self.attributes, self.open = [], [], [], []
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.attributes += [(tag, *attribute) for attribute in attributes]
        if tag not in ("meta", "img", "br"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.tags.append(tag)
        self.attributes += [(tag, *attribute) for attribute in attributes]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append(" ".join(data.split()))

    @property
    def text(self):
        return " ".join(filter(None, self.texts))


@pytest.fixture
def run(tmp_path):
    (tmp_path / "data" / "images").mkdir(parents=True)
    Image.new("RGB", (600, 300), (200, 10, 10)).save(tmp_path / "data" / "images" / "1.png")
    for name in ("encoder", "decoder"):
        (tmp_path / name).mkdir()
        log = [{"step": 1, "loss": 3.0}, {"step": 2, "loss": 2.0}]
        (tmp_path / name / "trainer_state.json").write_text(json.dumps({"log_history": log}))
    return tmp_path


def _write(run, results, predictions=(), **kwargs):
    folders = {f"{name}_dir": run / name for name in ("data", "encoder", "decoder")}
    text = write_page(results, run, predictions, **folders | kwargs).read_text(encoding="utf-8")
    return text, _Page(text)


def test_the_whole_page(run):
    prepare = {"records_in": 50, "pairs": 40, "dropped": {"missing_image": 10}, "by_source": {"reports": 40}}
    results = {"encoder": ENCODER, "decoder": DECODER, "prepare": prepare, "seconds": {"total": 271.25}}
    text, page = _write(run, results, PREDICTIONS)
    for expected in (
        "Finds the right text among 64 (en) 0.975 images shuffled 0.013 chance 0.016",
        "Zero-shot accuracy 0.910 images shuffled 0.430 chance 0.420",
        "Findings stated rightly 0.750 images shuffled 0.250 most common answer 0.500",
        "BLEU (zh) 61.5 images shuffled 30.5",
        "recall at 1 0.810 0.020",
        "knee grade 0.910 n/a 0.200 0.300 20",
        "perplexity 1.375 n/a 99 tokens",
        "nrefs:1|tok:zh",
        "50 records came in: 40 became pairs, 10 were dropped.",
        "missing image 10",
        "total 271.2",
        "say nothing about medicine",
        "✓ heart: normal",
        "✗ heart: normal, but says enlarged",
        "✗ effusion: left, but left out",
        "0 of 2 right",
        "with the image of another case 心影增大。",
    ):
        assert expected in page.text, expected
    assert page.tags.count("svg") == 2
    assert ("figure", "aria-label", "Loss by step: loss from 3 to 2") in page.attributes
    assert text.startswith("<!doctype html>")


def test_worst_cases_come_first_and_the_gallery_is_bounded(run):
    _, page = _write(run, {"decoder": DECODER}, PREDICTIONS)
    assert page.text.index("bad") < page.text.index("good (zh)")
    _, page = _write(run, {"decoder": DECODER}, PREDICTIONS, num_gallery=1)
    assert page.tags.count("article") == 1
    assert "1 of 2 cases" in page.text


def test_nothing_is_fetched_and_every_image_is_described(run):
    text, page = _write(run, {"encoder": ENCODER, "decoder": DECODER}, PREDICTIONS)
    assert "http:" not in text
    assert "https:" not in text
    assert not {"script", "link", "iframe", "object"} & set(page.tags)
    sources = [value for tag, name, value in page.attributes if name in ("src", "srcset")]
    assert len(sources) == 1
    assert sources[0].startswith("data:image/jpeg;base64,")
    assert all(value.startswith("#") for _, name, value in page.attributes if name == "href")
    assert [value for tag, name, value in page.attributes if tag == "img" and name == "alt"] == ["Image of case good"]
    assert "no image" in page.text


def test_texts_are_escaped(run):
    results = {"decoder": DECODER | {"bleu": {ATTACK: DECODER["bleu"]["zh"]}}, "seconds": {ATTACK: 1.0}}
    results["prepare"] = {"records_in": 1, "pairs": 0, "dropped": {ATTACK: 1}, "warnings": [ATTACK]}
    text, page = _write(run, results, PREDICTIONS)
    assert "script" not in page.tags
    assert "<b>bold" not in text
    assert page.text.count("alert('x')") >= 6


@pytest.mark.parametrize(
    ("results", "shown", "hidden"),
    [
        ({"encoder": ENCODER}, ["encoder"], ["decoder", "gallery", "data", "time"]),
        ({"decoder": DECODER}, ["decoder"], ["encoder", "gallery", "data", "time"]),
        ({"encoder": {"num_pairs": 1, "num_images": 1, "num_parameters": 5}}, ["encoder"], ["headlines"]),
        ({"seconds": {"total": 1}}, ["time"], ["encoder", "decoder", "headlines"]),
        ({}, [], ["encoder", "decoder", "headlines", "data", "time", "gallery"]),
    ],
)
def test_every_part_is_optional(run, results, shown, hidden):
    _, page = _write(run, results, encoder_dir=None, decoder_dir=None, data_dir=None)
    sections = {value for tag, name, value in page.attributes if tag == "section" and name == "id"}
    assert set(shown) <= sections
    assert not set(hidden) & sections
    assert "training" not in sections


def test_the_note_is_for_tiny_models_only(run):
    large = {"encoder": ENCODER | {"num_parameters": 203_000_000}}
    assert "Not medicine." not in _write(run, large)[1].text
    assert "Not medicine." in _write(run, large | {"is_tiny": True})[1].text
    assert "Not medicine." in _write(run, {"encoder": ENCODER})[1].text


def test_missing_figures_show_as_such(run):
    decoder = DECODER | {"perplexity": float("nan"), "finding_accuracy": None}
    _, page = _write(run, {"decoder": decoder})
    assert "perplexity n/a" in page.text
    assert "Findings stated rightly n/a" in page.text


def test_results_are_strict_json(tmp_path):
    write_results({"decoder": {"perplexity": float("inf"), 3: [float("nan"), 1.5]}}, tmp_path, PREDICTIONS)
    results = json.loads((tmp_path / "results.json").read_text(), parse_constant=pytest.fail)
    assert results == {"decoder": {"perplexity": None, "3": [None, 1.5]}}
    assert read_predictions(tmp_path) == PREDICTIONS
    assert sorted(path.name for path in tmp_path.iterdir()) == ["predictions.jsonl", "results.json"]
    assert read_predictions(tmp_path / "elsewhere") == []
    separated = [{"id": "a", "generated": "One.\u2028Two.\x85"}]
    write_results({}, tmp_path, separated)
    assert read_predictions(tmp_path) == separated
