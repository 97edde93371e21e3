"""The evidence that a decoder's run asks for: built or read, or in a dry run only told."""

from collections.abc import Iterable
from pathlib import Path

from medfinetune.data.evidence import Evidence
from medfinetune.decoder.config import MllamaSFTConfig
from medfinetune.errors import InputError
from medfinetune.evaluation.tasks import read_tasks
from medfinetune.inference.config import IndexConfig

_USE_AS_IT_IS = "leave out evidence_encoder to use the index as it is"


def training_evidence(args: MllamaSFTConfig) -> dict[str, Evidence] | None:
    """Builds the index where it is not there yet, and reads the evidence of its chats.

    Several processes may call it at once; one builds, the others wait. Where `evidence_encoder` is named, an index that
    is there must be what it would build; where it is left out, the index must be there.

    Returns:
        By the id of a chat; None where the run trains without evidence.

    Raises:
        InputError: A key is missing, or the index is of another encoder, other data or other settings.
    """
    if args.evidence == "none":
        return None
    from medfinetune.inference.build import build_index, read_evidence  # only here: it loads FAISS

    _check(args)
    if args.evidence_encoder:
        try:
            build_index(_index_config(args))
        except InputError as error:
            raise InputError(f"evidence_index: {error}; or {_USE_AS_IT_IS}") from error
    found = read_evidence(args.evidence_index, args.data_dir)
    if args.evidence != "reports" and not any(evidence.labels for evidence in found.values()):
        raise InputError(
            f"evidence: {args.evidence}, but {args.evidence_index} tells no labels; build one with evidence_tasks, or "
            "set evidence: reports"
        )
    return found


def describe_training_evidence(args: MllamaSFTConfig, ids: Iterable[str]) -> str:
    """What a run would be told, without building anything; empty where it trains without evidence.

    Args:
        args: The run's settings.
        ids: Of its training and validation chats.

    Raises:
        InputError: As for `training_evidence`, as far as it can be known without the encoder.
    """
    if args.evidence == "none":
        return ""
    from medfinetune.inference.build import read_evidence

    if not _check(args):
        tasks = ", ".join(task.name for task in read_tasks(args.evidence_tasks)) or "none"
        return (
            f"evidence ({args.evidence}): {args.evidence_index} is no index yet; it would be built by "
            f"{args.evidence_encoder} (labels: {tasks})"
        )
    if args.evidence_encoder:
        _require_same(args)
    found, ids = read_evidence(args.evidence_index, args.data_dir), list(ids)
    known = [found[name] for name in ids if name in found]
    near, told = sum(bool(item.neighbours) for item in known), sum(bool(item.labels) for item in known)
    return (
        f"evidence ({args.evidence}): {args.evidence_index} knows {len(known):,} of {len(ids):,} chats, {near:,} with "
        f"neighbours and {told:,} with labels"
    )


def _check(args: MllamaSFTConfig) -> bool:
    """Whether there is an index."""
    from medfinetune.inference.index import INDEX_FILE

    if not args.evidence_index:
        raise InputError(f"evidence_index: is missing; evidence: {args.evidence} needs the folder of an index")
    there = (Path(args.evidence_index) / INDEX_FILE).is_file()
    if not (there or args.evidence_encoder):
        raise InputError(
            f"evidence_encoder: {args.evidence_index} is no index yet; name the SigLIP that it is to be built with, or "
            "build it with recipes/index.py"
        )
    if args.evidence_encoder and args.evidence != "reports" and not args.evidence_tasks:
        raise InputError(f"evidence_tasks: evidence: {args.evidence} needs the zero-shot files whose labels it tells")
    return there


def _require_same(args: MllamaSFTConfig) -> None:
    """What the run itself would refuse, before it starts."""
    from medfinetune.inference.build import describe, is_needed

    config = _index_config(args)
    tasks = read_tasks(config.zero_shot_file) if config.zero_shot_file else []
    try:
        is_needed(Path(args.evidence_index), describe(config, tasks), overwrite=False)
    except InputError as error:
        raise InputError(f"evidence_index: {error}; or {_USE_AS_IT_IS}") from error


def _index_config(args: MllamaSFTConfig) -> IndexConfig:
    """Reports and captions are told; a question and its answer say little about another image."""
    tasks = [task for task in args.tasks if task != "question"]
    return IndexConfig(
        encoder_dir=args.evidence_encoder,
        data_dir=args.data_dir,
        output_dir=args.evidence_index,
        zero_shot_file=args.evidence_tasks or None,
        num_neighbours=args.evidence_num_neighbours,
        tasks=tasks or ["report", "caption"],
    )
