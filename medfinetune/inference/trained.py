"""What a decoder was told while it was trained, as its run's `config.yaml` says."""

from pathlib import Path
from typing import Any

from medfinetune.data.evidence import EVIDENCE_KINDS, EvidenceKind
from medfinetune.errors import InputError
from medfinetune.parser import read_yaml


def trained_evidence(decoder_dir: str | Path) -> EvidenceKind | None:
    """The kind of evidence that `recipes/decoder.py` trained a decoder with; None where nobody says."""
    kind = _config(decoder_dir).get("evidence")
    return kind if kind in EVIDENCE_KINDS else None


def trained_num_neighbours(decoder_dir: str | Path) -> int | None:
    """How many reports such a decoder was told at most; None where it was told none, or nobody says."""
    config = _config(decoder_dir)
    number = config.get("evidence_num_neighbours")
    return number if config.get("evidence") in ("reports", "both") and isinstance(number, int) else None


def _config(decoder_dir: str | Path) -> dict[str, Any]:
    path = Path(decoder_dir) / "config.yaml"
    try:
        return read_yaml(path) if path.is_file() else {}
    except InputError:
        return {}  # it is of another program


def warn_of_evidence(decoder_dir: str | Path, kind: EvidenceKind) -> str:
    """A line for the user where a decoder is told something else than it learned to read; else empty.

    Args:
        decoder_dir: Of the decoder.
        kind: That it is to be told.
    """
    trained = trained_evidence(decoder_dir)
    if trained in (None, "both", kind):
        return ""
    if trained == "none":
        return f"{decoder_dir} was trained without evidence: told {kind}, it may write worse than told none"
    return f"{decoder_dir} was trained with evidence: {trained}, and is told {kind}"
