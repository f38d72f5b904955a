"""Options that several commands have, and what they name: rows, and a detector."""

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from skmrr.base import BaseDetector
from skmrr.cli.classifiers import load_classifier
from skmrr.cli.data import open_data
from skmrr.cli.settings import Settings
from skmrr.cli.sound import Sound, sound_rows
from skmrr.harmless import SEVERITIES
from skmrr.persistence import load


class OnError(str, Enum):
    """What to do about a row that cannot be read."""

    stop = "stop"
    skip = "skip"


class Format(str, Enum):
    """How verdicts are written."""

    csv = "csv"
    jsonl = "jsonl"
    parquet = "parquet"


DATA = (
    "Folder of images (in it a folder for each class), .csv with columns file,class, .npz or .npy."
)
DataArgument = Annotated[Path, typer.Argument(help=DATA)]
ExportArgument = Annotated[Path, typer.Argument(help="File to write, .pt2 or .onnx.")]
SettingsOption = Annotated[Path, typer.Option(help="What skmrr init has written.")]
DetectorOption = Annotated[Path, typer.Option(help="File of the detector.")]
DeviceOption = Annotated[str, typer.Option(help="Where to compute: cpu, cuda, cuda:1, mps.")]
WorkersOption = Annotated[int, typer.Option(min=0, help="Processes that decode images.")]
ErrorOption = Annotated[OnError, typer.Option(help="What to do where a row cannot be read.")]
RateOption = Annotated[
    float | None, typer.Option(help="Share of clean rows that may be flagged (SP).")
]
HarmlessOption = Annotated[
    list[str] | None,
    typer.Option(
        "--harmless",
        help=f"Changes that must not raise an alarm, of: {', '.join(SEVERITIES)}. Again for more.",
    ),
]

SETTINGS, DETECTOR = Path("skmrr.toml"), Path("detector.safetensors")


def read_rows(path: Path, settings: Settings, workers: int, on_error: OnError) -> Sound:
    """Read rows once, and tell which cannot be."""
    return sound_rows(open_data(path, settings), workers=workers, skip=on_error is OnError.skip)


def load_detector(path: Path, settings: Settings, device: str) -> BaseDetector:
    """Read a detector, with the classifier of the settings."""
    if not path.is_file():
        raise FileNotFoundError(f"There is no {path}: write it by skmrr fit.")
    found = load(path, classifier=load_classifier(settings, device))
    if not isinstance(found, BaseDetector):
        raise TypeError(f"{path} holds a {type(found).__name__}; the commands take detectors.")
    return found
