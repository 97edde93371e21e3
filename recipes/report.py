"""Writes reports of many images: python recipes/report.py --config recipes/report/demo.yaml --input my_images

Writes `reports.jsonl`, `failed.jsonl` and `index.html` (one file, opens without a network) to `output_dir`. A run that
was ended goes on where it was; `--num_processes 4` shares the images among 4 processes. The exit status is 1 where an
image failed.
"""

import sys

from medfinetune.distributed import leave, rank
from medfinetune.errors import InputError
from medfinetune.inference.batches import any_failed, write_reports
from medfinetune.inference.config import ReportConfig
from medfinetune.inference.fingerprint import decoder_hash, encoder_hash
from medfinetune.inference.index import ImageIndex
from medfinetune.inference.launch import is_launched, is_launched_here, join_processes, launch
from medfinetune.inference.listing import count_requests
from medfinetune.inference.pipeline import ReportPipeline
from medfinetune.inference.trained import warn_of_evidence
from medfinetune.parser import parse, run


def main() -> None:
    if len(sys.argv) == 1:
        raise InputError(
            "reports need a config that names models and images: "
            "python recipes/report.py --config recipes/report/demo.yaml (--help lists the keys)"
        )
    config = parse(ReportConfig, __doc__.splitlines()[0])
    num_requests = count_requests(config)
    if config.index_dir is not None and not is_launched():
        ImageIndex.load(config.index_dir, encoder_hash(config.encoder_dir, config.encoder_revision))
    warning = warn_of_evidence(config.decoder_dir, config.evidence) if config.evidence else ""
    if warning and not is_launched():
        print(f"warning: {warning}", file=sys.stderr)
    if config.dry_run:
        print(f"{config.input}: {num_requests:,} reports would be written to {config.output_dir}")
        return
    if config.num_processes > 1 and not is_launched():
        status = launch(config.num_processes) or int(any_failed(config))
    else:
        status = write(config, num_requests)
    sys.exit(status)


def write(config: ReportConfig, num_requests: int) -> int:
    device = join_processes()

    def make_pipeline() -> ReportPipeline:
        return ReportPipeline.from_pretrained(
            config.encoder_dir,
            config.decoder_dir,
            config.index_dir,
            device=device,
            dtype=config.decoder_dtype,
            lexicon=config.lexicon,
            encoder_revision=config.encoder_revision,
            decoder_revision=config.decoder_revision,
        )

    made_with = {}
    if rank() == 0:
        if config.index_dir is None:  # an index holds its encoder's, and is checked against it
            made_with["encoder_hash"] = encoder_hash(config.encoder_dir, config.encoder_revision)
        made_with["decoder_hash"] = decoder_hash(config.decoder_dir, config.decoder_revision)
    summary = write_reports(config, num_requests, make_pipeline, made_with)
    if summary is not None:
        print(summary.describe(config.output_dir))
    leave()
    # The process that started this one looks at what failed: a launcher would print a traceback.
    return int(summary is not None and summary.num_failed > 0 and not is_launched_here())


if __name__ == "__main__":
    run(main)
