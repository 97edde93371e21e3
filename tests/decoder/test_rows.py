import shutil

import datasets
import pytest
import torch
from PIL import Image

from medfinetune.data.load import load_chats
from medfinetune.decoder.collator import MllamaCollator
from medfinetune.decoder.model import load_decoder
from medfinetune.decoder.rows import ReadableRows, describe_longest, with_empty_image
from medfinetune.errors import InputError
from medfinetune.training import NamedBatches


@pytest.fixture
def rows(phantom_dir, tmp_path):
    shutil.copytree(phantom_dir / "data", tmp_path / "data")
    return load_chats(tmp_path / "data", "train").select(range(12))


def images_of(rows, *numbers):
    table = rows.with_format("arrow")
    return [table[i]["images"][0].as_py()[0]["path"] for i in numbers]


def test_a_row_whose_image_is_gone_gives_way_to_the_next(rows, capsys):
    readable = ReadableRows(rows)
    before = readable[4]
    capsys.readouterr()
    assert before["id"] == rows[4]["id"]
    with open(images_of(rows, 4)[0], "wb") as file:
        file.write(b"no image any more")
    lost = {i for i in range(12) if images_of(rows, i) == images_of(rows, 4)}
    following = next(i for i in range(4, 12) if i not in lost)
    again = [readable[4], readable[4]]
    assert [row["id"] for row in again] == [rows[following]["id"]] * 2
    [said] = capsys.readouterr().err.splitlines()  # once a row, not once an access
    assert said.startswith(f"chat {before['id']}: its image no longer opens")
    assert said.endswith(f"; chat {rows[following]['id']} stands in for it")
    assert readable[3]["id"] == rows[3]["id"]


def asking(path, number):
    return {"id": f"{path.stem}-{number}", "images": [str(path)]}


@pytest.fixture
def questions(tmp_path):
    """20 about each image, one after the other, as in SLAKE."""
    paths = [tmp_path / f"{i}.png" for i in range(10)]
    for path in paths:
        Image.new("RGB", (4, 4)).save(path)
    features = datasets.Features({"id": datasets.Value("string"), "images": datasets.List(datasets.Image())})
    return paths, datasets.Dataset.from_list([asking(p, i) for p in paths for i in range(20)], features=features)


def test_one_lost_image_does_not_end_a_run_whatever_is_asked_about_it(questions):
    paths, rows = questions
    for path in paths[2:9]:
        path.unlink()
        assert [ReadableRows(rows)[i]["id"] for i in (40, 59)] == [f"{paths.index(path) + 1}-0"] * 2
    paths[9].unlink()
    with pytest.raises(InputError, match=r"chat 2-0: .*, nor do 7 others after it; is the data folder still there"):
        ReadableRows(rows)[40]


def test_what_else_goes_wrong_with_a_row_is_no_lost_image(questions):
    def refuse(row):
        raise ValueError("a transform of the user's")

    with pytest.raises(ValueError, match="a transform"):
        ReadableRows(questions[1].with_transform(refuse))[0]


def test_a_folder_that_is_gone_ends_the_run(rows, tmp_path):
    shutil.rmtree(tmp_path / "data" / "images")
    with pytest.raises(InputError, match="is the data folder still there"):
        ReadableRows(rows)[0]


def test_the_last_row_gives_way_to_the_first(rows):
    with open(images_of(rows, 11)[0], "wb"):
        pass
    lost = {i for i in range(12) if images_of(rows, i) == images_of(rows, 11)}
    following = next(i % 12 for i in range(11, 24) if i % 12 not in lost)
    assert ReadableRows(rows)[11]["id"] == rows[following]["id"]


def test_an_empty_image_changes_nothing(tiny_mllama):
    model, processor = load_decoder(str(tiny_mllama))
    text = [{"role": role, "content": [{"type": "text", "text": f"{role} says"}]} for role in ("user", "assistant")]
    batch = NamedBatches(MllamaCollator(processor, 128))([{"id": "a", "messages": text}, {"id": "b", "messages": text}])
    assert batch.pop("ids") == ["a", "b"]
    padded = with_empty_image(batch, model.config)
    assert padded["pixel_values"].shape == (2, 1, 4, 3, 48, 48)
    assert with_empty_image(padded, model.config) is padded
    seen = []
    model.model.vision_model.register_forward_hook(lambda *_: seen.append(1))
    with torch.no_grad():
        expected, ours = model(**batch), model(**padded)
    assert seen == [1]  # the tower ran with the empty image alone
    torch.testing.assert_close(ours.logits, expected.logits, rtol=1e-5, atol=1e-6)


def test_the_longest_row_is_named():
    batch = {"attention_mask": torch.tensor([[1, 1, 0], [1, 1, 1]]), "aspect_ratio_ids": torch.tensor([[0, 0], [3, 1]])}
    assert describe_longest(batch, ["a", "b"]) == "chat b (3 tokens, 2 images)"
    assert describe_longest({"attention_mask": batch["attention_mask"]}, []) == "row 1 (3 tokens, 0 images)"
