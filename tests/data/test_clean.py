import pytest

from medfinetune.data.clean import clean, with_images
from medfinetune.data.images import StoredImage, hash_patient
from medfinetune.data.schema import Dropped, Record
from medfinetune.data.unreadable import UnreadableImage


def record(**values) -> Record:
    return Record(**{"id": "a", "source": "reports", "where": "row 2", "images": ["x"], "text": "No fracture."} | {
        "language": "en", "task": "report"} | values)  # fmt: skip


def test_words_are_tidied_and_the_record_given_stays():
    given = record(text="左肺，右肺", task="question", question="Ｗｈｅｒｅ？", answer=" 左肺，右肺 ", label="左，右")
    kept = clean(given)
    assert (kept.text, kept.question, kept.answer, kept.label) == ("左肺,右肺", "Where?", "左肺,右肺", "左,右")
    assert given.text == "左肺，右肺"


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({"text": "\u3000\ufeff"}, "text is empty"),
        ({"task": "question", "question": "Where?", "answer": "\u3000"}, "question or answer is empty"),
        ({"task": "question", "question": None, "answer": "Left"}, "question or answer is empty"),
    ],
)
def test_empty_words_are_dropped(values, reason):
    assert clean(record(**values)).reason == reason


def test_only_allowed_licences_are_kept():
    allowed = ["cc-by-4.0", "none"]
    assert isinstance(clean(record(license="CC-BY-4.0"), allowed), Record)
    assert isinstance(clean(record(), allowed), Record)
    assert isinstance(clean(record(license="CC-BY-NC-4.0"), allowed), Dropped)
    assert clean(record(), ["CC0"]).detail == "none"
    for spelling in ("CC BY 4.0", "cc_by 4.0", "Cc-By-4.0"):
        assert isinstance(clean(record(license=spelling), ["CC-BY-4.0"]), Record)
        assert isinstance(clean(record(license="cc-by-4.0"), [spelling]), Record)


def test_patients_of_ones_own_reports_are_hashed():
    assert clean(record(patient_id="4711"), patient_key=b"k").patient_id == hash_patient("4711", b"k")
    assert clean(record(patient_id="4711")).patient_id == "4711"
    assert clean(record(patient_id="PAT_8", source="pad_ufes"), patient_key=b"k").patient_id == "PAT_8"


def test_patients_are_tidied_before_they_are_hashed():
    for spelling in ("P１", "P1\u200b", " P1"):
        assert clean(record(patient_id=spelling)).patient_id == "P1"
        assert clean(record(patient_id=spelling), patient_key=b"k").patient_id == hash_patient("P1", b"k")
    assert clean(record(patient_id="\u200b")).patient_id is None


@pytest.mark.parametrize(
    "values", [{"images": ["a/\udcb2.png"]}, {"text": "\ud800"}, {"metadata": {"note": "\ud800"}}, {"id": "\ud800"}]
)
def test_what_no_file_can_hold_is_dropped(values):
    dropped = clean(record(where="row \udcb2", **values))
    assert (dropped.where, dropped.reason) == ("row \\udcb2", "file name or text is not Unicode")
    dropped.detail.encode()
    again = clean(Dropped("reports", "\udcb2.png", "no text beside the image", "\udcb2"))
    assert (again.where, again.detail) == ("\\udcb2.png", "\\udcb2")


def test_headers_fill_what_the_source_does_not_say():
    image = StoredImage("1", "1.png", 4, 2, tags={"view": "AP", "modality": "DX"}, patient="p")
    pair = with_images(record(metadata={"view": "lateral"}), [image])
    assert pair.record.metadata == {"view": "lateral", "modality": "DX"}
    assert pair.record.patient_id == "p"
    assert with_images(record(patient_id="own"), [image]).record.patient_id == "own"
    assert "patient:dicom:p" in with_images(record(patient_id="own"), [image]).links


def test_one_bad_image_drops_its_record():
    dropped = with_images(record(images=["x", "y"]), [StoredImage("1", "1.png", 4, 2), UnreadableImage("empty file")])
    assert (dropped.reason, dropped.detail) == ("unreadable image: empty file", "y")
