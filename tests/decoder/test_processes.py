"""One process and two: the same weights, the same figures."""

import json
import math
import subprocess

import datasets
import pytest
import torch
from PIL import Image

from medfinetune.decoder.generation import perplexity
from medfinetune.decoder.model import load_decoder
from tests.decoder import processes_worker
from tests.processes import TWO_PROCESSES

TEXTS = ["Nothing.", "A fracture of the left hip, and fluid around it.", "未见异常。", "No effusion is seen today."]


def rows(num_images):
    """A row for each number of images."""
    made = []
    for i, number in enumerate(num_images):
        images = [Image.linear_gradient("L").rotate(90 * i).resize((48, 48 + 40 * j)) for j in range(number)]
        made.append({"images": images, "prompt": f"What is seen in {i}?", "completion": TEXTS[i % 4] * (i % 3 + 1)})
    features = {"images": datasets.List(datasets.Image()), "prompt": datasets.Value("string")}
    return datasets.Dataset.from_list(made, datasets.Features(features | {"completion": features["prompt"]}))


@pytest.fixture(scope="module")
def folder(tiny_mllama, tmp_path_factory):
    """What the worker writes, alone and as two."""
    path = tmp_path_factory.mktemp("processes")
    rows([1, 0, 2, 1, 1, 1, 0, 0, 0, 0, 0, 0]).save_to_disk(path / "train")  # the last step is text alone
    rows([1, 0, 2, 1, 0]).save_to_disk(path / "validation")
    processes_worker.work(str(tiny_mllama), path)
    command = [*TWO_PROCESSES, processes_worker.__file__]
    done = subprocess.run([*command, str(tiny_mllama), str(path)], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    return path


@pytest.mark.parametrize("use_peft", [False, True])
def test_a_step_without_images_leaves_the_same_weights(folder, use_peft):
    """AdamW goes on with its moments where a gradient is 0, and passes over weights that have none."""
    alone, *two = (torch.load(folder / f"{use_peft}-{name}.pt") for name in ("1-0", "2-0", "2-1"))
    for weights in two:
        differences = {name: (weights[name] - weight).abs().max().item() for name, weight in alone.items()}
        assert max(differences.values()) < 1e-5, max(differences, key=differences.get)


def test_rows_that_fill_up_the_last_batch_count_once(folder, tiny_mllama):
    """Whatever the loss of the run is, perplexity is that of the labelled tokens."""
    expected = perplexity(*load_decoder(str(tiny_mllama)), datasets.load_from_disk(str(folder / "validation")))
    for name in ("1-0", "2-0", "2-1"):
        for measured in json.loads((folder / f"perplexities-{name}.json").read_text()):
            assert math.isclose(measured, expected["perplexity"], rel_tol=1e-5)
