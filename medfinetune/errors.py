"""The one error that is the user's to mend: shown as a single line, without a traceback."""

from pathlib import Path


class InputError(ValueError):
    """Something given by the user is wrong; the message names the file, row or key and says what to do."""


def why_not_loaded(model_name_or_path: str, error: Exception) -> str:
    """One line that says what to do about a checkpoint that did not load."""
    cause = " ".join(str(error).split())[:200]
    if Path(model_name_or_path).exists():
        return f"{model_name_or_path}: holds no checkpoint that can be read ({cause})"
    return (
        f"{model_name_or_path}: no such folder, and it could not be fetched from the Hub; check the name, the network, "
        f"and for a gated model `hf auth login` ({cause})"
    )
