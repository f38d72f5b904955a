"""The commands for a fitted detector of one's own: score, export."""

import io
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, TextIO

import typer
from tqdm.auto import tqdm

from skmrr.base import BaseDetector
from skmrr.cli.data import Data, open_data
from skmrr.cli.options import (
    DETECTOR,
    SETTINGS,
    DataArgument,
    DetectorOption,
    DeviceOption,
    ErrorOption,
    ExportArgument,
    Format,
    OnError,
    RateOption,
    SettingsOption,
    WorkersOption,
    load_detector,
    read_rows,
)
from skmrr.cli.outcomes import FLAGGED, answering, replacing, say
from skmrr.cli.parts import Job, begin, digest_of_file, refuse_compressed, score_parts
from skmrr.cli.scoring import WRITERS, Verdict, class_names, judged
from skmrr.cli.settings import read_settings
from skmrr.cli.sound import refuse
from skmrr.exporting import export as write_export
from skmrr.monitor import RiskMonitor


@answering()
def score(
    data: DataArgument,
    detector: DetectorOption = DETECTOR,
    settings: SettingsOption = SETTINGS,
    output: Annotated[
        Path | None,
        typer.Option(help="File, instead of standard output; with --partition, folder."),
    ] = None,
    form: Annotated[
        Format, typer.Option("--format", help="How to write; parquet goes with --partition.")
    ] = Format.csv,
    security_parameter: RateOption = None,
    fail_on_flagged: Annotated[
        bool, typer.Option("--fail-on-flagged", help="End with code 4 if any row is flagged.")
    ] = False,
    monitor: Annotated[
        Path | None, typer.Option(help="Watch the promise over runs; state in this JSON file.")
    ] = None,
    device: DeviceOption = "cpu",
    workers: WorkersOption = 0,
    on_error: ErrorOption = OnError.stop,
    partition: Annotated[
        int | None,
        typer.Option(min=1, help="Write a Parquet file for each so many rows, and resume."),
    ] = None,
    scheduler: Annotated[
        str | None, typer.Option(help="Address of a Dask scheduler, tcp://…, whose workers score.")
    ] = None,
) -> None:
    """Write class or "don't know", risk, and who raised the alarm for each row.

    Exit codes: 0 done, 2 wrong usage or input, 3 a row cannot be read, 4 rows are flagged and
    --fail-on-flagged was given.
    """
    known = read_settings(settings)
    if partition is not None or scheduler is not None or form is Format.parquet:
        if partition is None or output is None or form is not Format.parquet:
            raise ValueError(
                "Parts are written by --format parquet --partition ROWS --output FOLDER together, "
                "perhaps with --scheduler tcp://…."
            )
        if monitor is not None:
            raise ValueError("--monitor takes rows in their order, which parts do not keep.")
        if workers:
            raise ValueError("--workers has no effect on parts: give --scheduler to share them.")
        job = Job(
            *(settings.resolve(), detector.resolve(), digest_of_file(detector), device),
            *(security_parameter, output.resolve(), on_error is OnError.skip),
        )
        counts = _score_parts(job, open_data(data, known), data, partition, scheduler)
        _end(counts, fail_on_flagged)
        return
    found = load_detector(detector, known, device)
    found._check_calibrated()
    if security_parameter is not None:
        found.set_params(security_parameter=security_parameter)
    source = open_data(data, known)
    classes = class_names(known.classes, found)
    counts = {"rows": 0, "flagged": 0, "not readable": 0}
    bar = tqdm(total=len(source), desc="scoring", unit=" rows", disable=None, leave=False)
    with _written_to(output) as file, _watching(monitor, found) as watch, bar:
        writer = WRITERS[form.value](file)
        for batch in judged(found, source, classes, workers):
            for row in batch:
                writer.write(row)
                counts["rows"] += 1
                if isinstance(row, Verdict):
                    counts["flagged"] += row.flagged
                else:
                    counts["not readable"] += 1
                    refuse(row, skip=on_error is OnError.skip)
            if watch is not None:
                watch.update([row.risk for row in batch if isinstance(row, Verdict)])
            file.flush()
            bar.update(len(batch))
    _end(counts, fail_on_flagged)


def _end(counts: dict[str, int], fail_on_flagged: bool) -> None:
    say(", ".join(f"{number} {what}" for what, number in counts.items()))
    if fail_on_flagged and counts["flagged"]:
        raise typer.Exit(FLAGGED)


def _score_parts(
    job: Job, source: Data, path: Path, partition: int, scheduler: str | None
) -> dict[str, int]:
    """Write rows by parts, and return the counts of all."""
    if scheduler is not None:
        refuse_compressed(source)
    begin(job, source, path, partition)
    counts = {"rows": 0, "flagged": 0, "not readable": 0}
    with tqdm(total=len(source), desc="scoring", unit=" rows", disable=None, leave=False) as bar:
        for part in score_parts(job, source, partition, scheduler):
            counts["rows"] += part.rows
            counts["flagged"] += part.flagged
            if isinstance(part.unreadable, int):
                counts["not readable"] += part.unreadable
            else:
                counts["not readable"] += len(part.unreadable)
                for row in part.unreadable:
                    refuse(row, skip=True)
            bar.update(part.rows)
    return counts


@answering()
def export(
    file: ExportArgument,
    data: Annotated[
        Path | None, typer.Option(help="Rows to compare on, clean ones best; drawn by default.")
    ] = None,
    detector: DetectorOption = DETECTOR,
    settings: SettingsOption = SETTINGS,
    workers: WorkersOption = 0,
    on_error: ErrorOption = OnError.stop,
) -> None:
    """Write classifier and detector to one file that needs no skmrr, and compare the two."""
    known = read_settings(settings)
    found = load_detector(detector, known, "cpu")
    X = None
    if data is not None:
        X = read_rows(data, known, workers, on_error).X
    agreement = write_export(found, file, X)
    say(
        f"written to {file}; of {agreement.n_rows} rows both flag {agreement.n_flagged}, and "
        f"risks differ by {agreement.risk_difference:.1e} at most"
    )


@contextmanager
def _written_to(path: Path | None) -> Iterator[TextIO]:
    """Give standard output, or a file that is replaced once it is whole."""
    if path is not None:
        with replacing(path) as file:
            yield file
    else:
        if isinstance(sys.stdout, io.TextIOWrapper):
            sys.stdout.reconfigure(errors="backslashreplace")  # names of files may be any bytes
        yield sys.stdout


@contextmanager
def _watching(path: Path | None, detector: BaseDetector) -> Iterator[RiskMonitor | None]:
    """Give a monitor whose state is kept in a file, or None."""
    if path is None:
        yield None
        return
    monitor = fresh = RiskMonitor.of(detector)
    if path.exists():
        monitor = RiskMonitor.from_json(path.read_text(encoding="utf-8"))
        if monitor.state["parameters"] != fresh.state["parameters"]:
            raise ValueError(f"{path} is of another detector or threshold: name a new file.")
    yield monitor
    with replacing(path) as file:
        file.write(monitor.to_json())
    say(f"monitor: {monitor.verdict} after {monitor.n_rows_} rows")
