"""The commands that make a detector of one's own: init, fit, calibrate.

Each is a few lines of the library, between finding the rows and writing what came out.
"""

import os
import time
from pathlib import Path
from typing import Annotated

import typer

from skmrr.cli import history
from skmrr.cli.classifiers import count_logits, load_classifier
from skmrr.cli.data import check_clean, class_numbers
from skmrr.cli.options import (
    DETECTOR,
    SETTINGS,
    DataArgument,
    DetectorOption,
    DeviceOption,
    ErrorOption,
    HarmlessOption,
    OnError,
    RateOption,
    SettingsOption,
    WorkersOption,
    load_detector,
    read_rows,
)
from skmrr.cli.outcomes import answering, is_watched, replacing, say
from skmrr.cli.settings import Settings, read_settings
from skmrr.cli.starting import started
from skmrr.defenders.defaults import default_defenders, default_template
from skmrr.ensemble import MRREnsemble
from skmrr.harmless import SEVERITIES
from skmrr.persistence import save


@answering()
def init(
    classifier: Annotated[str, typer.Argument(help="module:factory, or a .pt2 of torch.export.")],
    weights: Annotated[
        Path | None, typer.Argument(help="The network's state_dict, .pt or .safetensors.")
    ] = None,
    data: Annotated[
        Path | None, typer.Option(help="Rows to take class names and size from, and to try.")
    ] = None,
    clip_values: Annotated[
        tuple[float, float], typer.Option(help="Lowest and highest value of a pixel, as trained.")
    ] = (0.0, 1.0),
    size: Annotated[
        tuple[int, int] | None, typer.Option(help="Height and width of the images.")
    ] = None,
    grey: Annotated[
        bool, typer.Option("--grey", help="Images have one channel, not three.")
    ] = False,
    mean: Annotated[
        str | None, typer.Option(help="To subtract, e.g. 0.485,0.456,0.406; none by default.")
    ] = None,
    std: Annotated[str | None, typer.Option(help="To divide by, e.g. 0.229,0.224,0.225.")] = None,
    settings: Annotated[Path, typer.Option(help="File to write.")] = SETTINGS,
    force: Annotated[bool, typer.Option("--force", help="Replace the file.")] = False,
) -> None:
    """Write the settings that the other commands read, and try the classifier with them."""
    if settings.exists() and not force:
        raise ValueError(f"{settings} is there already; --force replaces it.")
    is_program = classifier.endswith(".pt2")

    def beside(path: Path | str) -> str:
        return Path(os.path.relpath(path, settings.parent)).as_posix()

    wanted = Settings(
        folder=settings.parent,
        factory=None if is_program else classifier,
        program=beside(classifier) if is_program else None,
        weights=None if weights is None else beside(weights),
        clip_values=[_plain(value) for value in clip_values],
        size=None if size is None else list(size),
        colours="grey" if grey else "rgb",
        mean=_numbers(mean),
        std=_numbers(std),
    )
    found = started(wanted, data)
    with replacing(settings) as file:
        file.write(found.toml())
    say(f"written to {settings}; next: skmrr fit CLEAN_IMAGES")


@answering()
def fit(
    data: DataArgument,
    detector: DetectorOption = DETECTOR,
    settings: SettingsOption = SETTINGS,
    security_parameter: RateOption = None,
    latent: Annotated[int, typer.Option(min=0, help="Number of latent defenders.")] = 1,
    noise: Annotated[
        bool, typer.Option("--noise", help="Add members that see noise, for one clean source.")
    ] = False,
    max_epochs: Annotated[
        int | None, typer.Option(min=1, help="Train for so many passes, 20 where it trains anyway.")
    ] = None,
    max_time: Annotated[
        float | None, typer.Option(help="Train for so many minutes at most.")
    ] = None,
    random_state: Annotated[int, typer.Option(help="Seed.")] = 0,
    device: DeviceOption = "cpu",
    workers: WorkersOption = 0,
    on_error: ErrorOption = OnError.stop,
) -> None:
    """Fit a detector beside the classifier on clean rows, and write it to a file."""
    known = read_settings(settings)
    detector.parent.mkdir(parents=True, exist_ok=True)
    if known.program is not None and latent:
        raise ValueError(
            "A program of torch.export hides its layers, so that no latent defender can be a copy "
            "of it: give its module:factory and weights to skmrr init, or --latent 0 here."
        )
    classifier = load_classifier(known, device)
    rows = read_rows(data, known, workers, on_error)
    y = class_numbers(rows.data, known.classes, count_logits(classifier, rows.example))
    template = default_template(classifier).set_params(max_time=max_time)
    if max_epochs is not None:
        template.set_params(max_epochs=max_epochs)
    if max_epochs is not None or max_time is not None:
        template.set_params(realign=True)  # photographs too, for which by default nothing is
    members = default_defenders(classifier, latent=template, n_latent=latent, noise=noise)
    fitted = MRREnsemble(
        classifier,
        defenders=members,
        clip_values=known.bounds,
        security_parameter=0.01 if security_parameter is None else security_parameter,
        calibration_fraction=0,  # left to rows that the classifier has not seen
        random_state=random_state,
        verbose=is_watched(),
    )
    begun = time.monotonic()
    fitted.fit(rows.X, y).set_params(verbose=False)
    save(fitted, detector)
    history.remember(detector, {history.FIT: history.step(data, rows)})
    say(
        f"fitted on {len(rows.digests)} rows in {time.monotonic() - begun:.0f} s, written to "
        f"{detector}; next: skmrr calibrate IMAGES_NEW_TO_THE_CLASSIFIER"
    )


@answering()
def calibrate(
    data: DataArgument,
    detector: DetectorOption = DETECTOR,
    settings: SettingsOption = SETTINGS,
    security_parameter: RateOption = None,
    harmless: HarmlessOption = None,
    device: DeviceOption = "cpu",
    workers: WorkersOption = 0,
    on_error: ErrorOption = OnError.stop,
) -> None:
    """Set the threshold by clean rows that neither classifier nor detector has seen."""
    if unknown := sorted(set(harmless or ()) - set(SEVERITIES)):
        raise ValueError(f"--harmless {unknown[0]} is none of: {', '.join(SEVERITIES)}.")
    known = read_settings(settings)
    found = load_detector(detector, known, device)
    rows = read_rows(data, known, workers, on_error)
    check_clean(rows.data)
    steps = history.recall(detector)
    # They look more normal than new ones, so that the promise would be broken.
    rows = rows.without(history.rows_of(steps, history.FIT), "were fitted on")
    if security_parameter is not None:
        found.set_params(security_parameter=security_parameter)
    changes = [change for name in harmless or () for change in SEVERITIES[name]]
    found.set_params(harmless=changes or None, verbose=is_watched())
    found.calibrate(rows.X).set_params(verbose=False)
    save(found, detector)
    steps[history.CALIBRATE] = history.step(data, rows)
    history.remember(detector, steps)
    say(
        f"calibrated on {len(rows.digests)} rows for {found.security_parameter:g} false alarms, "
        f"written to {detector}; next: skmrr score IMAGES"
    )


def _plain(value: float) -> float | int:
    return int(value) if value == int(value) else value


def _numbers(text: str | None) -> list[float] | None:
    if text is None:
        return None
    try:
        return [float(part) for part in text.split(",")]
    except ValueError as error:
        raise ValueError(
            f"{text!r} must be numbers with commas between, e.g. 0.5,0.5,0.5."
        ) from error
