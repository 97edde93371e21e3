"""The loss alone: memory and time of ours, of transformers' formula and of open_clip's `SigLipLoss`.

`as_trained` is ours as `SigLIPTrainer` calls it: with pairs that share a text, a label, an image or a patient.

python tests/benchmarks/encoder_loss.py ours        (one contender, JSON)
"""

import importlib.util
import inspect
import json
import statistics
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

REPO = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(REPO))

from medfinetune.encoder.exact import whole_batch_loss  # noqa: E402
from medfinetune.encoder.loss import sigmoid_loss  # noqa: E402
from tests.benchmarks.alone import measure, ratio, run_alone  # noqa: E402

NUM_PAIRS, DIM = 16_384, 768
NUM_TURNS = 3
KEYS = ("loss_memory_vs_transformers", "loss_memory_vs_open_clip", "loss_time_vs_fastest")
KEYS += ("loss_memory_as_trained_vs_transformers", "loss_time_as_trained_vs_fastest")
OURS = ("ours", "as_trained")


def transformers_loss(image_embeds: Tensor, text_embeds: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    """The lines of `SiglipModel.forward` (transformers 5.23), which cannot be called without the towers."""
    logits_per_text = torch.matmul(text_embeds, image_embeds.t())
    logits_per_text = logits_per_text * scale + bias
    eye = torch.eye(logits_per_text.size(0))
    m1_diag1 = -torch.ones_like(logits_per_text) + 2 * eye
    loglik = torch.nn.functional.logsigmoid(m1_diag1 * logits_per_text)
    nll = -torch.sum(loglik, dim=-1)
    return nll.mean()


def as_trained(image_embeds: Tensor, text_embeds: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    """Ours with `duplicates: positive`: one in four pairs shares an image, most a text, a label or a patient."""
    num_pairs = len(image_embeds)
    kinds = (2 * num_pairs, num_pairs // 4, 16, num_pairs // 2, num_pairs // 4)
    groups = torch.stack([torch.randint(1, number, (num_pairs,)) for number in kinds], dim=1)
    return whole_batch_loss(groups, groups)(image_embeds, text_embeds, scale, bias)


def fetch_open_clip(folder: Path) -> Path | None:
    """Downloads the package without what it depends on (torchvision!): its `loss.py`, or null without network."""
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(folder)]
    done = subprocess.run([*command, "open_clip_torch"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if done.returncode:
        print(f"open_clip was not measured, it cannot be downloaded: {done.stdout.strip().splitlines()[-1]}")
        return None
    return folder / "open_clip" / "loss.py"


def load_open_clip(loss_file: Path) -> type[nn.Module]:
    """`SigLipLoss` from its file alone: importing the package would import torchvision."""
    spec = importlib.util.spec_from_file_location("open_clip_loss", loss_file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.SigLipLoss


def open_clip_settings(loss_file: Path) -> list[dict]:
    """Its settings that can matter to one process.

    `dist_impl` says how processes exchange texts; one process leaves before it is read. Of 3.3.0 that leaves
    `cache_labels`; should a newer version work in chunks, whatever it calls them, that is tried too.
    """
    names = inspect.signature(load_open_clip(loss_file)).parameters
    settings = [{}, {"cache_labels": True}]
    return settings + [{name: size} for name in names if "chunk" in name or "block" in name for size in (256, 1024)]


def _open_clip(loss_file: str, settings: str) -> Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]:
    return load_open_clip(Path(loss_file))(**json.loads(settings))


def run_contender(name: str, *arguments: str) -> dict[str, float]:
    """Forward and backward of one contender, after a small round that loads its code."""
    functions = {"ours": sigmoid_loss, "as_trained": as_trained, "transformers": transformers_loss}
    function = functions.get(name) or _open_clip(*arguments)
    figures = {}
    for num_pairs in (64, NUM_PAIRS):
        torch.manual_seed(0)
        embeds = [nn.functional.normalize(torch.randn(num_pairs, DIM)).requires_grad_() for _ in range(2)]
        scalars = [torch.tensor(value, requires_grad=True) for value in (10.0, -10.0)]

        figures = measure(lambda inputs=(*embeds, *scalars): function(*inputs).backward())
    return figures


def measure_loss(loss_file: Path | None) -> tuple[dict, dict]:
    """The figures of the issue's table, and lines for the table that is printed."""
    contenders = {name: (name,) for name in (*OURS, "transformers")}
    if loss_file is not None:
        for settings in open_clip_settings(loss_file):
            contenders[f"open_clip {settings or 'as it comes'}"] = ("open_clip", str(loss_file), json.dumps(settings))
    turns: dict[str, list[dict]] = {name: [] for name in contenders}
    for _ in range(NUM_TURNS):
        # By turns, so that what else the machine does falls on all alike.
        for name, arguments in contenders.items():
            turns[name].append(run_alone("encoder_loss.py", *arguments))
    middle = {
        name: {key: statistics.median(turn[key] for turn in done) for key in ("mib", "seconds", "cpu_seconds")}
        for name, done in turns.items()
    }
    theirs = [name for name in middle if name.startswith("open_clip")]
    ours, trained, transformers = middle["ours"], middle["as_trained"], middle["transformers"]
    fastest = min(values["seconds"] for name, values in middle.items() if name not in OURS)
    figures = {
        "loss_memory_vs_transformers": ratio(ours["mib"], transformers["mib"], 4),
        "loss_memory_vs_open_clip": ratio(ours["mib"], min((middle[name]["mib"] for name in theirs), default=None), 4),
        "loss_time_vs_fastest": ratio(ours["seconds"], fastest),
        "loss_memory_as_trained_vs_transformers": ratio(trained["mib"], transformers["mib"], 4),
        "loss_time_as_trained_vs_fastest": ratio(trained["seconds"], fastest),
    }
    lines = {}
    for name, values in middle.items():
        text = f"{values['mib']:.0f} MiB, {values['seconds']:.2f} s ({values['cpu_seconds']:.1f} s of CPU)"
        lines[f"loss, {NUM_PAIRS:,} x {DIM}: {name}"] = text
    return figures, lines


if __name__ == "__main__":
    print(json.dumps(run_contender(*sys.argv[1:])))
