"""Does evidence help? The demo's decoder on a tenth of the data: python tests/benchmarks/report_demo.py

For each seed an encoder on all training pairs of the demo, an index, and two decoders on the reports of a tenth of the
images: one that is told nothing, and one that is told what the encoder found. Both begin with the same lesson in
reading, on texts alone: a decoder of random weights cannot read its prompt, which a Llama can. Then the test split is
asked in every way: each kind of evidence, candidates ranked, and all controls. Tiny models of random weights on
generated images: the figures show what the method does there, and nothing about medicine.

What was written is kept in the output folder, and a run that was cut off goes on with the next seed. `--only_seed N`
does one seed, so that several can be done side by side; without it, those that are there are taken as they are.
"""

import argparse
import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

REPO = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(REPO))
os.environ |= {"HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}

import datasets  # noqa: E402
import numpy as np  # noqa: E402
import torch  # noqa: E402

from medfinetune.data.load import load_chats  # noqa: E402
from medfinetune.data.phantom.findings import statement  # noqa: E402
from medfinetune.data.phantom.reading import write_reading_chats  # noqa: E402
from medfinetune.decoder.config import MllamaSFTConfig  # noqa: E402
from medfinetune.decoder.model import load_decoder  # noqa: E402
from medfinetune.decoder.trainer import MllamaSFTTrainer  # noqa: E402
from medfinetune.demo import make_demo_inputs  # noqa: E402
from medfinetune.evaluation.cases import load_cases, pixel_keys, references  # noqa: E402
from medfinetune.evaluation.finding_accuracy import majority_accuracy  # noqa: E402
from medfinetune.evaluation.finding_f1 import finding_f1  # noqa: E402
from medfinetune.evaluation.lexicon import load_lexicon  # noqa: E402
from medfinetune.evaluation.report_cases import ReportCase, report_cases  # noqa: E402
from medfinetune.evaluation.report_suite import score_reports  # noqa: E402
from medfinetune.inference.build import build_index, read_evidence  # noqa: E402
from medfinetune.inference.conditions import conditions_of  # noqa: E402
from medfinetune.inference.config import IndexConfig  # noqa: E402
from medfinetune.inference.controls import ControlledWriter  # noqa: E402
from medfinetune.inference.pipeline import ReportPipeline  # noqa: E402
from medfinetune.inference.report import WritingOptions  # noqa: E402
from medfinetune.parser import parse  # noqa: E402
from medfinetune.tiny import make_tiny_mllama  # noqa: E402

LEXICON = "phantom"
MAX_LENGTH = 448
BATCH = 256


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output_dir", type=Path, default=Path("runs/report_demo"))
    parser.add_argument("--seeds", type=int, default=3, help="trainings of everything (default: 3)")
    parser.add_argument("--only_seed", type=int, help="do this one, and score nothing")
    parser.add_argument("--split", default="test", choices=("validation", "test"), help="what is asked (default: test)")
    parser.add_argument(
        "--share", type=float, default=0.1, help="of the training images for the decoders (default: 0.1)"
    )
    parser.add_argument("--encoder_steps", type=int, default=1500)
    parser.add_argument("--reading_steps", type=int, default=1500)
    parser.add_argument("--decoder_steps", type=int, default=300)
    parser.add_argument("--max_new_tokens", type=int, default=128)
    return parser.parse_args()


def main() -> None:
    arguments = parse_arguments()
    datasets.disable_progress_bars()
    make_demo_inputs(arguments.output_dir / "inputs")
    seeds = range(arguments.seeds) if arguments.only_seed is None else [arguments.only_seed]
    for seed in seeds:
        if not (_folder(arguments, seed) / f"{arguments.split}.json").is_file():
            started = time.perf_counter()
            write_texts(arguments, seed)
            print(f"seed {seed}: {time.perf_counter() - started:.0f} s", flush=True)
    if arguments.only_seed is None:
        print_figures(arguments)


def write_texts(arguments: argparse.Namespace, seed: int) -> None:
    """Trains all of one seed, and writes what each way of asking gave to `<split>.json`."""
    folder, inputs = _folder(arguments, seed), arguments.output_dir / "inputs"
    training = _start_training_encoder(arguments, seed)
    make_tiny_mllama(folder / "tiny", seed)
    write_reading_chats(folder / "reading_data", 8_000, seed)
    lessons = load_chats(folder / "reading_data", "train")
    reading = _train_decoder(arguments, folder / "tiny", folder / "reading", lessons, arguments.reading_steps, seed)
    if training is not None and training.wait():
        sys.exit(f"the encoder of seed {seed} was not trained; its message stands above")
    encoder = folder / "encoder"
    index = build_index(
        IndexConfig(
            str(encoder), str(inputs / "data"), str(folder / "index"), zero_shot_file=str(inputs / "raw/zero_shot.yaml")
        )
    )
    chats, evidence = _tenth(inputs / "data", arguments.share, seed), read_evidence(index)
    steps = arguments.decoder_steps
    alone = _train_decoder(arguments, reading, folder / "alone", chats, steps, seed)
    told = _train_decoder(arguments, reading, folder / "told", chats, steps, seed, evidence)
    pairs, cases = load_cases(inputs / "data", arguments.split, ["report"])
    options = WritingOptions(
        max_new_tokens=arguments.max_new_tokens, max_length=MAX_LENGTH, batch_size=BATCH, seed=seed
    )
    texts = {}
    for system, decoder, kind, variants in (
        ("alone", alone, "none", ["reranked_8"]),
        ("told", told, "both", ["labels", "reports", "reranked_8"]),
    ):
        pipeline = ReportPipeline.from_pretrained(encoder, decoder, index, lexicon=LEXICON)
        written = ControlledWriter(pipeline, pairs, cases, kind, options, seed).write(conditions_of(kind, variants))
        texts |= {f"{system}: {name}": of_each for name, of_each in written.texts.items()}
        print(f"seed {seed}: {system}: {json.dumps(pipeline.clock.figures())}", flush=True)
    (folder / f"{arguments.split}.json").write_text(json.dumps(texts, ensure_ascii=False), encoding="utf-8")


def print_figures(arguments: argparse.Namespace) -> None:
    """Finding F1 of every way of asking, mean and spread over the seeds, and what it is beside the decoder alone."""
    pairs, chats = load_cases(arguments.output_dir / "inputs" / "data", arguments.split, ["report"])
    cases, lexicon = report_cases(pairs, chats), load_lexicon(LEXICON)
    by_seed = []
    for seed in range(arguments.seeds):
        texts = json.loads((_folder(arguments, seed) / f"{arguments.split}.json").read_text(encoding="utf-8"))
        by_seed.append(texts | {"always the most common values": _most_common(arguments, cases, lexicon)})
    of_seeds = [_scored(cases, texts, lexicon)["conditions"] for texts in by_seed]
    # Seeds are put one after the other; an image, drawn, is drawn with its texts of all seeds.
    stacked = [ReportCase(**vars(case) | {"id": f"{case.id} {seed}"}) for seed in range(len(by_seed)) for case in cases]
    together = {name: [text for texts in by_seed for text in texts[name]] for name in by_seed[0]}
    pooled = _scored(stacked, together, lexicon)
    figures: dict[str, Any] = {}
    print(
        f"\n{arguments.split} split, {len(cases)} reports of {len(set(pixel_keys(pairs)))} images, {len(by_seed)} seeds"
    )
    print(f"{'':<34} finding F1, mean, sd   beside the decoder alone, 95% interval")
    for name in ["alone: own", *(name for name in together if name != "alone: own")]:
        values = [of_seed["own" if name == "alone: own" else name]["finding_f1"] for of_seed in of_seeds]
        spread = float(np.std(values, ddof=1)) if len(values) > 1 else None
        figures[name] = {"finding_f1": float(np.mean(values)), "sd": spread, "by_seed": values}
        line = f"{name:<34} {np.mean(values):.3f} {'' if spread is None else f'{spread:.3f}':>6}"
        if name != "alone: own":
            found = pooled["differences"][name]["finding_f1"]
            low, high = (-limit for limit in reversed(found["difference_ci"]))
            figures[name] |= {"difference": -found["difference"], "difference_ci": [low, high]}
            line += f"           {-found['difference']:+.3f} [{low:+.3f}, {high:+.3f}]"
        print(line)
    by_finding = {
        name: finding_f1(texts, [case.reference for case in stacked], lexicon)["by_finding"]
        for name, texts in together.items()
    }
    print("\nfinding F1 of all seeds together, by finding")
    print(f"{'':<34} " + " ".join(f"{finding:>13}" for finding in lexicon.findings))
    for name, of_each in by_finding.items():
        print(f"{name:<34} " + " ".join(f"{found['finding_f1'] or 0:>13.2f}" for found in of_each.values()))
    path = arguments.output_dir / f"{arguments.split}_figures.json"
    kept = {"figures": figures, "by_finding": by_finding, "pooled": pooled}
    path.write_text(json.dumps(kept, ensure_ascii=False, indent=1), encoding="utf-8")
    print(json.dumps({name: round(found["finding_f1"], 4) for name, found in figures.items()}))


def _most_common(arguments: argparse.Namespace, cases: list[ReportCase], lexicon: Any) -> list[str]:
    """What is reached without looking: each finding's most common value among the training reports, in words."""
    _, chats = load_cases(arguments.output_dir / "inputs" / "data", "train", ["report"])
    values = majority_accuracy([], lexicon, references(chats))["values"]
    words = {
        language: " ".join(f"{statement(name, value, language)}." for name, value in values.items())
        for language in ("en", "zh")
    }
    return [words[case.language] for case in cases]


def _scored(cases: list[ReportCase], texts: dict[str, list[str]], lexicon: Any) -> dict[str, Any]:
    own = {"own" if name == "alone: own" else name: written for name, written in texts.items()}
    return score_reports(cases, own, lexicon)[0]


def _folder(arguments: argparse.Namespace, seed: int) -> Path:
    return arguments.output_dir / f"seed_{seed}"


def _start_training_encoder(arguments: argparse.Namespace, seed: int) -> subprocess.Popen | None:
    """Beside the lesson in reading, which does not need it; None where it is trained already."""
    folder, inputs = _folder(arguments, seed) / "encoder", arguments.output_dir / "inputs"
    if (folder / "model.safetensors").is_file():
        return None
    given = {"model_name_or_path": inputs / "tiny" / "siglip", "data_dir": inputs / "data", "output_dir": folder}
    given |= {"seed": seed, "max_steps": arguments.encoder_steps, "eval_strategy": "no", "save_strategy": "no"}
    given |= {"use_cpu": str(not torch.cuda.is_available()).lower(), "disable_tqdm": "true"}
    recipes = REPO / "recipes"
    command = [sys.executable, str(recipes / "encoder.py"), "--config", str(recipes / "encoder" / "demo.yaml")]
    command += [str(word) for key, value in given.items() for word in (f"--{key}", value)]
    path = os.pathsep.join([str(REPO), *filter(None, [os.environ.get("PYTHONPATH")])])
    return subprocess.Popen(command, env=os.environ | {"PYTHONPATH": path}, stdout=subprocess.DEVNULL)


def _tenth(data_dir: Path, share: float, seed: int) -> datasets.Dataset:
    """The reports of some training images, in both languages."""
    pairs, chats = load_cases(data_dir, "train", ["report"])
    keys = pixel_keys(pairs)
    images = sorted(set(keys))
    chosen = set(random.Random(seed).sample(images, round(share * len(images))))
    return chats.select([i for i, key in enumerate(keys) if key in chosen])


def _train_decoder(
    arguments: argparse.Namespace, start: Path, folder: Path, chats: Any, steps: int, seed: int, evidence: Any = None
) -> Path:
    given = {"output_dir": folder, "max_steps": steps, "max_length": MAX_LENGTH, "seed": seed, "disable_tqdm": "true"}
    given |= {"use_cpu": str(not torch.cuda.is_available()).lower(), "logging_steps": 100}
    given |= {"lr_scheduler_kwargs": json.dumps({"num_decay_steps": int(0.3 * steps)})}
    if evidence is not None:
        given |= {"evidence": "both", "evidence_index": _folder(arguments, seed) / "index"}
    words = [str(word) for key, value in given.items() for word in (f"--{key}", value)]
    args = parse(MllamaSFTConfig, "", argv=["--config", str(REPO / "recipes/decoder/demo.yaml"), *words])
    model, processor = load_decoder(str(start))
    trainer = MllamaSFTTrainer(model, args, chats, None, processor, evidence=evidence)
    trainer.train()
    trainer.save_model()
    return folder


if __name__ == "__main__":
    main()
