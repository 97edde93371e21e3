"""Makes the chats anew from the pairs alone: python recipes/chats.py --data_dir runs/demo/data"""

from pathlib import Path

from medfinetune.data.audit import audit_file
from medfinetune.data.chat import CHATS_FILE, PAIRS_FILE, ChatConfig, write_chats
from medfinetune.data.lock import only_writer
from medfinetune.errors import InputError
from medfinetune.parser import parse, run


def main() -> None:
    config = parse(ChatConfig, f"Writes {CHATS_FILE} from {PAIRS_FILE}, which stands in the same folder.")
    data_dir = Path(config.data_dir)
    if not data_dir.is_dir():
        raise InputError(f"{data_dir}: no such folder (data_dir)")
    with only_writer(data_dir):
        # Of the pairs alone: the chats are what is to be made anew.
        audit_file(data_dir / PAIRS_FILE)
        num_chats = write_chats(data_dir / PAIRS_FILE, data_dir / CHATS_FILE)
    print(f"{num_chats:,} chats written to {data_dir / CHATS_FILE}")


if __name__ == "__main__":
    run(main)
