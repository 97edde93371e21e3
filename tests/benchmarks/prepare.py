"""Measures the data side on the real folders and on generated images: python tests/benchmarks/prepare.py

Prints a table, and as its last line JSON. Real data are looked for as by the tests (MEDFINETUNE_DATA_DIR); without them
their figures are null. Run it on a machine that does nothing else.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import numpy as np
from PIL import Image

REPO = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(REPO))

from medfinetune.data.audit import audit, published_leaks  # noqa: E402
from medfinetune.data.chat import PAIRS_FILE  # noqa: E402
from medfinetune.data.image_store import store_images  # noqa: E402
from medfinetune.data.images import ImageOptions, StoredImage  # noqa: E402
from medfinetune.data.prepare import PrepareConfig, prepare  # noqa: E402
from tests.real_data import REAL_DATA  # noqa: E402

NUM_LARGE_IMAGES = 80
NUM_TURNS = 2
NUM_MANY, NUM_FEW = 16_500, 1_650
# Peak memory of the process that prepares, and of the largest of its workers, in KiB. Its own not from getrusage:
# that would start from the peak of the process that started it.
_MEASURE_MEMORY = """
import resource, sys
from medfinetune.data.prepare import PrepareConfig, prepare
report = prepare(PrepareConfig(output_dir=sys.argv[2], reports_file=sys.argv[1], validation_fraction=0.05))
assert report["images"] == int(sys.argv[3]), report["dropped"]
peak = next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM"))
print(peak, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
"""


def measure_real(folder: Path) -> dict:
    """Counts of the real folders; SLAKE is published here without its images, so small ones stand in for them."""
    names = ("knee_kept", "knee_dropped", "pad_kept", "slake_rows", "slake_leaks_default", "slake_leaks_naive")
    if not REAL_DATA.is_dir():
        return dict.fromkeys(names)
    slake_dir = folder / "slake"
    write_slake_images(REAL_DATA / "slake" / "Slake1.0", slake_dir)
    sources = {"knee_dir": REAL_DATA / "knee", "pad_ufes_dir": REAL_DATA / "pad_ufes_20", "slake_dir": slake_dir}
    output_dir = folder / "real"
    prepare_quietly(output_dir, languages=["en", "zh"], **{key: str(path) for key, path in sources.items()})
    report = json.loads((output_dir / "data_report.json").read_text())
    audit(output_dir)
    # Each knee image and each row of PAD-UFES-20 is one record in each language.
    dropped = {reason: count // 2 for reason, count in report["dropped_by_source"]["knee"].items()}
    leaks = published_leaks(output_dir / PAIRS_FILE)["slake"]
    return {
        "knee_kept": report["by_source"]["knee"] // 2,
        "knee_dropped": dropped,
        "pad_kept": report["by_source"]["pad_ufes"] // 2,
        "slake_rows": report["by_source"]["slake"],
        "slake_leaks_default": count_leaks(output_dir),
        "slake_leaks_naive": leaks["also_shown_in_train"],
    }


def write_slake_images(published: Path, folder: Path) -> None:
    """The real question files, and a picture of noise for each image that they name."""
    folder.mkdir(parents=True)
    for path in published.glob("*.json"):
        content = path.read_text(encoding="utf-8")
        (folder / path.name).write_text(content, encoding="utf-8")
        for name, number in {(question["img_name"], question["img_id"]) for question in json.loads(content)}:
            target = folder / "imgs" / name
            if not target.exists():
                target.parent.mkdir(parents=True)
                noise = np.random.default_rng(number).integers(0, 256, (32, 32), dtype=np.uint8)
                Image.fromarray(noise).save(target, "PNG")


def count_leaks(output_dir: Path) -> int:
    """Test questions of SLAKE whose image training shows too, in the split that was made."""
    import pyarrow.parquet as pq

    rows = pq.read_table(output_dir / PAIRS_FILE, columns=["source", "split", "pixel_sha256"]).to_pylist()
    shown = {image for row in rows if row["split"] == "train" for image in row["pixel_sha256"]}
    asked = [row for row in rows if row["source"] == "slake" and row["split"] == "test"]
    return sum(bool(shown.intersection(row["pixel_sha256"])) for row in asked)


def prepare_quietly(output_dir: Path, **values) -> dict:
    return prepare(PrepareConfig(output_dir=str(output_dir), **values))


def write_large_images(folder: Path) -> list[str]:
    """Photographs-like images of 1,024 px: smooth shapes with some noise, as JPEG and as PNG by turns."""
    folder.mkdir()
    paths = []
    for i in range(NUM_LARGE_IMAGES):
        rng = np.random.default_rng(i)
        smooth = Image.fromarray(rng.integers(0, 256, (24, 24, 3), dtype=np.uint8)).resize((1024, 1024), 3)
        noise = rng.normal(0, 4, (1024, 1024, 1))
        image = Image.fromarray(np.clip(np.asarray(smooth) + noise, 0, 255).astype(np.uint8))
        path = folder / f"{i}.{'jpg' if i % 2 else 'png'}"
        image.save(path, **({"quality": 92} if i % 2 else {"compress_level": 1}))
        paths.append(str(path))
    return paths


def measure_speed(folder: Path) -> tuple[dict[str, float], dict[str, float]]:
    """Images a second, and CPU milliseconds an image: ours, and a plain loop at Pillow's own PNG level and at ours."""
    paths = write_large_images(folder / "large")
    seconds: Counter = Counter()
    cpu_seconds: Counter = Counter()
    for turn in range(NUM_TURNS):
        # By turns, so that what else the machine does falls on all alike.
        started, cpu_started = time.perf_counter(), _cpu_seconds()
        outcomes = dict(store_images(paths, folder / f"stored{turn}", ImageOptions(), num_paths=len(paths)))
        seconds["ours"] += time.perf_counter() - started
        cpu_seconds["ours"] += _cpu_seconds() - cpu_started
        assert all(isinstance(outcome, StoredImage) for outcome in outcomes.values())
        for name, options in (("plain", {}), ("plain at our PNG level", {"compress_level": 1})):
            target = folder / f"{name}{turn}"
            target.mkdir()
            started, cpu_started = time.perf_counter(), _cpu_seconds()
            for i, path in enumerate(paths):
                with Image.open(path) as image:
                    image.convert("RGB").save(target / f"{i}.png", **options)
            seconds[name] += time.perf_counter() - started
            cpu_seconds[name] += _cpu_seconds() - cpu_started
    done = NUM_TURNS * len(paths)
    per_second = {name: done / total for name, total in seconds.items()}
    return per_second, {name: 1000 * total / done for name, total in cpu_seconds.items()}


def _cpu_seconds() -> float:
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def measure_memory(folder: Path, num_images: int) -> dict[str, float]:
    """Peak memory in MiB of preparing so many small images with a report each."""
    images = folder / f"many{num_images}"
    images.mkdir()
    with (images / "reports.csv").open("w", encoding="utf-8") as table:
        table.write("image,text,patient_id,label\n")
        for i in range(num_images):
            values = np.random.default_rng(i).integers(0, 256, (64, 64, 3), dtype=np.uint8)
            Image.fromarray(values).save(images / f"{i}.png", compress_level=1)
            words = " ".join(f"finding {i} {j} is seen." for j in range(20))
            table.write(f"{i}.png,{words},patient {i // 3},{i % 7}\n")
    command = [sys.executable, "-c", _MEASURE_MEMORY, str(images / "reports.csv"), str(images / "out"), str(num_images)]
    environment = os.environ | {"PYTHONPATH": str(REPO)}
    output = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True).stdout
    main, worker = (int(value) / 1024 for value in output.split()[-2:])
    return {"main": main, "worker": worker}


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        figures = measure_real(folder)
        speed, cpu = measure_speed(folder)
        few, many = measure_memory(folder, NUM_FEW), measure_memory(folder, NUM_MANY)
    # Plain is Pillow as it comes; what of it is the cores', not the lower PNG level's, the table says too.
    figures["speed_ratio"] = round(speed["ours"] / speed["plain"], 2)
    figures["memory_ratio"] = round(sum(many.values()) / sum(few.values()), 3)
    lines = {key: value for key, value in figures.items() if key != "knee_dropped"}
    lines |= {f"knee_dropped: {reason}": count for reason, count in (figures["knee_dropped"] or {}).items()}
    lines |= {f"images a second, 1,024 px: {name}": round(value, 1) for name, value in speed.items()}
    # Where another program takes a core, this tells what the ratio would be without it: cores * plain / ours.
    lines |= {f"CPU milliseconds an image: {name}": round(value, 1) for name, value in cpu.items()}
    lines["speed ratio to a plain loop at our PNG level"] = round(speed["ours"] / speed["plain at our PNG level"], 2)
    for count, used in ((NUM_FEW, few), (NUM_MANY, many)):
        lines[f"peak memory at {count:,} images: main process + largest worker, MiB"] = (
            f"{used['main']:.0f} + {used['worker']:.0f}"
        )
    lines["cores"] = len(os.sched_getaffinity(0))
    for key, value in lines.items():
        print(f"{key:<78} {value!s:>12}")
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
