"""Fine-tunes a Mllama: accelerate launch recipes/decoder.py --config recipes/decoder/llama32_11b_lora.yaml

Without arguments it trains the demo's tiny model on generated images.
"""

from pathlib import Path

from datasets import Dataset

from medfinetune.data.audit import audit
from medfinetune.data.load import load_chats
from medfinetune.decoder.config import MllamaSFTConfig
from medfinetune.decoder.merge import merge_adapter
from medfinetune.decoder.model import describe_parameters, load_decoder, quantization_config
from medfinetune.decoder.trainer import MllamaSFTTrainer
from medfinetune.demo import start_default
from medfinetune.distributed import leave
from medfinetune.inference.training_evidence import describe_training_evidence, training_evidence
from medfinetune.parser import parse, run, save_config
from medfinetune.training import checkpoint_to_resume, describe_run, finish, splits_for_training

DEMO = Path(__file__).parent / "decoder" / "demo.yaml"


def main() -> None:
    args = parse(MllamaSFTConfig, __doc__.splitlines()[0], DEMO, lambda: start_default("decoder"))
    chats, validation_chats = splits_for_training(load_chats(args.data_dir), args.tasks, args)
    checkpoint = checkpoint_to_resume(args)
    if args.process_index == 0:
        audit(args.data_dir)
        print(describe_run(args, len(chats), len(validation_chats or []), checkpoint))
    if args.dry_run:
        if args.evidence != "none":
            print(describe_training_evidence(args, [*chats["id"], *(validation_chats or {"id": []})["id"]]))
        print(describe_parameters(args))
        return
    train(args, chats, validation_chats, checkpoint)
    if args.merge_adapter and args.process_index == 0:
        print(merge_adapter(args.output_dir, Path(args.output_dir) / "merged", chats, args.dtype, args.max_length))


def train(args: MllamaSFTConfig, chats: Dataset, validation_chats: Dataset | None, checkpoint: str | None) -> None:
    evidence = training_evidence(args)
    model, processor = load_decoder(args.model_name_or_path, args.model_revision, args.dtype, quantization_config(args))
    if args.process_index == 0:
        save_config(args, Path(args.output_dir) / "config.yaml")
    trainer = MllamaSFTTrainer(model, args, chats, validation_chats, processor, evidence=evidence)
    if args.process_index == 0:
        print(trainer.describe_cuts())
    trainer.train(resume_from_checkpoint=checkpoint)
    finish(trainer, args)
    leave()


if __name__ == "__main__":
    run(main)
