"""What the demo starts from: generated raw folders, prepared pairs and chats, and two tiny checkpoints."""

import shutil
from pathlib import Path

from filelock import FileLock

from medfinetune.data.chat import CHATS_FILE
from medfinetune.data.phantom import write_raw_folders
from medfinetune.data.prepare import PrepareConfig, prepare
from medfinetune.tiny import make_tiny_mllama, make_tiny_siglip

DEMO_DIR = Path("runs/demo")


def make_demo_inputs(root: Path = DEMO_DIR) -> None:
    """Makes what is missing below `root`: `raw/`, `data/`, `tiny/siglip` and `tiny/mllama`.

    Several processes may call it at once; one makes, the others wait.
    """
    root.mkdir(parents=True, exist_ok=True)
    with FileLock(root / ".lock"):
        if not (root / "raw" / "zero_shot.yaml").is_file():  # the last file to be written
            write_raw_folders(root / "raw")
        if not (root / "data" / CHATS_FILE).is_file():
            raw = root / "raw"
            prepare(
                PrepareConfig(
                    knee_dir=str(raw / "knee"),
                    pad_ufes_dir=str(raw / "pad_ufes_20"),
                    slake_dir=str(raw / "slake"),
                    reports_file=str(raw / "reports.csv"),
                    output_dir=str(root / "data"),
                )
            )
        for make, name in ((make_tiny_siglip, "siglip"), (make_tiny_mllama, "mllama")):
            if not (root / "tiny" / name / "processor_config.json").is_file():
                make(root / "tiny" / name)


def start_default(kind: str, root: Path = DEMO_DIR) -> None:
    """Readies a recipe that was started without arguments: says so, makes the inputs, clears the last try.

    Args:
        kind: `encoder` or `decoder`.
        root: The demo's folder.
    """
    print(
        f"no config given: training the demo's tiny {kind} on generated images, into {root / kind}.\n"
        f"With your own data: accelerate launch recipes/{kind}.py --config recipes/{kind}/<one>.yaml --data_dir <dir>"
    )
    make_demo_inputs(root)
    with FileLock(root / ".lock"):
        shutil.rmtree(root / kind, ignore_errors=True)
