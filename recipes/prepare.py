"""Raw folders to image-text pairs: python recipes/prepare.py --config recipes/prepare/demo.yaml"""

import sys

from medfinetune.data.prepare import PrepareConfig, prepare
from medfinetune.errors import InputError
from medfinetune.parser import parse, run


def main() -> None:
    if len(sys.argv) == 1:
        raise InputError("a config is needed: python recipes/prepare.py --config recipes/prepare/demo.yaml")
    config = parse(PrepareConfig, "Turns raw folders of images and text into pairs, chats and a report.")
    report = prepare(config)
    print(f"records in  {report['records_in']:>8,}")
    print(f"pairs kept  {report['pairs']:>8,}   of {report['images']:,} distinct images")
    for source, count in report["by_source"].items():
        print(f"  {source:<26} {count:>8,}")
    print(f"dropped     {sum(report['dropped'].values()):>8,}")
    for reason, count in report["dropped"].items():
        print(f"  {reason:<42} {count:>8,}")
    for split, count in report["by_split"].items():
        print(f"split {split:<12} {count:>8,}")
    if not report["by_split"].get("test"):
        print("no test split: models can only be scored on rows that chose them; see test_fraction")
    near = report["near_duplicates"]
    print(f"near-duplicates {near['num_pairs']:>5,}   of them across two splits: {near['num_across_splits']:,}")
    if report["unused_images"]["removed"]:
        print(f"image files of earlier runs removed {report['unused_images']['num_files']:>8,}")
    for warning in report["warnings"]:
        print(f"WARNING: {warning}")
    print(f"{report['seconds']:.1f} s; written to {config.output_dir}: all_med_pairs.parquet, chat_instructions.jsonl,")
    print("images/, dropped.jsonl (every dropped record and why) and the report: data_report.html, data_report.json")


if __name__ == "__main__":
    run(main)
