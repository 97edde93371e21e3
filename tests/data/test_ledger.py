from medfinetune.data.images import StoredImage
from medfinetune.data.ledger import Ledger
from medfinetune.data.schema import Dropped, Pair, Record
from medfinetune.data.unreadable import UnreadableImage


def record(name: str, *images: str, **values) -> Record:
    return Record(name, "reports", f"row {name}", list(images), "text", "en", "report", **values)


def test_what_goes_in_comes_out():
    ledger = Ledger()
    records = [record("a", "y", "x", metadata={"age": "5"}), record("b", "x", split="test", group_keys=["study:1"])]
    for item in (records[0], Dropped("knee", "f", "reason", "detail"), records[1]):
        ledger.add(item)
    assert [found for _, found in ledger.records()] == records
    assert list(ledger.paths()) == ["x", "y"]
    assert list(ledger.dropped()) == [Dropped("knee", "f", "reason", "detail")]
    image = StoredImage("1", "1.png", 4, 2, "00", {"frame": 1}, "p", True)
    ledger.note_image("x", image)
    ledger.note_image("y", UnreadableImage("empty file", "detail"))
    assert ledger.image("x") == image
    assert (ledger.image("y").reason, ledger.image("y").detail) == ("empty file", "detail")
    ledger.drop(1, Dropped("reports", "row a", "unreadable"))
    ledger.save(2, Pair(records[1], [image]))
    assert list(ledger.pairs()) == [(2, Pair(records[1], [image]))]
    assert ledger.number("SELECT given FROM pairs") == 2
    assert [item.reason for item in ledger.dropped()] == ["reason", "unreadable"]


def test_nothing_is_left_on_disk(tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setenv("SQLITE_TMPDIR", str(tmp_path))
    ledger = Ledger()
    for i in range(3000):
        ledger.add(record(str(i), f"{i}.png", metadata={"long": "x" * 2000}))
    assert ledger.number("SELECT COUNT(*) FROM pairs") == 3000
    assert list(tmp_path.iterdir()) == []
