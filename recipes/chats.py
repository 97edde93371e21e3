"""Makes the chats anew from the pairs alone: python recipes/chats.py --data_dir runs/demo/data"""

from pathlib import Path

from medfinetune.data.chat import CHATS_FILE, PAIRS_FILE, ChatConfig, write_chats
from medfinetune.parser import parse, run


def main() -> None:
    config = parse(ChatConfig, f"Writes {CHATS_FILE} from {PAIRS_FILE}, which stands in the same folder.")
    data_dir = Path(config.data_dir)
    num_chats = write_chats(data_dir / PAIRS_FILE, data_dir / CHATS_FILE)
    print(f"{num_chats:,} chats written to {data_dir / CHATS_FILE}")


if __name__ == "__main__":
    run(main)
