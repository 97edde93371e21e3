"""Reports of many images, in shards that a killed run goes on with."""

import fcntl
import heapq
import itertools
import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TextIO

from tqdm import tqdm

from medfinetune.distributed import gather_objects, rank, world_size
from medfinetune.errors import InputError
from medfinetune.evaluation.latency import StageClock
from medfinetune.inference.config import ReportConfig
from medfinetune.inference.index import ImageIndex, read_info
from medfinetune.inference.listing import read_requests
from medfinetune.inference.page import PAGE_FILE, write_page
from medfinetune.inference.pipeline import ReportPipeline
from medfinetune.inference.report import Report, ReportRequest, Unwritten, is_unicode

REPORTS_FILE, FAILED_FILE, LATENCY_FILE, SETTINGS_FILE = (
    "reports.jsonl",
    "failed.jsonl",
    "latency.json",
    "settings.json",
)
_SHARDS = "shards"
# What may change when a run goes on: it decides no text.
_FREE = ("input", "output_dir", "num_processes", "num_on_page", "batch_size", "dry_run")


@dataclass(frozen=True)
class Summary:
    """What a run left.

    Attributes:
        num_written: Reports in `reports.jsonl`.
        num_failed: Lines in `failed.jsonl`.
        num_new: Reports that this run wrote, in all processes.
    """

    num_written: int
    num_failed: int
    num_new: int

    def describe(self, output_dir: str | Path) -> str:
        """For a user to read."""
        failed = f"; {self.num_failed:,} failed, see {FAILED_FILE}" if self.num_failed else ""
        return f"{output_dir}: {self.num_written:,} reports, {self.num_new:,} of them new{failed}"


def write_reports(
    config: ReportConfig,
    num_requests: int,
    make_pipeline: Callable[[], ReportPipeline],
    made_with: dict[str, str] | None = None,
) -> Summary | None:
    """Writes what is asked for and not yet written, and puts everything together.

    The requests are cut into shards in their order, whatever the number of processes; each process takes every n-th.
    A report goes into its shard's file as soon as it is there. What is whole in the file is not written again; half a
    line is, and so is what failed.

    Args:
        config: Its `output_dir` may hold what an earlier run with the same settings left.
        num_requests: For the progress bar.
        make_pipeline: Called where there is something to write.
        made_with: Hashes of what decides a text and no setting tells, such as the models' files; those of the first
            process count.

    Returns:
        What there is now; None in all processes but the first.

    Raises:
        InputError: The folder is of other settings or other images, or another run is writing into it.
    """
    folder = Path(config.output_dir)
    if rank() == 0:
        _check_settings(config, folder, made_with or {})
    gather_objects(None)  # until the settings are checked, nobody writes
    num_new, clock = _write_own_shards(config, num_requests, make_pipeline)
    parts = gather_objects((num_new, clock))
    if rank() != 0:
        return None
    total = StageClock()
    for _, part in parts:
        if part is not None:
            total.merge(part)
    num_written, num_failed = _join(config, num_requests)
    if figures := total.figures():
        _replace(folder / LATENCY_FILE, json.dumps(figures, indent=2) + "\n")
    return Summary(num_written, num_failed, sum(num for num, _ in parts))


def any_failed(config: ReportConfig) -> bool:
    """Whether an image of a run that is done has no report."""
    return (Path(config.output_dir) / FAILED_FILE).stat().st_size > 0


def _write_own_shards(
    config: ReportConfig, num_requests: int, make_pipeline: Callable[[], ReportPipeline]
) -> tuple[int, StageClock | None]:
    folder, options, pipeline, num_new = Path(config.output_dir) / _SHARDS, config.options(), None, 0
    folder.mkdir(parents=True, exist_ok=True)
    starts = range(rank() * config.shard_size, num_requests, world_size() * config.shard_size)
    own = sum(min(config.shard_size, num_requests - start) for start in starts)
    name = "reports" if world_size() == 1 else f"reports of process 1 of {world_size()}"
    with tqdm(total=own, desc=name, unit="image", disable=rank() != 0) as progress:
        for number, requests in _shards(config):
            with _open_shard(_shard_file(folder, number)) as (file, done):
                pending = _pending(requests, number * config.shard_size, done, config.output_dir)
                progress.update(len(requests) - len(pending))
                if not pending:
                    continue
                pipeline = pipeline or make_pipeline()
                for place, outcome in pipeline.stream([request for _, request in pending], options):
                    kind = "failed" if isinstance(outcome, Unwritten) else "report"
                    number_, request = pending[place]
                    file.write(_line({"number": number_, "kind": kind, "request": request.digest} | outcome.to_dict()))
                    file.flush()
                    num_new += kind == "report"
                    progress.update()
    return num_new, pipeline.clock if pipeline is not None else None


def _shards(config: ReportConfig) -> Iterator[tuple[int, list[ReportRequest]]]:
    """The number of each of this process's shards, and its requests."""
    requests = read_requests(config)
    for number in itertools.count():
        shard = list(itertools.islice(requests, config.shard_size))
        if not shard:
            return
        if number % world_size() == rank():
            yield number, shard


def _shard_file(folder: Path, number: int) -> Path:
    return folder / f"{number:08d}.jsonl"


@contextmanager
def _open_shard(path: Path) -> Iterator[tuple[TextIO, dict[int, tuple[str, str | None]]]]:
    """The file to write on in, and of each number that has its report already the id, and what was asked."""
    with path.open("a+", encoding="utf-8", newline="\n") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise InputError(
                f"{path.parent.parent}: another run is writing here (output_dir); wait for its end"
            ) from error
        except OSError:
            pass  # some network file systems know no locks
        # In bytes: a kill may cut a Chinese character in two, and only a line feed ends a line.
        *lines, rest = path.read_bytes().split(b"\n")
        kept = [row for row in map(_whole, lines) if row is not None and row["kind"] == "report"]
        if rest or len(kept) < len(lines):
            # A kill while this is written loses reports that are then written once more.
            file.truncate(0)
            file.writelines(_line(row) for row in kept)
            file.flush()
        yield file, {row["number"]: (row["id"], row.get("request")) for row in kept}


def _whole(line: bytes) -> dict[str, Any] | None:
    """The row of a line that was written whole."""
    try:
        return json.loads(line)
    except ValueError:  # no JSON, or no UTF-8
        return None


def _line(row: dict[str, Any]) -> str:
    """A row as JSON; what is no Unicode, such as the name of a file from an old system, is escaped."""
    text = json.dumps(row, ensure_ascii=False)
    return (text if is_unicode(text) else json.dumps(row)) + "\n"


def _pending(
    requests: list[ReportRequest], first: int, done: dict[int, tuple[str, str | None]], output_dir: str
) -> list[tuple[int, ReportRequest]]:
    pending = []
    for number, request in enumerate(requests, start=first):
        if number not in done:
            pending.append((number, request))
        elif done[number] != (request.id, request.digest):
            was, now = done[number][0], request.id
            changed = f"was {was}, and is {now} now" if was != now else f"is {now} as before, but not the same"
            raise InputError(
                f"{output_dir}: image {number + 1} of the input {changed} (file, language, patient or prompt); take a "
                "new output_dir, or add new images at the end of a list"
            )
    return pending


def _check_settings(config: ReportConfig, folder: Path, made_with: dict[str, str]) -> None:
    """Raises `InputError` where the folder was begun with other settings; saves them where it was not."""
    settings = {name: value for name, value in asdict(config).items() if name not in _FREE} | made_with
    if config.index_dir is not None:
        info = read_info(config.index_dir)
        settings |= {name: info[name] for name in ("encoder_hash", "data_hash")}
        settings["index_settings"] = info["settings"]
    path = folder / SETTINGS_FILE
    if path.is_file():
        before = json.loads(path.read_text(encoding="utf-8"))
        changed = sorted(name for name in settings.keys() | before.keys() if settings.get(name) != before.get(name))
        if changed:
            name = changed[0]
            if name.endswith("_hash"):
                other = f"with another {name.removesuffix('_hash')}: what stands in its place now is not the same"
            else:
                other = f"with {name} {before.get(name)!r}, and it is {settings.get(name)!r} now"
            raise InputError(f"{folder}: was begun {other}; go on with the same, or take a new output_dir")
    elif (folder / REPORTS_FILE).exists():
        raise InputError(f"{folder}: holds a {REPORTS_FILE} of something else; take a new output_dir")
    else:
        folder.mkdir(parents=True, exist_ok=True)
        _replace(path, json.dumps(settings, ensure_ascii=False, indent=2) + "\n")


def _join(config: ReportConfig, num_requests: int) -> tuple[int, int]:
    """Writes `reports.jsonl` and `failed.jsonl` in the order of the input, and the page."""
    folder = Path(config.output_dir)
    names = {"report": REPORTS_FILE, "failed": FAILED_FILE}
    num = dict.fromkeys(names, 0)
    shown: list[tuple[float, int, dict[str, Any]]] = []
    with ExitStack() as stack:
        files = {
            kind: stack.enter_context((folder / f"{name}.tmp").open("w", encoding="utf-8"))
            for kind, name in names.items()
        }
        for shard in range(-(-num_requests // config.shard_size)):
            with _shard_file(folder / _SHARDS, shard).open(encoding="utf-8") as lines:
                rows = sorted(map(json.loads, lines), key=lambda row: row["number"])
            for row in rows:
                if row["number"] >= num_requests:
                    break  # of a list that was longer
                kind = row.pop("kind")
                del row["request"]
                num[kind] += 1
                files[kind].write(_line(row))
                if kind == "report":
                    # Of many, the most doubtful: only so many are ever held.
                    doubt = 2 * bool(row["unlike_training"]) - row["match_probability"]
                    heapq.heappush(shown, (doubt, -row["number"], row))
                    if len(shown) > config.num_on_page:
                        heapq.heappop(shown)
    for name in names.values():
        (folder / f"{name}.tmp").replace(folder / name)
    if config.num_on_page:
        reports = [Report.from_dict(row) for _, _, row in sorted(shown, key=lambda item: -item[1])]
        index = ImageIndex.load(config.index_dir) if config.index_dir is not None else None
        write_page(reports, folder / PAGE_FILE, index, num["report"], num["failed"])
    return num["report"], num["failed"]


def _replace(path: Path, text: str) -> None:
    unfinished = path.with_name(path.name + ".tmp")
    unfinished.write_text(text, encoding="utf-8")
    unfinished.replace(path)
