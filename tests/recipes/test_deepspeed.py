"""DeepSpeed by the real command, in two processes without a GPU: what one process computes, saved so that all can load.

The batches are such as two processes do not survive by themselves: one has images of one tile and the other also of
two, or none at all.
"""

import json
import subprocess
import sys
import time

import psutil
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file

from medfinetune.data.load import load_chats
from medfinetune.training import last_whole_checkpoint
from tests.recipes.test_training import LAUNCH, ROOT, options

pytestmark = pytest.mark.slow
NUM_STEPS = 6
LORA = {"use_peft": True, "lora_dropout": 0.0, "lora_r": 4}
# Of the 4 validation chats the first process gets those without an image.
ANSWERS = {"eval_strategy": "steps", "eval_steps": 3, "per_device_eval_batch_size": 2, "predict_with_generate": True}
ANSWERS |= {"predict_max_new_tokens": 12}
WAYS = {
    "zero2": {"deepspeed": "ds_configs/zero2.json"},
    "zero3": {"deepspeed": "ds_configs/zero3.json", **ANSWERS},
    # Without dropout, whose random numbers are each process's own.
    "lora_zero3": {"deepspeed": "ds_configs/zero3.json", "merge_adapter": True, **LORA},
    "tower_zero3": {"deepspeed": "ds_configs/zero3.json", "freeze_vision": False},
    "offload": {"deepspeed": "ds_configs/zero3_offload.json"},
}


def take_image_away(row):
    row["images"] = []
    user = next(message for message in row["messages"] if message["role"] == "user")
    user["content"] = [part for part in user["content"] if part["type"] == "text"]


@pytest.fixture(scope="module")
def recipe(tiny_mllama, phantom_dir, tmp_path_factory):
    """A config whose batches of 4 rows are 2 rows in either process."""
    folder = tmp_path_factory.mktemp("deepspeed")
    (folder / "data").mkdir()
    (folder / "data" / "images").symlink_to(phantom_dir / "data" / "images")
    Image.effect_noise((96, 48), 80).save(folder / "data" / "wide.png")
    lines = (phantom_dir / "data" / "chat_instructions.jsonl").read_text(encoding="utf-8").splitlines()
    written = list(map(json.loads, lines))
    rows = [row for row in written if row["split"] == "train" and row["task"] == "report"][:24]
    for i, row in enumerate(rows):
        if i % 8 == 2:  # one of two in the second process of every other step
            row["images"] = ["wide.png"]
        if i % 8 in (4, 5):  # the first process of the others
            take_image_away(row)
    validation = [row for row in written if row["split"] == "validation" and row["task"] == "report"][:4]
    for row in validation[:2]:
        take_image_away(row)
    rows += validation
    table = pq.read_table(phantom_dir / "data" / "all_med_pairs.parquet")
    kept = pc.is_in(table["id"], pa.array([row["id"] for row in rows]))
    pq.write_table(table.filter(kept), folder / "data" / "all_med_pairs.parquet")
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (folder / "data" / "chat_instructions.jsonl").write_text(text, encoding="utf-8")
    values = {
        "model_name_or_path": str(tiny_mllama),
        "dtype": "float32",
        "data_dir": str(folder / "data"),
        "tasks": ["report"],
        "per_device_train_batch_size": 2,
        "max_steps": NUM_STEPS,
        "max_length": 256,
        "learning_rate": 1e-3,
        "adam_beta2": 0.95,
        "weight_decay": 0.01,
        "max_grad_norm": 0.5,  # at work: these models' gradients have norms of 1 to 4
        "bf16": False,
        "activation_checkpointing": True,
        "activation_checkpointing_kwargs": {"use_reentrant": False},
        "train_sampling_strategy": "sequential",
        "eval_strategy": "no",
        "save_steps": NUM_STEPS // 2,
        "logging_steps": 1,
        "dataloader_pin_memory": False,
        "disable_tqdm": True,
    }
    (folder / "recipe.yaml").write_text(yaml.safe_dump(values), encoding="utf-8")
    return folder / "recipe.yaml"


@pytest.fixture(scope="module")
def alone(recipe):
    """What one process gives, by stock's own vision tower: all weights, adapters, or the tower too."""
    folders = {}
    for name, changes in (("full", ANSWERS), ("lora", LORA), ("tower", {"freeze_vision": False})):
        folders[name] = recipe.parent / f"alone_{name}"
        changes = changes | {"use_cpu": True, "fast_vision": False, "per_device_train_batch_size": 4}
        run([*LAUNCH, "--num_processes", "1"], recipe, folders[name], changes)
    return folders


def command(launcher, recipe, output_dir, changes):
    words = [str(ROOT / "recipes" / "decoder.py"), "--config", str(recipe)]
    return [*launcher, *words, *options(changes | {"output_dir": output_dir})]


def run(launcher, recipe, output_dir, changes):
    done = subprocess.run(
        command(launcher, recipe, output_dir, changes), capture_output=True, text=True, cwd=ROOT, timeout=600
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


TWO = [*LAUNCH, "--multi_gpu", "--num_processes", "2", "--main_process_port", "0"]


@pytest.fixture(scope="module")
def trained(recipe):
    """Each way's run, made when it is first asked for."""
    made = {}

    def make(way):
        if way not in made:
            made[way] = recipe.parent / way
            said = run(TWO, recipe, made[way], WAYS[way])
            assert "effective batch 4 (2 x 1 accumulation x 2 processes)" in said
            if "lora" in way:
                assert "merged model against adapter on 8 chats: logits differ by" in said
        return made[way]

    return make


def losses(folder):
    history = json.loads((folder / "trainer_state.json").read_text())["log_history"]
    return torch.tensor([line["loss"] for line in history if "loss" in line], dtype=torch.float64)


def weights(folder):
    return load_file(folder / ("adapter_model.safetensors" if "lora" in folder.name else "model.safetensors"))


def distance(ours, expected):
    assert ours.keys() == expected.keys()
    squares = [(ours[name].double() - tensor.double()).square().sum() for name, tensor in expected.items()]
    return (sum(squares) / sum(tensor.double().square().sum() for tensor in expected.values())).sqrt().item()


@pytest.mark.parametrize("way", WAYS)
def test_two_processes_learn_what_one_learns(trained, alone, way):
    kind = way.split("_")[0]
    folder, expected = trained(way), alone.get(kind, alone["full"])
    ours, theirs = losses(folder), losses(expected)
    assert len(ours) == NUM_STEPS
    assert theirs[-1] < theirs[0]
    difference = ((ours - theirs).abs() / theirs).max().item()
    print(f"{way}: losses differ by {difference:.1e}, weights by {distance(weights(folder), weights(expected)):.1e}")
    assert difference <= 1e-5
    # AdamW divides by the gradient's own size, so that rounding noise of a gradient near 0 moves a weight.
    assert distance(weights(folder), weights(expected)) <= 1e-4


def test_two_processes_answer_what_one_answers(trained, alone):
    """Under ZeRO-3 the process without an image must go through the tower too."""
    found = []
    for folder in (trained("zero3"), alone["full"]):
        history = json.loads((folder / "trainer_state.json").read_text())["log_history"]
        found.append([line for line in history if "eval_bleu_en" in line])
    assert [line["step"] for line in found[0]] == [3, 6]
    for ours, theirs in zip(*found, strict=True):
        for name in ("eval_loss", "eval_perplexity", "eval_bleu_en"):
            assert ours[name] == pytest.approx(theirs[name], rel=1e-4), name


LOADS = """
import sys
from transformers import MllamaForConditionalGeneration
for folder in sys.argv[1:]:
    _, info = MllamaForConditionalGeneration.from_pretrained(folder, output_loading_info=True)
    assert not any(info.values()), (folder, info)
"""


def test_checkpointing_stays_non_reentrant(trained):
    """TRL turns the other way on under PEFT and ZeRO-3."""
    args = torch.load(trained("lora_zero3") / "training_args.bin", weights_only=False)
    assert args.activation_checkpointing_kwargs == {"use_reentrant": False}


def test_a_fresh_process_loads_what_was_saved(trained, alone, tiny_mllama):
    folders = [trained(way) for way in ("zero2", "zero3", "offload")]
    folders += [folder / f"checkpoint-{NUM_STEPS}" for folder in folders] + [trained("lora_zero3") / "merged"]
    done = subprocess.run(
        [sys.executable, "-c", LOADS, *map(str, folders)], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-2000:]
    stock = load_file(tiny_mllama / "model.safetensors").keys()
    for folder in folders:
        assert load_file(folder / "model.safetensors").keys() == stock, folder
        assert (folder / "chat_template.jinja").is_file()
        assert (folder / "tokenizer.json").is_file()
    assert (trained("lora_zero3") / "processor_config.json").is_file()


@pytest.mark.parametrize("way", ["zero2", "zero3", "lora_zero3", "offload"])
def test_a_killed_run_resumes_to_the_same_weights(recipe, trained, way):
    whole, killed = trained(way), recipe.parent / f"{way}_killed"
    launched = subprocess.Popen(
        command(TWO, recipe, killed, WAYS[way]), cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    deadline = time.monotonic() + 300
    while last_whole_checkpoint(killed) is None:  # the second process may still be writing when the first is done
        assert time.monotonic() < deadline
        assert launched.poll() is None
        time.sleep(0.01)
    family = psutil.Process(launched.pid)
    for process in [family, *family.children(recursive=True)]:
        process.kill()
    launched.wait()
    assert not (killed / f"checkpoint-{NUM_STEPS}").exists()
    run(TWO, recipe, killed, WAYS[way] | {"resume_from_checkpoint": True})
    difference = distance(weights(killed), weights(whole))
    print(f"{way}: weights of the killed and the whole run differ by {difference:.1e}")
    assert difference <= 1e-7
    torch.testing.assert_close(losses(killed), losses(whole), rtol=1e-6, atol=0)


def test_the_data_are_what_this_file_says(recipe):
    rows = load_chats(recipe.parent / "data", "train")
    assert [len(rows[i]["images"]) for i in range(8)] == [1, 1, 1, 1, 0, 0, 1, 1]
    assert rows[2]["images"][0].size == (96, 48)
    assert [len(row["images"]) for row in load_chats(recipe.parent / "data", "validation")] == [0, 0, 1, 1]
