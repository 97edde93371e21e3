"""Two real steps of a SigLIP run beside what preflight counted for them."""

from medfinetune.data.load import load_pairs
from medfinetune.encoder.config import SigLIPConfig
from medfinetune.encoder.model import load_encoder
from medfinetune.encoder.preflight import count_run
from medfinetune.encoder.trainer import SigLIPTrainer
from medfinetune.errors import InputError
from medfinetune.preflight.changes import Machine
from medfinetune.preflight.measure import NUM_STEPS, Measured, measure
from medfinetune.preflight.memory import Zero, memory_of
from medfinetune.training import splits_for_training


def measure_run(args: SigLIPConfig, machine: Machine, zero: Zero | None) -> Measured:
    """Takes two real steps, with the checkpoint and the data that the config names; all batches are equally long.

    Raises:
        InputError: DeepSpeed is asked for, or the checkpoint, the data or the GPU are not there.
    """
    if zero is not None:
        raise InputError("measure: does not start DeepSpeed; measure without the key deepspeed")
    rows, _ = splits_for_training(load_pairs(args.data_dir), args.tasks, args)
    model, processor = load_encoder(args.model_name_or_path, args.model_revision, args.image_size_px)
    size = args.per_device_train_batch_size
    number = size * args.gradient_accumulation_steps * NUM_STEPS
    some = rows.select([i % len(rows) for i in range(number)])
    accumulates = args.gradient_accumulation_steps > 1
    counted = count_run(args, None, model.config)
    predicted = memory_of(*counted, args.optim, accumulates, None, 1, machine.on_cpu)
    return measure(
        args,
        machine.on_cpu,
        f"{size} pairs at {model.config.vision_config.image_size} px",
        predicted,
        lambda short: SigLIPTrainer(model, short, some, None, processor),
    )
