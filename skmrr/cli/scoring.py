"""Verdicts on rows, one after the other, and how they are written."""

import csv
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol, TextIO

import numpy as np
import torch

from skmrr.base import BaseDetector
from skmrr.cli.data import Data
from skmrr.cli.sound import Unreadable, attempts
from skmrr.joining import member_names
from skmrr.threshold import risk_of

DONT_KNOW = "don't know"
COLUMNS = ("file", "label", "risk", "flagged", "alarm")


@dataclass(frozen=True)
class Verdict:
    """What a detector says of a row."""

    file: str
    label: str
    """Name of the class, or "don't know"."""
    risk: float
    flagged: bool
    member_risks: dict[str, float]
    alarm: list[str]
    """Members that would flag it by themselves."""


def class_names(classes: Sequence[str] | None, detector: BaseDetector) -> list[str]:
    """Name of each class, by its column.

    Raises
    ------
    ValueError
        If the settings name more classes than there are, or fewer.
    """
    if classes is None:
        return [str(number) for number in detector.classes_]
    if len(classes) != len(detector.classes_):
        raise ValueError(
            f"The settings name {len(classes)} classes, but the detector was fitted on "
            f"{len(detector.classes_)}: correct classes = [...]."
        )
    return list(classes)


def verdicts(
    detector: BaseDetector, names: Sequence[str], X, classes: Sequence[str]
) -> list[Verdict]:
    """Judge rows: ``classify``, ``risk`` and ``member_risks`` of one pass."""
    scores, columns, log_survivals = detector._judge(X, None)
    risks, of_members = map(risk_of, (scores, log_survivals))
    is_flagged = scores < detector.offset_
    is_alarmed = log_survivals < detector.offset_
    members = member_names(detector)
    return [
        Verdict(
            names[k],
            DONT_KNOW if is_flagged[k] else classes[columns[k]],
            float(risks[k]),
            bool(is_flagged[k]),
            dict(zip(members, of_members[k].tolist(), strict=True)),
            [members[m] for m in np.flatnonzero(is_alarmed[k])],
        )
        for k in range(len(names))
    ]


def judged(
    detector: BaseDetector, data: Data, classes: Sequence[str], workers: int
) -> Iterator[list[Verdict | Unreadable]]:
    """Verdicts on rows batch by batch, in their order, and the rows that cannot be read."""
    for batch in attempts(data, detector.batch_size_, workers):
        good = [(name, row) for name, row in batch if not isinstance(row, Unreadable)]
        found: Iterator[Verdict] = iter(())
        if good:
            X = torch.stack([row for _, row in good]).numpy()
            found = iter(verdicts(detector, [name for name, _ in good], X, classes))
        yield [row if isinstance(row, Unreadable) else next(found) for _, row in batch]


class Writer(Protocol):
    """What writes verdicts."""

    def write(self, found: Verdict | Unreadable) -> None:
        """Write a row."""


class CsvWriter:
    """A line of CSV for each verdict, under a line of `COLUMNS`."""

    def __init__(self, file: TextIO):
        self.file = file
        self.rows = csv.writer(file, lineterminator="\n")
        self.rows.writerow(COLUMNS)

    def write(self, found: Verdict | Unreadable) -> None:
        """Write a verdict; a row without one has no line."""
        if isinstance(found, Verdict):
            risk, flagged = f"{found.risk:.6g}", str(found.flagged).lower()
            self.rows.writerow([found.file, found.label, risk, flagged, ";".join(found.alarm)])


class JsonLinesWriter:
    """An object of JSON on a line for each row, with ``error`` where it cannot be read."""

    def __init__(self, file: TextIO):
        self.file = file

    def write(self, found: Verdict | Unreadable) -> None:
        """Write a row."""
        if isinstance(found, Unreadable):
            record = {"file": found.name, "error": found.reason}
        else:
            record = dict(vars(found))
        self.file.write(json.dumps(record) + "\n")


WRITERS: dict[str, Callable[[TextIO], Writer]] = {"csv": CsvWriter, "jsonl": JsonLinesWriter}
