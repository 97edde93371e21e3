"""What a decoder was told while it was trained, as its run's `config.yaml` says."""

from pathlib import Path

from medfinetune.data.evidence import EVIDENCE_KINDS, EvidenceKind
from medfinetune.errors import InputError
from medfinetune.parser import read_yaml


def trained_evidence(decoder_dir: str | Path) -> EvidenceKind | None:
    """The kind of evidence that `recipes/decoder.py` trained a decoder with; None where nobody says."""
    path = Path(decoder_dir) / "config.yaml"
    try:
        kind = read_yaml(path).get("evidence") if path.is_file() else None
    except InputError:
        return None  # it is of another program
    return kind if kind in EVIDENCE_KINDS else None


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
