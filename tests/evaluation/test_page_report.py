import json

import pytest
from PIL import Image

from medfinetune.evaluation.finding_f1 import Counts, FindingCounts
from medfinetune.evaluation.lexicon import load_lexicon
from medfinetune.evaluation.page import write_page
from medfinetune.evaluation.page_report import about_condition, report_parts
from medfinetune.evaluation.report_cases import ReportCase
from medfinetune.evaluation.report_suite import score_reports
from tests.evaluation.test_page import ATTACK, DECODER, ENCODER, _Page
from tests.evaluation.test_report_suite import count, made

EVIDENCE = {
    "neighbours": [{"id": "train-7" + ATTACK, "text": "There is mass." + ATTACK, "similarity": 0.875}],
    "labels": [{"task": "knee_grade", "probabilities": {"0": 0.2, "3" + ATTACK: 0.8}, "statement": {}}],
}


@pytest.fixture(scope="module")
def scored():
    cases, texts = made()
    result, rows = score_reports(
        cases,
        texts | {"evidence_labels": texts["own"]},
        count_findings=count,
        evidence=[EVIDENCE] * 60,
        compared_with={"runs/earlier": texts["no_evidence"]},
        latency={"per_token": {"median_s": 0.0125, "p95_s": 0.02, "mean_s": 0.015, "num_items": 640}},
        num_resamples=100,
    )
    return json.loads(json.dumps({"reports": result})), rows


def write(tmp_path, results, rows, **kwargs):
    text = write_page(results, tmp_path, rows, data_dir=tmp_path, **kwargs).read_text(encoding="utf-8")
    return text, _Page(text)


def test_the_section_shows_what_was_scored(scored, tmp_path):
    results, rows = scored
    _, page = write(tmp_path, results, rows)
    own = results["reports"]["conditions"]["own"]
    lost = results["reports"]["differences"]["shuffled_everything"]["finding_f1"]
    low, high = own["finding_f1_ci"]
    sections = {value for tag, name, value in page.attributes if tag == "section" and name == "id"}
    assert "reports" in sections
    assert "gallery" not in sections
    for expected in (
        f"Finding F1 {own['finding_f1']:.3f} shuffled everything",
        f"the system {own['finding_f1']:.3f} {low:.3f} to {high:.3f}",
        f"{lost['difference']:+.3f} [{lost['difference_ci'][0]:+.3f}, {lost['difference_ci'][1]:+.3f}] ●",
        "other system: runs/earlier",
        "60 cases, of 50 patients or, where unknown, images. Intervals",
        "100 resamples by patient or image.",
        "few cases",
        "finding F1 by skin type; control: shuffled everything",
        "per token 12.50 20.00 15.00 640",
        "evidence labels: another way to give evidence",
        "tok:zh",
        "48 of 60 cases, by finding F1, then token F1.",
        "similarity 0.875",
        "80%",
        "BLEU, zh ↑",
    ):
        assert expected in page.text, expected
    plots = [value for tag, name, value in page.attributes if tag == "figure" and name == "aria-label"]
    assert plots[0].startswith(f"Finding F1 by condition, with 95% intervals: the system {own['finding_f1']:.3f} (")
    assert "80+" not in plots[1]
    assert "0-17" not in plots[1]
    assert page.tags.count("svg") == 2


def test_worst_cases_come_first_with_their_pictures(scored, tmp_path):
    results, rows = scored
    worst = results["reports"]["worst_cases"][0]
    Image.new("RGB", (300, 300), (9, 9, 9)).save(tmp_path / "1.png")
    rows = [row | {"image": "1.png" if row["id"] == worst else "missing.png"} for row in rows]
    _, page = write(tmp_path, results, rows, num_gallery=2)
    assert page.tags.count("article") == 2
    assert [value for tag, name, value in page.attributes if tag == "img" and name == "alt"] == [
        f"Image of case {worst}"
    ]
    assert "no image" in page.text


def test_texts_are_escaped_and_nothing_is_fetched(scored, tmp_path):
    results, rows = scored
    text, page = write(tmp_path, results, [row | {"generated": ATTACK, "question": ATTACK} for row in rows])
    assert not {"script", "link", "iframe", "object"} & set(page.tags)
    assert "<b>bold" not in text
    assert "http:" not in text
    assert "https:" not in text


def test_rows_of_the_decoder_keep_their_own_gallery(scored, tmp_path):
    results, rows = scored
    plain = {"id": "plain", "language": "en", "reference": "a", "generated": "b"}
    _, page = write(tmp_path, results, [plain, *rows])
    sections = {value for tag, name, value in page.attributes if tag == "section" and name == "id"}
    assert {"reports", "gallery"} <= sections
    assert "1 of 1 cases." in page.text


def test_little_is_shown_of_little():
    cases = [ReportCase("a", "en", "x y", patient="1")]
    result, rows = score_reports(cases, {"own": ["x"]}, num_resamples=10)
    parts = report_parts(result, rows, None, 5)
    assert parts["main"] == "token F1"
    assert parts["control"] is None
    assert [table["title"].split(":")[0] for table in parts["tables"]] == ["Wording"]
    assert parts["tables"][0]["rows"][0]["cells"][0]["limits"] is None
    assert parts["cards"][0]["neighbours"] == []
    assert report_parts({}, [], None, 5) is None


def test_a_page_of_little_is_whole(tmp_path):
    cases = [ReportCase("a", "en", "x y", patient="1")]
    result, rows = score_reports(cases, {"own": ["x"]}, num_resamples=10)
    _, page = write(tmp_path, {"reports": result}, rows)
    assert "token F1 by language" in page.text
    assert "None" not in page.text


def test_the_largest_groups_are_shown():
    cases = [ReportCase(str(i), "en", "x y", source=f"source-{min(i, 13):02}") for i in range(20)]
    result, rows = score_reports(cases, {"own": ["x"] * 20}, num_resamples=10)
    (part,) = [part for part in report_parts(result, rows, None, 5)["groups"] if part["way"] == "source"]
    assert [row["name"] for row in part["rows"]] == [*(f"source-{i:02}" for i in range(11)), "source-13"]
    assert part["num_left_out"] == 2


def test_conditions_are_explained():
    assert about_condition("blank_image").endswith("empty image")
    assert about_condition("evidence_both") == "evidence both: another way to give evidence"


def test_the_split_is_named_and_the_one_that_was_trained_on_is_noted(scored, tmp_path):
    results, rows = scored
    _, page = write(tmp_path, results, rows)
    assert page.text.startswith("medfinetune: results")
    assert "held-out" not in page.text
    assert "Seen before." not in page.text
    _, page = write(tmp_path, results | {"split": "test"}, rows)
    assert "Results on cases of the split test" in page.text
    assert "60 cases of the split test, of 50" in page.text
    assert "Seen before." not in page.text
    _, page = write(tmp_path, {"reports": results["reports"] | {"split": "train"}}, rows)
    assert "Results on cases of the split train" in page.text
    assert "the models have seen them in training" in page.text


def test_the_system_comes_first_and_the_decoder_alone_is_called_so(scored, tmp_path):
    results, rows = scored
    both = {"encoder": ENCODER, "decoder": DECODER}
    _, page = write(tmp_path, both | {"reports": results["reports"] | {"evidence": "both"}}, rows)
    sections = [value for tag, name, value in page.attributes if tag == "section" and name == "id"]
    assert sections == ["headlines", "reports", "encoder", "decoder"]
    links = [value for tag, name, value in page.attributes if tag == "a" and name == "href"]
    assert links == ["#reports", "#encoder", "#decoder"]
    assert page.text.index("encoder and decoder as one system") < page.text.index("Finds the right text")
    for expected in (
        "Findings stated rightly, decoder alone 0.750",
        "BLEU, decoder alone (zh) 61.5",
        "Decoder alone, told nothing 4 findings",
        "Decoder alone: what it writes, told nothing",
    ):
        assert expected in page.text, expected
    _, page = write(tmp_path, both | {"reports": results["reports"] | {"evidence": "none"}}, rows)
    assert "alone" not in page.text.replace("reports alone", "")
    assert "Decoder: what it writes" in page.text


def test_findings_are_written_as_words(tmp_path):
    def grade(prediction, reference):
        one = Counts(1, 1, 1)
        return FindingCounts(*one, by_finding={"knee_grade": one}, present=one)

    cases = [ReportCase("a", "en", "x y", source="knee_source")]
    result, rows = score_reports(cases, {"own": ["x"]}, count_findings=grade, num_resamples=10)
    groups = {part["way"]: part["rows"][0]["name"] for part in report_parts(result, rows, None, 5)["groups"]}
    assert groups["finding"] == "knee grade"
    assert groups["source"] == "knee_source"
    text, _ = write(tmp_path, {"reports": result}, rows)
    assert ".conditions .wrap { white-space: normal; }" in text


def test_a_lexicon_that_reads_nothing_is_told(tmp_path):
    lexicon = load_lexicon("phantom")
    for reference, sentence in (
        ("x y", "The lexicon phantom reads no finding in these references."),
        ("Left effusion.", "Findings are by the lexicon phantom."),
    ):
        result, rows = score_reports([ReportCase("a", "en", reference)], {"own": ["x"]}, lexicon, num_resamples=10)
        _, page = write(tmp_path, {"reports": result}, rows)
        assert f"1 cases, of 1 images. {sentence} Intervals" in page.text
