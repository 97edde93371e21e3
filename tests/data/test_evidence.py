import pytest

from medfinetune.data.evidence import Evidence, LabelEvidence, Neighbour, evidence_words, with_evidence

EVIDENCE = Evidence(
    [Neighbour("a", "No fracture.\nHeart normal.", 0.91), Neighbour("b", "心影正常。", 0.8)],
    [
        LabelEvidence("heart", {"normal": 0.1, "enlarged": 0.9}, {"en": "Heart enlarged.", "zh": "心影增大。"}),
        LabelEvidence("knee_grade", {"0": 0.4, "1": 0.35, "2": 0.25}),
    ],
)
REPORTS = "Reports of similar images:\n1. No fracture. Heart normal.\n2. 心影正常。"
LABELS = "Findings that are probable from the image: Heart enlarged (90%). knee grade: 0 (40%)."
ZH_LABELS = "根据图像可能的表现：心影增大 (90%)；knee grade: 0 (40%)。"


@pytest.mark.parametrize(
    ("kind", "language", "words"),
    [
        ("none", "en", ""),
        ("reports", "en", REPORTS),
        ("labels", "en", LABELS),
        ("both", "en", f"{REPORTS}\n{LABELS}"),
        ("labels", "zh", ZH_LABELS),
        ("labels", "fr", LABELS),
    ],
)
def test_only_the_parts_that_are_asked_for_are_told(kind, language, words):
    assert evidence_words(EVIDENCE, kind, language) == words


def test_what_is_not_probable_enough_is_not_told():
    assert "knee" not in evidence_words(EVIDENCE, "labels", "en", min_probability=0.5)
    assert evidence_words(EVIDENCE, "labels", "en", min_probability=0.95) == ""
    assert evidence_words(Evidence(), "both", "en") == ""


def test_evidence_stands_between_image_and_question():
    image, question = {"type": "image"}, {"type": "text", "text": "Report?"}
    answer = {"role": "assistant", "content": [{"type": "text", "text": "Fine."}]}
    chat = [{"role": "user", "content": [image, question]}, answer]
    told = with_evidence(chat, "Seen before.")
    assert told == [{"role": "user", "content": [image, {"type": "text", "text": "Seen before.\nReport?"}]}, answer]
    assert chat[0]["content"][1] == {"type": "text", "text": "Report?"}  # the chat itself is left alone
    assert with_evidence(chat, "") == chat
    plain = with_evidence([{"role": "user", "content": "Report?"}], "Seen before.")
    assert plain == [{"role": "user", "content": "Seen before.\nReport?"}]
    later = with_evidence([*chat, {"role": "user", "content": "Sure?"}], "Seen before.")
    assert (later[0], later[2]["content"]) == (chat[0], "Seen before.\nSure?")
    assert with_evidence([{"role": "user", "content": [image]}], "E")[0]["content"] == [
        image,
        {"type": "text", "text": "E"},
    ]


def test_evidence_stands_behind_the_last_image_of_its_turn():
    image, first, second = {"type": "image"}, {"type": "text", "text": "This"}, {"type": "text", "text": "and that?"}
    told = with_evidence([{"role": "user", "content": [first, image, second]}], "E")[0]["content"]
    assert told == [first, image, {"type": "text", "text": "E\nand that?"}]
    told = with_evidence([{"role": "user", "content": [first, image]}], "E")[0]["content"]
    assert told == [first, image, {"type": "text", "text": "E"}]


def test_it_goes_through_json():
    assert Evidence.from_dict(EVIDENCE.to_dict()).to_dict() == EVIDENCE.to_dict()
    assert EVIDENCE.to_dict()["labels"][0]["probabilities"] == {"normal": 0.1, "enlarged": 0.9}
