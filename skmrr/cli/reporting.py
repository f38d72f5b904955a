"""The command that writes a page about a detector of one's own: report."""

from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from tqdm.auto import tqdm

from skmrr.cli import history
from skmrr.cli.data import Data, check_clean, class_numbers, open_data
from skmrr.cli.measures import Effort, measure
from skmrr.cli.options import (
    DETECTOR,
    SETTINGS,
    DataArgument,
    DetectorOption,
    DeviceOption,
    ErrorOption,
    OnError,
    SettingsOption,
    WorkersOption,
    load_detector,
)
from skmrr.cli.outcomes import answering, replacing, say
from skmrr.cli.page import Section, as_html, as_markdown
from skmrr.cli.scoring import class_names
from skmrr.cli.settings import read_settings
from skmrr.cli.sound import sound_rows

RADII = (0.03, 0.1)  # of attacks, as shares of the range
HTML = (".html", ".htm")


@answering()
def report(
    data: DataArgument,
    detector: DetectorOption = DETECTOR,
    settings: SettingsOption = SETTINGS,
    output: Annotated[
        Path, typer.Option(help="Page to write; Markdown beside it ends in .md.")
    ] = Path("report.html"),
    rows: Annotated[int, typer.Option(min=20, help="Most rows that are drawn of the data.")] = 1000,
    attacked: Annotated[int, typer.Option(min=1, help="Rows to attack the classifier on.")] = 100,
    adaptive: Annotated[int, typer.Option(min=1, help="Rows to attack the detector on.")] = 30,
    steps: Annotated[int, typer.Option(min=1, help="Steps of each attack.")] = 40,
    eps: Annotated[
        list[float] | None,
        typer.Option(help="Largest change of a value, again for more; else 3 and 10 % of all."),
    ] = None,
    device: DeviceOption = "cpu",
    workers: WorkersOption = 0,
    on_error: ErrorOption = OnError.stop,
) -> None:
    """Measure the detector on clean rows with classes, new to it, and write a page about it."""
    from skmrr.cli.sections import Subject, sections_of  # with matplotlib, which others need not

    if output.suffix not in HTML:
        raise ValueError(f"--output {output} must end in .html; the Markdown comes beside it.")
    known = read_settings(settings)
    output.parent.mkdir(parents=True, exist_ok=True)
    found = load_detector(detector, known, device)
    found._check_calibrated()
    past = history.recall(detector)
    drawn = _drawn(open_data(data, known), rows)
    held_out = sound_rows(drawn, workers=workers, skip=on_error is OnError.skip)
    seen = history.rows_of(past, history.FIT, history.CALIBRATE)
    held_out = held_out.without(seen, "it was fitted or calibrated on")
    y = class_numbers(held_out.data, known.classes, len(found.classes_))
    X, (low, high) = held_out.array(), known.bounds
    effort = Effort(attacked, adaptive, steps, eps or [share * (high - low) for share in RADII])
    with tqdm(total=4, disable=None, leave=False) as bar:

        def progress(what: str) -> None:
            bar.set_description(what)
            bar.update()

        measures = measure(found, X, y, effort, progress)
    subject = Subject(
        *(found, detector, known, settings, class_names(known.classes, found)),
        *(past, data, held_out.data.names, X, y),
    )
    _write(output, f"Report on {detector.name}", sections_of(subject, measures, effort))


def _drawn(source: Data, n_rows: int) -> Data:
    """At most so many of the rows, whose classes are known and clean."""
    if source.marks is None:
        raise ValueError("The data name no classes: a report needs the true class of each row.")
    check_clean(source)
    chosen = np.random.default_rng(0).permutation(len(source))[:n_rows]
    return source.at(sorted(chosen.tolist()))


def _write(output: Path, title: str, sections: list[Section]) -> None:
    for path, text in (
        (output, as_html(title, sections)),
        (output.with_suffix(".md"), as_markdown(title, sections)),
    ):
        with replacing(path) as file:
            file.write(text)
        say(f"written to {path}")
