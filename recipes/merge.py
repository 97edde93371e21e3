"""Merges an adapter: python recipes/merge.py --adapter_dir runs/llama32_11b_lora --data_dir data/prepared

The merged model is checked against the adapter on 8 training chats, and written only where both say the same.
"""

from pathlib import Path

from medfinetune.data.load import load_chats
from medfinetune.decoder.merge import MergeConfig, merge_adapter
from medfinetune.parser import parse, run


def main() -> None:
    args = parse(MergeConfig, __doc__.splitlines()[0])
    output_dir = args.output_dir or str(Path(args.adapter_dir) / "merged")
    chats = load_chats(args.data_dir, "train")
    print(merge_adapter(args.adapter_dir, output_dir, chats, args.dtype, args.max_length))
    print(f"saved to {output_dir}: the merged model and its processor")


if __name__ == "__main__":
    run(main)
