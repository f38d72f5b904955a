"""Verdicts as a folder of Parquet files, a file for each part of the rows, here or on a cluster."""

import json
from collections.abc import Iterator
from concurrent.futures import CancelledError
from dataclasses import asdict, dataclass
from functools import lru_cache
from hashlib import blake2b, sha256
from itertools import islice
from pathlib import Path
from typing import Any

from skmrr.base import BaseDetector
from skmrr.cli.data import Data
from skmrr.cli.decoding import ArrayReader
from skmrr.cli.options import load_detector
from skmrr.cli.outcomes import UnreadableError
from skmrr.cli.scoring import COLUMNS, Verdict, class_names, judged
from skmrr.cli.settings import read_settings
from skmrr.cli.sound import Unreadable
from skmrr.joining import member_names
from skmrr.whole_files import replaced

RECORD = "_parts.json"  # readers of Parquet leave out what begins with _ or .
AHEAD = 2  # parts that wait for each thread of the cluster
PATIENCE = 5  # seconds, between looks whether the scheduler is there


@dataclass(frozen=True)
class Job:
    """What a worker has to know; its paths are those of the workers, too."""

    settings: Path
    detector: Path
    digest: str
    """Of the detector's file."""
    device: str
    security_parameter: float | None
    folder: Path
    """Where the parts go."""
    skip: bool
    """Whether rows that cannot be read are left out."""

    def path(self, number: int) -> Path:
        """File of a part."""
        return self.folder / f"part-{number:08d}.parquet"


@dataclass(frozen=True)
class Counts:
    """What has come out of a part."""

    rows: int
    flagged: int
    unreadable: tuple[Unreadable, ...] | int
    """Rows left out; of a part that was there, how many."""


def digest_of_file(path: Path) -> str:
    """SHA-256 of a detector's file."""
    if not path.is_file():
        raise FileNotFoundError(f"There is no {path}: write it by skmrr fit.")
    return sha256(path.read_bytes()).hexdigest()


@lru_cache(maxsize=1)
def _ready(job: Job) -> tuple[BaseDetector, list[str]]:
    """Detector and names of classes, read once in a process."""
    if digest_of_file(job.detector) != job.digest:
        raise ValueError(f"{job.detector} is another file here than where the run began.")
    known = read_settings(job.settings)
    detector = load_detector(job.detector, known, job.device)
    detector._check_calibrated()
    if job.security_parameter is not None:
        detector.set_params(security_parameter=job.security_parameter)
    return detector, class_names(known.classes, detector)


def score_part(job: Job, number: int, start: int, data: Data) -> Counts:
    """Write the verdicts on a part's rows, the first of which is row `start` of all."""
    detector, classes = _ready(job)
    found: list[Verdict] = []
    left_out: list[Unreadable] = []
    try:
        for row in (row for batch in judged(detector, data, classes, 0) for row in batch):
            if isinstance(row, Verdict):
                found.append(row)
            elif job.skip:
                left_out.append(row)
            else:
                raise UnreadableError(f"{row} (--on-error skip leaves such rows out.)")
    except UnreadableError:
        raise
    except (ValueError, RuntimeError) as error:
        raise ValueError(f"In rows {start} to {start + len(data) - 1}: {error}") from error
    _write(job.path(number), found, member_names(detector))
    return Counts(len(data), sum(row.flagged for row in found), tuple(left_out))


def _write(path: Path, found: list[Verdict], members: list[str]) -> None:
    import pyarrow as pa
    from pyarrow import parquet

    kinds = (pa.string(), pa.string(), pa.float64(), pa.bool_(), pa.list_(pa.string()))
    fields = [pa.field(name, kind) for name, kind in zip(COLUMNS, kinds, strict=True)]
    fields += [pa.field(f"risk_{name}", pa.float64()) for name in members]
    # A name of a file may be no text.
    columns: list[list] = [[row.file.encode(errors="backslashreplace").decode() for row in found]]
    columns += [[getattr(row, name) for row in found] for name in COLUMNS[1:]]
    columns += [[row.member_risks[name] for row in found] for name in members]
    with replaced(path) as beside:
        parquet.write_table(
            pa.Table.from_arrays(
                [
                    pa.array(values, field.type)
                    for values, field in zip(columns, fields, strict=True)
                ],
                schema=pa.schema(fields),
            ),
            beside,
        )


def _counts_of(path: Path, n_rows: int) -> Counts:
    """Count what is in a part that was written before."""
    from pyarrow import parquet

    flagged = parquet.read_table(path, columns=["flagged"])["flagged"]
    return Counts(n_rows, sum(flagged.to_pylist()), n_rows - len(flagged))


def begin(job: Job, data: Data, source: Path, partition: int) -> None:
    """Make the folder, or see that what is in it is of the same run.

    Raises
    ------
    ValueError
        If it is of other rows, another detector or threshold, or of parts of another size.
    """
    import pyarrow.parquet  # noqa: F401 - what is missing is to be missed before any work

    names = blake2b(digest_size=16)
    for name in data.names:
        names.update(name.encode(errors="surrogateescape") + b"\0")
    record: dict[str, object] = {
        key: str(value) for key, value in asdict(job).items() if key not in ("folder", "device")
    }
    record |= {"rows": len(data), "partition": partition, "names": names.hexdigest()}
    record |= {"data": str(source.resolve())}
    job.folder.mkdir(parents=True, exist_ok=True)
    path = job.folder / RECORD
    if not path.exists():
        if any(job.folder.glob("*.parquet")):
            raise ValueError(f"{job.folder} holds Parquet files of others: name a new folder.")
        with replaced(path) as beside:
            beside.write_text(json.dumps(record, indent=1), encoding="utf-8")
        return
    before = json.loads(path.read_text(encoding="utf-8"))
    if differing := [key for key in record if before.get(key) != record[key]]:
        raise ValueError(
            f"{job.folder} holds parts of another run, with other {', '.join(differing)}: name a "
            "new folder, or remove that one."
        )


def score_parts(job: Job, data: Data, partition: int, scheduler: str | None) -> Iterator[Counts]:
    """Write all parts, those that are there left as they are, and yield what comes out of each."""
    missing = []
    for number, start in enumerate(range(0, len(data), partition)):
        n_rows = min(partition, len(data) - start)
        if job.path(number).exists():
            yield _counts_of(job.path(number), n_rows)
        else:
            missing.append((number, range(start, start + n_rows)))
    tasks = ((number, span[0], data.at(span)) for number, span in missing)
    if scheduler is None:
        yield from (score_part(job, *task) for task in tasks)
    elif missing:
        yield from _on_cluster(job, tasks, scheduler)


def _on_cluster(job: Job, tasks: Iterator[tuple[int, int, Data]], address: str) -> Iterator[Counts]:
    """Have the workers of a Dask cluster write parts, a few at a time waiting for each thread."""
    from distributed import Client
    from distributed.comm import CommClosedError
    from distributed.scheduler import KilledWorker

    with Client(address) as client:
        client.wait_for_workers(1, timeout=60)

        def submit(task: tuple[int, int, Data]) -> Any:
            return client.submit(score_part, job, *task, pure=False, key=f"part-{task[0]:08d}")

        wanted = AHEAD * sum(client.nthreads().values())
        running = {submit(task) for task in islice(tasks, wanted)}
        try:
            while running:
                done = _some_done(client, running)
                running -= done
                running |= {submit(task) for task in islice(tasks, len(done))}
                yield from client.gather(list(done))
        except KilledWorker as error:
            raise RuntimeError(
                f"Several workers died over one part, of memory perhaps: give a smaller "
                f"--partition. The parts that are written stay. ({error})"
            ) from error
        except (CancelledError, CommClosedError) as error:
            raise RuntimeError(
                f"The scheduler at {address} is gone. The parts that are written stay: start one "
                "and give the same command, which goes on from there."
            ) from error


def _some_done(client, running: set) -> set:
    """Wait for parts; a scheduler that is gone would let a client wait for ever."""
    from distributed import TimeoutError as OutOfTime  # Python's own from 3.11 on
    from distributed import wait

    while client.status == "running":
        try:
            return set(wait(running, timeout=PATIENCE, return_when="FIRST_COMPLETED").done)
        except OutOfTime:
            continue
    raise CancelledError


def refuse_compressed(data: Data) -> None:
    """Raise a ValueError for rows that would travel to the workers one part after the other."""
    import numpy as np

    if isinstance(data.read, ArrayReader) and not isinstance(data.read.rows, np.memmap):
        raise ValueError("Workers cannot read parts of an .npz: save its X by numpy.save as .npy.")
