"""Scores an encoder, a decoder or the system of both on the cases of a split, each figure beside its controls.

    python recipes/evaluate.py --config recipes/evaluate/demo.yaml

Writes `results.json`, `predictions.jsonl` (what was written about each case), `model_card_table.md` and `index.html`
(one file, opens without a network) to `output_dir`.
"""

import json
import sys
import time
from pathlib import Path

import torch

from medfinetune.data.prepare import REPORT_FILE
from medfinetune.decoder.model import load_decoder
from medfinetune.encoder.model import load_encoder
from medfinetune.errors import InputError
from medfinetune.evaluation.cases import load_cases, load_other_splits, references
from medfinetune.evaluation.config import EvaluateConfig
from medfinetune.evaluation.encoder_suite import SuiteOptions, check_tasks, evaluate_encoder
from medfinetune.evaluation.lexicon import load_lexicon
from medfinetune.evaluation.model_card_table import TABLE_FILE, model_card_table
from medfinetune.evaluation.page import write_page, write_results
from medfinetune.evaluation.summary import describe_results
from medfinetune.evaluation.tasks import read_tasks
from medfinetune.inference.system_suite import check_system, evaluate_system
from medfinetune.parser import parse, run


def main() -> None:
    if len(sys.argv) == 1:
        raise InputError(
            "evaluation needs a config that names the models and the data: "
            "python recipes/evaluate.py --config recipes/evaluate/demo.yaml (--help lists the keys)"
        )
    config = parse(EvaluateConfig, __doc__.splitlines()[0])
    tasks = read_tasks(config.zero_shot_file) if config.zero_shot_file else []
    lexicon = load_lexicon(config.lexicon) if config.lexicon else None
    pairs, chats = load_cases(config.data_dir, config.split, config.tasks, config.max_cases, config.seed)
    print(f"{config.data_dir}: {len(pairs):,} cases of the split {config.split}")
    check_tasks(tasks, pairs)
    index, warnings = check_system(config, list(pairs["id"]), references(chats), lexicon)
    for warning in warnings:
        print(f"warning: {warning}", file=sys.stderr)
    if config.dry_run:
        return
    device = torch.accelerator.current_accelerator() or torch.device("cpu")
    results, predictions, encoder = {"split": config.split, "seconds": {}}, [], None
    report = Path(config.data_dir) / REPORT_FILE
    if report.is_file():
        results["prepare"] = json.loads(report.read_text(encoding="utf-8"))
    if config.encoder_dir:
        start = time.perf_counter()
        model, processor = load_encoder(config.encoder_dir, config.encoder_revision)
        encoder = model.to(device).eval(), processor
        train, validation = load_other_splits(config.data_dir, config.split, config.tasks)
        results["encoder"] = evaluate_encoder(*encoder, pairs, tasks, train, validation, SuiteOptions.of(config))
        results["seconds"]["evaluate_encoder"] = time.perf_counter() - start
        write_results(results, config.output_dir)
    if config.decoder_dir:
        if lexicon is None:
            print("no lexicon is given: finding F1 and finding accuracy are left out")
        start = time.perf_counter()
        model, processor = load_decoder(config.decoder_dir, config.decoder_revision, config.decoder_dtype)
        decoder = model.to(device).eval(), processor
        of_system, predictions = evaluate_system(encoder, decoder, index, pairs, chats, lexicon, config)
        results |= of_system
        results["seconds"]["evaluate_decoder"] = time.perf_counter() - start
    write_results(results, config.output_dir, predictions if config.decoder_dir else None)
    if config.decoder_dir:
        (Path(config.output_dir) / TABLE_FILE).write_text(model_card_table(results), encoding="utf-8")
    page = write_page(
        results,
        config.output_dir,
        predictions,
        data_dir=config.data_dir,
        encoder_dir=config.encoder_dir,
        decoder_dir=config.decoder_dir,
        num_gallery=config.num_gallery,
    )
    print(describe_results(results))
    print(f"figures: {page.with_name('results.json')}\npage:    {page}")


if __name__ == "__main__":
    run(main)
