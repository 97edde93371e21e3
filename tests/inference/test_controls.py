"""What reaches the decoder where the system's images and evidence are its own, another's, or taken away."""

import hashlib
import re
import weakref

import datasets
import pytest
import torch
from PIL import Image

from medfinetune.data.evidence import Evidence, LabelEvidence, Neighbour, evidence_words, with_evidence
from medfinetune.decoder.generation import likelihoods
from medfinetune.errors import InputError
from medfinetune.evaluation.cases import Chats, FirstImages, load_cases, references
from medfinetune.inference import controls
from medfinetune.inference import pipeline as module
from medfinetune.inference.conditions import CONTROLS, COPIED, STATED, Condition, conditions_of
from medfinetune.inference.controls import ControlledWriter
from medfinetune.inference.pipeline import ReportPipeline
from medfinetune.inference.report import WritingOptions

OPTIONS = WritingOptions(batch_size=4, max_new_tokens=8)
OF_IMAGES = ("shuffled_everything", "shuffled_decoder", "random_evidence")


def pixels(row):
    return tuple(hashlib.sha256(image.tobytes()).hexdigest() for image in row["images"])


def prompt(row):
    assert row["messages"][-2]["role"] == "user"  # the answer behind it is the collator's to hide
    return row["messages"][-2]["content"][-1]["text"]


@pytest.fixture
def seen(monkeypatch):
    """The rows that reach the decoder, by their id, with the number of texts that are asked for; no model runs."""
    found: dict[str, list[tuple[dict, int]]] = {}

    def watched(model, processor, chats, seeds, **options):
        for chat, own in zip(chats, seeds, strict=True):
            found.setdefault(chat["id"], []).append((chat, len(own)))
        return [
            [f"{chat['id']} {number}" for number in range(len(own))] for chat, own in zip(chats, seeds, strict=True)
        ]

    monkeypatch.setattr(module, "generate_candidates", watched)
    return found


@pytest.fixture(scope="module")
def new_cases(phantom_dir):
    return load_cases(phantom_dir / "data", "test", ["report"])


@pytest.fixture(scope="module")
def known_cases(phantom_dir):
    """The index knows their pixels and their patients."""
    return load_cases(phantom_dir / "data", "train", ["report"])


@pytest.fixture(scope="module")
def alone(tiny_mllama, pipeline):
    """A decoder, and nothing else."""
    return ReportPipeline(None, None, pipeline.decoder, pipeline.decoder_processor)


def rows_of(writer, condition, seen, ids):
    """What the decoder gets of each case under one condition."""
    seen.clear()
    writer.write({"it": condition})
    assert {len(rows) for rows in seen.values()} == {1}
    return [seen[name][0][0] for name in ids]


def told_of(pipeline, rows, languages, keys=None):
    """An independent search for what is to be told of the images that are shown."""
    embeds = pipeline.embedder.images([row["images"][0] for row in rows])
    found = pipeline.finder.find(embeds, keys, None, languages)
    return [evidence_words(one, "both", language) for one, language in zip(found, languages, strict=True)]


def test_what_the_decoder_sees_and_is_told(pipeline, new_cases, seen):
    pairs, chats = new_cases
    ids, languages, truths = chats["id"], list(chats["language"]), references(chats)
    writer = ControlledWriter(pipeline, pairs, chats, "both", OPTIONS)
    rows = {name: rows_of(writer, one, seen, ids) for name, one in ({"own": Condition()} | CONTROLS).items()}
    images = {name: [pixels(row) for row in of_each] for name, of_each in rows.items()}
    prompts = {name: [prompt(row) for row in of_each] for name, of_each in rows.items()}
    asked = [prompt(chat) for chat in chats]

    own = [pixels(chat) for chat in chats]
    for name in ("own", "no_evidence", "random_evidence", "true_report_as_evidence"):
        assert images[name] == own
    for name in ("shuffled_everything", "shuffled_decoder"):
        assert sorted(images[name]) == sorted(own)
        assert all(one != other for one, other in zip(images[name], own, strict=True))
    assert images["shuffled_decoder"] == images["shuffled_everything"]
    for blank, chat in zip(rows["blank_image"], chats, strict=True):
        assert [image.size for image in blank["images"]] == [image.size for image in chat["images"]]
        assert not any(image.convert("RGB").getbbox() for image in blank["images"])

    of_own = [
        f"{words}\n{question}" for words, question in zip(told_of(pipeline, chats, languages), asked, strict=True)
    ]
    for name in ("own", "shuffled_decoder", "blank_image"):
        assert prompts[name] == of_own
    # Found for the image that is shown, and told in the language of the case.
    of_other = told_of(pipeline, rows["shuffled_everything"], languages)
    of_other = [f"{words}\n{question}" for words, question in zip(of_other, asked, strict=True)]
    assert prompts["shuffled_everything"] == prompts["random_evidence"] == of_other
    assert all(one != other for one, other in zip(of_own, of_other, strict=True))
    assert any(
        languages[i] != languages[own.index(images["shuffled_everything"][i])] for i in range(len(own))
    )  # else the language could be the other's
    for text, language in zip(prompts["random_evidence"], languages, strict=True):
        assert ("相似图像的报告" in text) == (language == "zh")
        assert ("Reports of similar images" in text) == (language == "en")
    assert prompts["no_evidence"] == asked
    truth = [Evidence([Neighbour("", text, 1)]) for text in truths]
    assert prompts["true_report_as_evidence"] == [
        f"{evidence_words(one, 'reports', language)}\n{question}"
        for one, language, question in zip(truth, languages, asked, strict=True)
    ]
    for name, of_each in prompts.items():
        if name != "true_report_as_evidence":
            assert not any(truth in text for truth, text in zip(truths, of_each, strict=True)), name


@pytest.fixture
def lookups(pipeline, monkeypatch):
    """Everything that is found in the index."""
    found, really = [], pipeline.finder.find

    def watched(*args):
        found.append(really(*args))
        return found[-1]

    monkeypatch.setattr(pipeline.finder, "find", watched)
    return found


@pytest.mark.parametrize("named", [True, False])
def test_cases_of_the_index_are_never_told_themselves(pipeline, known_cases, seen, lookups, named):
    """Neither their pixels nor their patients, and no way leads back to them over the image of another."""
    pairs, chats = known_cases
    unnamed = pairs.remove_columns("patient_id").add_column("patient_id", [None] * len(pairs))
    writer = ControlledWriter(pipeline, pairs if named else unnamed, chats, "both", OPTIONS)
    written = writer.write({name: CONTROLS[name] for name in ("shuffled_everything", "random_evidence")})
    owner = {pair["id"]: row for row in pipeline.finder.index.rows for pair in row["pairs"]}
    of_own, of_other = lookups
    first_row = {}
    for i, keys in enumerate(pairs["pixel_sha256"]):
        first_row.setdefault(tuple(keys), i)
    by_pixels = {pixels(chat): pairs[i]["pixel_sha256"] for i, chat in enumerate(chats)}
    for i, pair in enumerate(pairs):
        others = by_pixels[pixels(seen[pair["id"]][0][0])]
        assert others != pair["pixel_sha256"]
        assert of_own[i].neighbours
        assert of_other[i].neighbours
        for evidence, forbidden in ((of_own[i], [pair["pixel_sha256"]]), (of_other[i], [pair["pixel_sha256"], others])):
            patients = {pairs[first_row[tuple(keys)]]["patient_id"] for keys in forbidden}
            for near in evidence.neighbours:
                assert not {key for keys in forbidden for key in keys} & set(owner[near.id]["pixels"])
                assert not patients & {patient["id"] for patient in owner[near.id]["patients"]}
        copied = written.texts[COPIED][i]
        assert copied == of_own[i].neighbours[0].text
        assert any("一" <= sign <= "鿿" for sign in copied) == (pair["language"] == "zh")


def test_patients_are_known_from_the_pairs_too(pipeline, new_cases, known_cases, lookups, seen):
    """Where a published split parts the images of one patient, pixels alone do not tell."""
    pairs, chats = new_cases
    theirs = known_cases[0]
    renamed = pairs.remove_columns("patient_id").add_column("patient_id", list(theirs["patient_id"])[: len(pairs)])
    ControlledWriter(pipeline, renamed, chats, "both", OPTIONS).write({"it": CONTROLS["random_evidence"]})
    owner = {pair["id"]: row for row in pipeline.finder.index.rows for pair in row["pairs"]}
    assert len(lookups) == 2
    for found in lookups:
        for evidence, patient in zip(found, renamed["patient_id"], strict=True):
            assert evidence.neighbours
            assert all(patient != who["id"] for near in evidence.neighbours for who in owner[near.id]["patients"])


def test_what_comes_of_it(pipeline, new_cases, seen):
    pairs, chats = new_cases
    fresh = ReportPipeline(
        pipeline.embedder._model,
        pipeline.embedder._collator._processor,
        pipeline.decoder,
        pipeline.decoder_processor,
        pipeline.finder.index,
    )
    writer = ControlledWriter(fresh, pairs, chats, "labels", OPTIONS)
    written = writer.write(dict(reversed(conditions_of("labels", ["reports"]).items())))
    assert next(iter(written.texts)) == "own"
    assert list(written.texts)[-2:] == [COPIED, STATED]
    for text, told in zip(written.texts[STATED], written.evidence, strict=True):
        language = "zh" if any("一" <= sign <= "鿿" for sign in text) else "en"
        stop = "。" if language == "zh" else "."
        stated = [LabelEvidence(**label).stated(language) for label in told["labels"]]
        assert [part.strip() for part in text.split(stop)[:-1]] == stated
    assert written.texts["own"] == [f"{name} 0" for name in chats["id"]]
    assert not written.left_out
    # Labels are told, reports only in the variant and to the one who copies.
    assert all(told["labels"] and not told["neighbours"] for told in written.evidence)
    assert all(text in set(near) for text, near in zip(written.texts[COPIED], _neighbours(fresh, chats), strict=True))
    # Of the case's own image, whatever the decoder was shown.
    embeds = fresh.embedder.images([chat["images"][0] for chat in chats])
    assert set(written.similarities) == set(written.texts)
    for name, texts in written.texts.items():
        cosines = (fresh.embedder.texts(texts) * embeds).sum(dim=1).tolist()
        assert written.similarities[name] == pytest.approx(cosines, abs=1e-5)
    # The controls' look-ups are not the system's.
    assert written.latency["lookup"]["num_items"] == len(chats)
    assert fresh.clock.figures()["lookup"]["num_items"] == 2 * len(chats)


def _neighbours(pipeline, chats):
    embeds = pipeline.embedder.images([chat["images"][0] for chat in chats])
    return [[near.text for near in one.neighbours] for one in pipeline.finder.find(embeds, languages=chats["language"])]


def test_a_system_that_is_told_nothing_copies_all_the_same(pipeline, new_cases, seen):
    written = ControlledWriter(pipeline, *new_cases, "none", OPTIONS).write(conditions_of("none"))
    assert set(written.texts) == {"own", "shuffled_everything", "blank_image", COPIED, STATED}
    assert written.evidence == []
    assert not any("Reports of similar" in prompt(row) for rows in seen.values() for row, _ in rows)


def test_without_an_encoder(alone, new_cases, seen):
    conditions = conditions_of("none") | {"shuffled_decoder": CONTROLS["shuffled_decoder"]}
    written = ControlledWriter(alone, *new_cases, "none", OPTIONS).write(conditions)
    assert set(written.texts) == {"own", "shuffled_everything", "blank_image", "shuffled_decoder"}
    assert (written.similarities, written.evidence, written.left_out) == ({}, [], {})
    for chat in new_cases[1]:
        own, everything, blank, decoder = (pixels(row) for row, _ in seen[chat["id"]])
        assert own == pixels(chat)
        assert everything == decoder
        assert len({own, everything, blank}) == 3


def test_images_that_cannot_be_shuffled(pipeline, new_cases, seen):
    pairs, chats = (table.select(range(2)) for table in new_cases)
    assert pairs[0]["pixel_sha256"] == pairs[1]["pixel_sha256"]
    writer = ControlledWriter(pipeline, pairs, chats, "both", OPTIONS)
    written = writer.write(conditions_of("both"))
    assert set(written.left_out) == set(OF_IMAGES)
    assert set(written.texts) == {"own", *CONTROLS, COPIED, STATED} - set(OF_IMAGES)
    assert all("one image belongs to 2 of 2 cases" in why for why in written.left_out.values())
    assert writer.likelihoods({name: CONTROLS[name] for name in OF_IMAGES}) == {}


def test_cases_that_share_one_of_several_images_do_not_swap(alone, seen):
    drawn = {name: Image.new("RGB", (8, 8), colour) for name, colour in zip("abcdefgh", range(0, 256, 32), strict=True)}
    shown = ["ab", "ca", "de", "fd", "gh"]
    asked = [{"role": "user", "content": "?"}, {"role": "assistant", "content": "!"}]
    table = {
        "id": list("12345"),
        "images": [[drawn[name] for name in names] for names in shown],
        "pixel_sha256": [list(names) for names in shown],
        "messages": [asked] * 5,
        "language": ["en"] * 5,
        "source": ["s"] * 5,
        "patient_id": [None] * 5,
    }
    cases = datasets.Dataset.from_dict(table).cast_column("images", datasets.List(datasets.Image()))
    for seed in range(5):
        seen.clear()
        ControlledWriter(alone, cases, cases, "none", OPTIONS, seed).write({"it": CONTROLS["shuffled_decoder"]})
        for name, names in zip(table["id"], shown, strict=True):
            others = pixels(seen[name][0][0])
            assert not {hashlib.sha256(drawn[own].tobytes()).hexdigest() for own in names} & set(others)


def test_patients_do_not_swap_their_own_images(alone):
    table = {"id": list("123456"), "pixel_sha256": [[name] for name in "abcdef"], "messages": [[]] * 6}
    table |= {"images": [[]] * 6, "language": ["en"] * 6, "source": ["s"] * 6}
    owners = ["p", "p", "q", "q", None, ""]
    cases = datasets.Dataset.from_dict(table | {"patient_id": owners})
    for seed in range(8):
        others = ControlledWriter(alone, cases, cases, "none", OPTIONS, seed).others
        assert sorted(others) == list(range(6))
        assert all(owners[i] != owners[other] for i, other in enumerate(others) if owners[i])
    # Where nearly all are one patient's, another image of that patient is the best there is.
    cases = datasets.Dataset.from_dict(table | {"patient_id": ["p"] * 5 + ["q"]})
    others = ControlledWriter(alone, cases, cases, "none", OPTIONS).others
    assert all(i != other for i, other in enumerate(others))


def test_candidates_are_held_against_the_image_of_the_condition(pipeline, new_cases, seen, monkeypatch):
    held, really = [], module.rank_candidates

    def watched(texts, embed, *args):
        held.append((texts[0].split()[0], embed))
        return really(texts, embed, *args)

    monkeypatch.setattr(module, "rank_candidates", watched)
    pairs, chats = new_cases
    writer = ControlledWriter(pipeline, pairs, chats, "none", OPTIONS)
    conditions = conditions_of("none", ["reranked_3"])
    everything = CONTROLS["shuffled_everything"]
    conditions["reranked_everything"] = Condition(everything.image, everything.evidence, "other", num_candidates=3)
    written = writer.write(conditions)
    own = {chat["id"]: pipeline.embedder.images(chat["images"])[0] for chat in chats}
    other = {name: pipeline.embedder.images(rows[-1][0]["images"])[0] for name, rows in seen.items()}
    assert len(held) == 2 * len(chats)
    for i, (name, embed) in enumerate(held):
        assert torch.allclose(embed, (own if i < len(chats) else other)[name], atol=1e-5)
    assert [num for _, num in seen[chats[0]["id"]]] == [1, 1, 1, 3, 3]
    assert set(written.texts["reranked_3"]) <= {f"{name} {number}" for name in chats["id"] for number in range(3)}


def test_images_are_embedded_once_and_let_go_of(pipeline, known_cases, monkeypatch):
    pairs, chats = known_cases
    once_opened, most, sizes, really = [], [], [], pipeline.embedder.images
    opened = FirstImages.__getitem__

    def opening(self, i):
        image = opened(self, i)
        if not isinstance(i, slice):
            once_opened.append(weakref.ref(image))
            most.append(sum(one() is not None for one in once_opened))
        return image

    def watched(images):
        sizes.append(len(images))
        return really(images)

    monkeypatch.setattr(controls.FirstImages, "__getitem__", opening)
    monkeypatch.setattr(pipeline.embedder, "images", watched)
    writer = ControlledWriter(pipeline, pairs, chats, "none", OPTIONS)
    assert sum(sizes) == len(pairs) // 2 == 24
    assert max(sizes) == OPTIONS.batch_size
    assert max(most) <= 2 * OPTIONS.batch_size
    expected = torch.cat([really(chat["images"]) for chat in chats])
    assert torch.allclose(writer._embeds, expected, atol=1e-5)


def test_likelihoods_are_of_what_is_seen_and_told(pipeline, new_cases):
    pairs, chats = (table.select(range(0, 12, 3)) for table in new_cases)
    writer = ControlledWriter(pipeline, pairs, chats, "both", OPTIONS)
    names = ("shuffled_everything", "blank_image", "no_evidence", "true_report_as_evidence")
    found = writer.likelihoods(conditions_of("both", ["reranked_8"]))
    assert set(found) == {"own", *CONTROLS, "reranked_8"}
    assert found["reranked_8"] == found["own"]
    model = (pipeline.decoder, pipeline.decoder_processor)
    assert all(counts == found["own"][1] for _, counts in found.values())
    assert found["own"][1] == likelihoods(*model, Chats(chats))[1]
    assert found["no_evidence"][0] == pytest.approx(likelihoods(*model, Chats(chats))[0], rel=1e-4)
    embeds = pipeline.embedder.images([chat["images"][0] for chat in chats])
    told = pipeline.finder.find(embeds, languages=chats["language"])
    words = [evidence_words(one, "both", language) for one, language in zip(told, chats["language"], strict=True)]
    rows = [chat | {"messages": with_evidence(chat["messages"], own)} for chat, own in zip(chats, words, strict=True)]
    assert found["own"][0] == pytest.approx(likelihoods(*model, rows)[0], rel=1e-4)
    for name in names:
        assert all(abs(one - own) > 1e-4 for one, own in zip(found[name][0], found["own"][0], strict=True)), name


def test_a_true_report_pushes_no_evidence_out(pipeline, new_cases, monkeypatch):
    given = {}
    monkeypatch.setattr(controls, "likelihoods", lambda *args, **options: given.update(options) or ([], []))
    options = WritingOptions(max_length=100, max_new_tokens=20, batch_size=3, date_string="1 Jan 2000")
    ControlledWriter(pipeline, *new_cases, "both", options).likelihoods(conditions_of("none"))
    assert (given["max_length"], given["batch_size"], given["date_string"]) == (120, 3, "1 Jan 2000")


def test_conditions_of_a_system():
    assert list(conditions_of("both", ["labels", "reranked_8"])) == ["own", *CONTROLS, "evidence_labels", "reranked_8"]
    assert list(conditions_of("none")) == ["own", "shuffled_everything", "blank_image"]
    for wrong in ("none", "reranked_1", "reranked_", "reranked_x", "reranked_²", "reranked_-2", "8"):
        with pytest.raises(InputError, match=f"variants: '{re.escape(wrong)}' is none of labels, reports, both"):
            conditions_of("both", [wrong])


def test_what_is_missing_is_named_before_anything_is_written(pipeline, alone, new_cases, seen):
    pairs, chats = new_cases
    for kind, options, message in (
        ("both", OPTIONS, "own: evidence: both needs an index"),
        ("none", WritingOptions(num_candidates=2), "own: num_candidates: 2 are ranked by an encoder"),
    ):
        with pytest.raises(InputError, match=message):
            ControlledWriter(alone, pairs, chats, kind, options)
    with_index = ReportPipeline(None, None, alone.decoder, alone.decoder_processor, pipeline.finder.index)
    with pytest.raises(InputError, match="give encoder_dir"):
        ControlledWriter(with_index, pairs, chats, "none", OPTIONS)
    with pytest.raises(InputError, match="pairs and chats are not of the same ids"):
        ControlledWriter(alone, pairs, chats.select(range(len(chats))[::-1]), "none", OPTIONS)
    writer = ControlledWriter(alone, pairs, chats, "none", OPTIONS)
    for variant, message in (("labels", "evidence_labels: evidence: labels needs an index"), ("reranked_8", "encoder")):
        for ask in (writer.write, writer.likelihoods):
            with pytest.raises(InputError, match=message):
                ask(conditions_of("none", [variant]))
    assert not seen
