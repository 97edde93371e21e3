from medfinetune.data.images import StoredImage
from medfinetune.data.ledger import Ledger
from medfinetune.data.schema import Pair, Record
from medfinetune.data.settle import settle


def enter(*pairs: Pair) -> Ledger:
    ledger = Ledger()
    for n, pair in enumerate(pairs, start=1):
        ledger.add(pair.record)
        ledger.save(n, pair)
    return ledger


def pair(name: str, sha: str, text: str = "text", source: str = "reports", **values) -> Pair:
    record = Record(name, source, name, ["x"], text, "en", "report", **values)
    return Pair(record, [StoredImage(sha, "x", 4, 2)])


def kept(ledger: Ledger) -> list[str]:
    return [item.record.id for _, item in ledger.pairs()]


def test_same_image_and_text_drops_and_other_text_stays():
    ledger = enter(pair("a", "1"), pair("b", "1"), pair("c", "1", "other"), pair("d", "2"))
    settle(ledger, False)
    assert kept(ledger) == ["a", "c", "d"]
    assert [(item.where, item.reason) for item in ledger.dropped()] == [("b", "duplicate")]


def test_labels_that_disagree_about_the_same_image_and_text_leave_none():
    ledger = enter(
        pair("a", "1", label="x"),
        pair("b", "1", label="y"),
        pair("c", "1", label="x"),
        pair("d", "1", "other text", label="y"),
        pair("e", "2"),
        pair("f", "2", label="x"),
    )
    settle(ledger, False)
    assert kept(ledger) == ["d", "e"]
    dropped = {item.where: item for item in ledger.dropped()}
    assert {where: item.reason for where, item in dropped.items()} == {
        **dict.fromkeys("abc", "labels disagree"),
        "f": "duplicate",
    }
    assert "a (label x), b (label y), c (label x)" in dropped["b"].detail
    # A label that one copy lacks is no disagreement: it is taken over.
    assert [item.record.label for _, item in ledger.pairs()] == ["y", "x"]


def test_the_dropped_ones_ties_go_to_the_kept_one():
    ledger = enter(
        pair("a", "1", patient_id="A", split="train"),
        pair("b", "1", patient_id="B", split="test", group_keys=["study:2"]),
    )
    settle(ledger, False)
    ((_, item),) = ledger.pairs()
    assert item.record.split == "test"
    assert {"patient:reports:A", "patient:reports:B", "study:2"} <= set(item.links)


def test_chats_with_the_same_answer_are_no_duplicates():
    def asks(question):
        return {"messages": [{"role": "user", "content": [{"type": "text", "text": question}]}]}

    ledger = enter(pair("a", "1", metadata=asks("Left?")), pair("b", "1", metadata=asks("Right?")))
    settle(ledger, False)
    assert kept(ledger) == ["a", "b"]


def test_graded_sources_are_settled_by_grade():
    def graded(name, sha, grade, source="knee"):
        return pair(name, sha, f"wording {name}", source, label=grade)

    pairs = [graded("a", "1", "0"), graded("b", "1", "0"), graded("c", "2", "0"), graded("d", "2", "1")]
    pairs += [graded("e", "2", "3", "chen"), graded("f", "2", "3", "chen")]
    ledger = enter(*pairs)
    settle(ledger, False)
    assert kept(ledger) == ["a", "e"]
    assert sorted((item.where, item.reason) for item in ledger.dropped()) == [
        ("b", "duplicate"), ("c", "graders dispute the grade"), ("d", "duplicate"), ("f", "duplicate")
    ]  # fmt: skip
    ledger = enter(*pairs[:4])
    settle(ledger, True)
    assert kept(ledger) == ["a", "c", "d"]
