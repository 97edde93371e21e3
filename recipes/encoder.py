"""Fine-tunes a SigLIP: accelerate launch recipes/encoder.py --config recipes/encoder/siglip_base_448.yaml

Without arguments it trains the demo's tiny model on generated images.
"""

from functools import partial
from pathlib import Path

from medfinetune.data.audit import audit
from medfinetune.data.load import load_pairs
from medfinetune.demo import start_default
from medfinetune.distributed import leave
from medfinetune.encoder.adapter import save_merged_copies
from medfinetune.encoder.augment import augment_pairs
from medfinetune.encoder.cache import PairCache
from medfinetune.encoder.config import SigLIPConfig
from medfinetune.encoder.model import load_encoder
from medfinetune.encoder.trainer import SigLIPTrainer
from medfinetune.encoder.wise_ft import sweep_wise_ft
from medfinetune.evaluation.while_training import read_known_tasks
from medfinetune.parser import parse, run, save_config
from medfinetune.training import checkpoint_to_resume, describe_run, finish, splits_for_training

DEMO = Path(__file__).parent / "encoder" / "demo.yaml"


def main() -> None:
    args = parse(SigLIPConfig, __doc__.splitlines()[0], DEMO, lambda: start_default("encoder"))
    pairs, validation_pairs = splits_for_training(load_pairs(args.data_dir), args.tasks, args)
    read_known_tasks(args.zero_shot_file, [validation_pairs] if validation_pairs else [])
    checkpoint = checkpoint_to_resume(args)
    if args.process_index == 0:
        audit(args.data_dir)
        print(describe_run(args, len(pairs), len(validation_pairs or []), checkpoint))
        print(f"each image is compared with {min(args.num_texts_compared, len(pairs))} texts")
    if args.dry_run:
        return
    start = args.model_name_or_path, args.model_revision, args.image_size_px, args.max_text_length
    model, processor = load_encoder(*start)
    cached = partial(PairCache, processor=processor, cache_dir=Path(args.data_dir) / "cache")
    with args.main_process_first(desc="resizing images"):
        train = augment_pairs(pairs, cached, args)
        validation = cached(validation_pairs) if validation_pairs else None
    if args.process_index == 0:
        save_config(args, Path(args.output_dir) / "config.yaml")
    trainer = SigLIPTrainer(model, args, train, validation, processor, data_collator=train.collate)
    trainer.train(resume_from_checkpoint=checkpoint)
    finish(trainer, args)
    sweep_wise_ft(trainer, args)
    save_merged_copies(trainer, args)
    leave()


if __name__ == "__main__":
    run(main)
