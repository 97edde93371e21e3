"""From images to reports with tiny models."""

import shutil

import pytest
import safetensors.torch
import torch
from PIL import Image

from medfinetune.data.evidence import Evidence, LabelEvidence, Neighbour, evidence_words
from medfinetune.data.load import load_chats
from medfinetune.errors import InputError
from medfinetune.evaluation.cases import Chats
from medfinetune.inference import pipeline as module
from medfinetune.inference.pipeline import ReportPipeline
from medfinetune.inference.report import Report, ReportRequest, Unwritten, WritingOptions

SHORT = {"max_new_tokens": 8}


def words_of(report):
    """All but numbers, whose last digits depend on the batch."""
    told = [near.id for near in report.evidence.neighbours], [label.best for label in report.evidence.labels]
    return report.text, report.language, report.images, report.warnings, told, report.unlike_training


def figures_of(report):
    shares = [share for label in report.evidence.labels for share in label.probabilities.values()]
    return [report.similarity, report.match_probability, *(n.similarity for n in report.evidence.neighbours), *shares]


@pytest.fixture
def prompts(monkeypatch):
    """What the decoder is asked, in the order of the batches."""
    seen, really = [], module.generate_candidates

    def watched(model, processor, chats, seeds, **options):
        for chat in chats:
            turn = next(turn for turn in chat["messages"] if turn["role"] == "user")
            seen.extend(part["text"] for part in turn["content"] if part["type"] == "text")
        return really(model, processor, chats, seeds, **options)

    monkeypatch.setattr(module, "generate_candidates", watched)
    return seen


def test_a_batch_writes_what_one_by_one_is_written(pipeline, image_files):
    images, languages = image_files[:5], ["en", "zh", "en", "zh", "en"]
    together = pipeline(images, languages, batch_size=4, **SHORT)
    alone = [pipeline([image], language, **SHORT)[0] for image, language in zip(images, languages, strict=True)]
    for one, two in zip(alone, together, strict=True):
        assert words_of(one) == words_of(two)
        assert figures_of(one) == pytest.approx(figures_of(two), abs=5e-6)
    assert [report.language for report in together] == languages
    assert len({report.text for report in together}) > 1


def test_draws_depend_on_the_image_and_the_seed_alone(pipeline, image_files):
    options = SHORT | {"num_candidates": 4}
    together = pipeline(image_files[:3], batch_size=16, **options)
    again = pipeline(image_files[2::-1], batch_size=3, **options)[::-1]
    texts = [{c.text for c in report.candidates} for report in together]
    assert texts == [{c.text for c in report.candidates} for report in again]
    assert [r.text for r in together] == [r.text for r in again]
    assert all(len(own) > 1 for own in texts)
    other = pipeline(image_files[:3], seed=1, **options)
    assert [{c.text for c in report.candidates} for report in other] != texts
    # The greedy text is always one of them.
    greedy = pipeline(image_files[:3], **SHORT)
    assert all(report.text in own for report, own in zip(greedy, texts, strict=True))
    assert all(report.candidates[0].score == max(c.score for c in report.candidates) for report in together)


@pytest.mark.parametrize("kind", ["none", "labels", "reports", "both"])
def test_evidence_goes_into_the_prompt(pipeline, image_files, prompts, kind):
    reports = pipeline(image_files[:2], ["en", "zh"], evidence=kind, **SHORT)
    questions = {"en": "Write the report of this medical image.", "zh": "请为这张医学图像撰写报告。"}
    for report in reports:
        words = evidence_words(report.evidence, "both", report.language)
        assert f"{words}\n{questions[report.language]}".strip() in prompts
        assert bool(report.evidence.neighbours) == (kind in ("reports", "both"))
        assert kind != "none" or not words
    assert any(report.evidence.labels for report in reports) == (kind in ("labels", "both"))


def test_it_is_told_what_it_was_trained_with(pipeline, image_files, prompts, monkeypatch):
    for trained, told in (("none", "none"), ("labels", "labels"), (None, "both")):
        monkeypatch.setattr(pipeline, "trained_with", trained)
        assert [report.evidence_kind for report in pipeline(image_files[:1], max_new_tokens=1)] == [told]
    assert [report.evidence_kind for report in pipeline(image_files[:1], evidence="reports", max_new_tokens=1)] == [
        "reports"
    ]


def test_it_is_told_as_many_reports_as_in_training(tiny_siglip, tiny_mllama, index_dir, image_files, tmp_path):
    decoder = shutil.copytree(tiny_mllama, tmp_path / "decoder")
    (decoder / "config.yaml").write_text("evidence: reports\nevidence_num_neighbours: 1\n")
    report = ReportPipeline.from_pretrained(tiny_siglip, decoder, index_dir, device="cpu")(image_files[:1], **SHORT)[0]
    assert (report.evidence_kind, len(report.evidence.neighbours)) == ("reports", 1)


def test_the_own_image_and_patient_are_never_told(pipeline, phantom_dir):
    train = load_chats(phantom_dir / "data", "train").filter(lambda row: row["task"] == "report")
    row = train[0]
    told = pipeline([row["images"]], row["language"], **SHORT)[0].evidence.neighbours
    assert told
    assert all(near.similarity < 0.999999 and near.id != row["id"] for near in told)
    first = told[0].id
    owner = next(
        r["patients"][0]["id"] for r in pipeline.finder.index.rows if any(p["id"] == first for p in r["pairs"])
    )
    without = pipeline([row["images"]], row["language"], patients=[owner], **SHORT)[0].evidence.neighbours
    assert first not in [near.id for near in without]
    assert without


def test_several_images_of_one_report(pipeline, image_files):
    one, several = pipeline([image_files[0], list(image_files[:3])], **SHORT)
    assert several.images == [str(path) for path in image_files[:3]]
    # The first is the one that is looked up, and all are shown to the decoder.
    assert [n.id for n in one.evidence.neighbours][:1] != []
    assert several.text != one.text


def test_own_words_are_asked(pipeline, image_files, prompts):
    pipeline(image_files[:1], evidence="none", prompts="Is the heart enlarged?", **SHORT)
    pipeline(image_files[:1], evidence="none", task="caption", **SHORT)
    assert prompts == ["Is the heart enlarged?", "Describe what this medical image shows."]


def test_scores_are_the_encoders(pipeline, image_files):
    report = pipeline(image_files[0], **SHORT)[0]
    with Image.open(image_files[0]) as image:
        embeds = pipeline.embedder.images([image]), pipeline.embedder.texts([report.text])
    cosine = float((embeds[0] * embeds[1]).sum())
    assert report.similarity == pytest.approx(cosine, abs=2e-6)
    probability = torch.sigmoid(torch.tensor(pipeline.embedder.scale * cosine + pipeline.embedder.bias)).item()
    assert report.match_probability == pytest.approx(probability, abs=2e-6)


def test_an_image_unlike_all_others_is_marked(pipeline, image_files, monkeypatch):
    monkeypatch.setitem(pipeline.finder.index.info, "unlike_below", -1.0)
    assert not pipeline(image_files[:1], **SHORT)[0].warnings
    monkeypatch.setitem(pipeline.finder.index.info, "unlike_below", 1.0)
    report = pipeline(image_files[:1], evidence="none", **SHORT)[0]
    assert report.unlike_training
    assert "unlike all training images" in report.warnings[0]


def test_a_prompt_that_is_too_long_loses_evidence_and_says_so(pipeline, image_files):
    report = pipeline(image_files[:1], max_length=40, **SHORT)[0]
    assert any("evidence was cut" in warning for warning in report.warnings)


def test_without_an_index(tiny_siglip, tiny_mllama, image_files):
    alone = ReportPipeline.from_pretrained(tiny_siglip, tiny_mllama, device="cpu")
    report = alone(image_files[:1], **SHORT)[0]
    assert (report.evidence, report.evidence_kind, report.unlike_training) == (Evidence(), "none", None)
    with pytest.raises(InputError, match="evidence: labels needs an index"):
        alone(image_files[:1], evidence="labels")


def test_an_index_of_another_encoder(tiny_siglip, tiny_mllama, index_dir, tmp_path):
    other = shutil.copytree(tiny_siglip, tmp_path / "other")
    weights = safetensors.torch.load_file(other / "model.safetensors")
    weights["logit_scale"] += 1
    safetensors.torch.save_file(weights, other / "model.safetensors", {"format": "pt"})
    with pytest.raises(InputError, match="is an index of another encoder"):
        ReportPipeline.from_pretrained(other, tiny_mllama, index_dir)


def test_a_prompt_that_cannot_be_asked_stops_no_other(pipeline, image_files):
    requests = [
        ReportRequest(image_files[:1], prompt="Why?<|eot_id|>", id="own"),
        ReportRequest(image_files[1:2], prompt="Why?", id="other"),
    ]
    found = dict(pipeline.stream(requests, WritingOptions(**SHORT)))
    assert "its prompt cannot be asked" in found[0].reason
    assert isinstance(found[1], Report)


def test_labels_need_an_index_with_labels(pipeline, image_files, monkeypatch):
    monkeypatch.setattr(pipeline.finder.index, "labels", [])
    with pytest.raises(InputError, match="evidence: labels needs an index with labels"):
        pipeline(image_files[:1], evidence="labels", **SHORT)


def test_an_image_that_does_not_open(pipeline, image_files, tmp_path):
    broken = tmp_path / "broken.png"
    broken.write_bytes(image_files[0].read_bytes()[:100])
    with pytest.raises(InputError, match=r"broken.png: does not open as an image"):
        pipeline([image_files[0], broken], **SHORT)
    requests = [ReportRequest([path], id=str(path)) for path in (image_files[0], broken, image_files[1])]
    found = dict(pipeline.stream(requests, WritingOptions(**SHORT)))
    assert isinstance(found[1], Unwritten)
    assert isinstance(found[0], Report)
    assert isinstance(found[2], Report)


def test_chats_are_answered_with_the_evidence_that_is_given(pipeline, phantom_dir, prompts):
    cases = load_chats(phantom_dir / "data", "test").filter(lambda row: row["task"] == "report").select(range(4))
    label = LabelEvidence("heart", {"enlarged": 0.9, "normal": 0.1}, {"en": "Enlarged heart", "zh": "心影增大"})
    given = [Evidence((Neighbour("n", f"Neighbour {i}.", 0.9),), (label,)) for i in range(3)] + [None]
    texts = pipeline.write(Chats(cases), given, "both", cases["language"], batch_size=3, **SHORT)
    assert len(texts) == 4
    for i, language in enumerate(cases["language"][:3]):
        words = evidence_words(given[i], "both", language)
        assert any(prompt.startswith(f"{words}\n") for prompt in prompts)
    assert sum("Neighbour" in prompt for prompt in prompts) == 3
    # None at all: as the pipeline itself writes without evidence.
    without = pipeline.write(Chats(cases), [None] * 4, "none", cases["language"], **SHORT)
    reports = pipeline([row["images"] for row in cases], cases["language"], evidence="none", **SHORT)
    assert without == [report.text for report in reports]
    # Several: the best of them, in any batch.
    best = pipeline.write(cases, [None] * 4, "none", num_candidates=3, batch_size=12, **SHORT)
    assert best == [pipeline.write([cases[i]], [None], "none", num_candidates=3, **SHORT)[0] for i in range(4)]
    with pytest.raises(InputError, match="evidences: 1 were given for 4 chats"):
        pipeline.write(cases, [None], "none")


def test_stages_are_timed(tiny_siglip, tiny_mllama, index_dir, image_files):
    timed = ReportPipeline.from_pretrained(tiny_siglip, tiny_mllama, index_dir, device="cpu")
    timed(image_files[:3], batch_size=2, **SHORT)
    figures = timed.clock.figures()
    assert {name: figures[name]["num_items"] for name in ("embedding", "lookup", "first_token", "scoring")} == {
        "embedding": 3,
        "lookup": 3,
        "first_token": 3,
        "scoring": 3,
    }
    assert 0 < figures["per_token"]["num_items"] <= 3 * 7


def test_columns_must_fit(pipeline, image_files):
    with pytest.raises(InputError, match="languages: 1 were given for 2 images"):
        pipeline(image_files[:2], ["en"])
    with pytest.raises(InputError, match="language 'fr' is none of en, zh"):
        pipeline(image_files[:1], "fr")
