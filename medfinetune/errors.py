"""The one error that is the user's to mend: shown as a single line, without a traceback."""

import json
from pathlib import Path

_DEMO = ("runs", "demo")


class InputError(ValueError):
    """Something given by the user is wrong; the message names the file, row or key and says what to do."""


def why_not_loaded(model_name_or_path: str, error: Exception) -> str:
    """One line that says what to do about a checkpoint that did not load."""
    cause = " ".join(str(error).split())[:200]
    is_here = Path(model_name_or_path).exists()
    if _is_gated(error):
        page = "its base model's page on the Hub" if is_here else f"https://huggingface.co/{model_name_or_path}"
        return (
            f"{model_name_or_path}: is gated, and your account has no access yet; accept its licence at {page}, "
            "run `hf auth login`, and start again"
        )
    if is_here:
        return f"{model_name_or_path}: holds no checkpoint that can be read ({cause})"
    return (
        f"{model_name_or_path}: no such folder, and it could not be fetched from the Hub; check the name, the network, "
        f"and for a private or gated model `hf auth login` ({cause})"
    )


def _is_gated(error: BaseException | None) -> bool:
    """Whether the Hub refused: 401 without a token, 403 with one that was not granted access."""
    from huggingface_hub.errors import GatedRepoError  # only here: `import medfinetune` is to stay light

    while error is not None:
        if isinstance(error, GatedRepoError):
            return True
        error = error.__cause__ or error.__context__
    return False


def require_model_type(model_name_or_path: str, model_type: str) -> None:
    """Says plainly that a folder holds another kind of model; transformers would fail somewhere in its middle.

    Raises:
        InputError: The folder's `config.json` names another `model_type`, or a folder is meant that is not there.
    """
    folder = Path(model_name_or_path)
    # A name on the Hub has one slash, and its first part is no folder here.
    local = folder.is_absolute() or len(folder.parts) > 2 or (len(folder.parts) == 2 and folder.parent.is_dir())
    if local and not folder.exists():
        demo = "; `make demo` or `recipes/demo.py --only_inputs` makes it" if folder.parts[:2] == _DEMO else ""
        raise InputError(f"{model_name_or_path}: no such folder{demo}")
    path = folder / "config.json"
    if path.is_file():
        found = json.loads(path.read_text(encoding="utf-8")).get("model_type")
        if found != model_type:
            raise InputError(f"{model_name_or_path}: holds a model of type {found}, not {model_type}")


def require_folder(output_dir: str | Path) -> None:
    """Raises `InputError` where the output folder's name is taken by a file."""
    if Path(output_dir).exists() and not Path(output_dir).is_dir():
        raise InputError(f"output_dir: {output_dir} is a file, not a folder")
