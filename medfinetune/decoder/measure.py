"""Two real steps of a Mllama run beside what preflight counted for them."""

import copy
from collections.abc import Mapping

from medfinetune.data.evidence import Evidence
from medfinetune.data.load import load_chats
from medfinetune.decoder.collator import MllamaCollator
from medfinetune.decoder.config import MllamaSFTConfig
from medfinetune.decoder.evidence import PromptEvidence
from medfinetune.decoder.model import load_decoder, quantization_config
from medfinetune.decoder.preflight import count_run
from medfinetune.decoder.sampler import measure_lengths
from medfinetune.decoder.trainer import MllamaSFTTrainer
from medfinetune.errors import InputError
from medfinetune.preflight.changes import Machine
from medfinetune.preflight.measure import NUM_STEPS, Measured, measure
from medfinetune.preflight.memory import Zero, memory_of
from medfinetune.training import splits_for_training


def measure_run(
    args: MllamaSFTConfig, machine: Machine, zero: Zero | None, evidence: Mapping[str, Evidence] | None = None
) -> Measured:
    """Takes two real steps on the longest chats, with the checkpoint and the data that the config names.

    Args:
        args: The run's settings.
        machine: What it runs on.
        zero: The DeepSpeed stage; none without DeepSpeed.
        evidence: By the ids of the chats, where the run asks for it; each chat is told all of its own.

    Raises:
        InputError: DeepSpeed is asked for, or the checkpoint, the data or the GPU are not there.
    """
    if zero is not None:
        raise InputError("measure: does not start DeepSpeed; measure without the key deepspeed")
    rows, _ = splits_for_training(load_chats(args.data_dir), args.tasks, args)
    model, processor = load_decoder(args.model_name_or_path, args.model_revision, args.dtype, quantization_config(args))
    collator = MllamaCollator(processor, args.max_length, args.train_on, args.date_string)
    args = copy.copy(args)
    args.evidence_dropout = args.evidence_wrong = args.evidence_one_kind = 0.0
    lengths = measure_lengths(PromptEvidence(evidence, args, rows).longest(rows), collator)
    size = args.per_device_train_batch_size
    longest = sorted(range(len(rows)), key=lambda i: -lengths[i])[:size]
    number = size * args.gradient_accumulation_steps * NUM_STEPS
    same = rows.select([longest[i % len(longest)] for i in range(number)])
    told = copy.copy(args)
    told.max_length = lengths[longest[0]]
    images = max(len(row["images"]) for row in same.select(range(min(size, len(longest)))))
    counted = count_run(told, None, model.config, images)
    accumulates = args.gradient_accumulation_steps > 1
    predicted = memory_of(*counted, args.optim, accumulates, None, 1, machine.on_cpu)
    return measure(
        args,
        machine.on_cpu,
        f"{size} chats of up to {told.max_length} tokens",
        predicted,
        lambda short: MllamaSFTTrainer(model, short, same, None, processor, evidence=evidence),
    )
