"""Reports: tables as CSV, JSON and Markdown, pictures as PNG, and where they come from."""

import json
import os
import platform
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path

import joblib
import pandas as pd

from skmrr.evaluation.frames import save_frames
from skmrr.versions import versions_of

PACKAGES = ("skmrr", "numpy", "scipy", "scikit-learn", "torch", "adversarial-robustness-toolbox")


@dataclass(frozen=True)
class Report:
    """What a command measured."""

    name: str
    """Name of its folder, such as "table1-mnist"."""
    title: str
    text: str
    """Markdown that quotes the frames."""
    frames: Mapping[str, pd.DataFrame]
    """Tidy tables, by name."""
    pictures: Mapping[str, Callable] = field(default_factory=dict)
    """By name, a function that draws and returns a figure."""


def write(report: Report, folder: Path, origin: dict) -> Path:
    """Write a report into a folder of its own inside `folder`, and return that folder.

    `origin` is the `provenance` at the time when the measurement began.
    """
    from matplotlib import pyplot as plt

    home = Path(folder) / report.name
    save_frames(report.frames, home)
    (home / "provenance.json").write_text(json.dumps(origin, indent=1) + "\n", encoding="utf-8")
    lines = [f"## {report.title}", "", report.text.strip(), ""]
    for name, draw in report.pictures.items():
        figure = draw()
        figure.savefig(home / f"{name}.png", dpi=110)
        plt.close(figure)
        lines += [f"![{name.replace('_', ' ')}]({report.name}/{name}.png)", ""]
    lines += [described(origin), ""]
    (home / "report.md").write_text("\n".join(lines), encoding="utf-8")
    return home


def assemble(folder: Path, page_folder: Path | None = None, *, summary: Sequence[str] = ()) -> str:
    """Join the reports in a folder to one page of Markdown, to lie in that folder or another.

    Lines of `summary` come first.
    """
    paths = sorted(Path(folder).glob("*/report.md"))
    if not paths:
        raise FileNotFoundError(f"There is no report in {folder}; run a command of skmrr bench.")
    head = [
        "# Results",
        "",
        "Written by `skmrr bench results` from what the other commands measured; do not edit.",
        "",
        *summary,
    ]
    page = "\n".join([*head, *(path.read_text(encoding="utf-8") for path in paths)])
    if page_folder is None:
        return page
    way = Path(os.path.relpath(folder, page_folder)).as_posix()
    for path in paths:
        name = path.parent.name
        page = page.replace(f"]({name}/", f"]({way}/{name}/")
    return page


def provenance(command: str, seeds: list[int]) -> dict:
    """Commit, seeds, machine and versions."""
    return {
        "command": command,
        "commit": _commit(),
        "seeds": seeds,
        "date": datetime.now(timezone.utc).strftime("%Y-%m-%d"),
        "machine": f"{platform.system()} {platform.machine()}, {joblib.cpu_count()} cores",
        "python": platform.python_version(),
        "versions": versions_of(PACKAGES),
    }


def described(origin: dict) -> str:
    """Provenance as a line of Markdown."""
    versions = ", ".join(f"{name} {number}" for name, number in origin["versions"].items())
    seeds = ", ".join(map(str, origin["seeds"]))
    return (
        f"<small>`{origin['command']}`; commit {origin['commit']}; seeds {seeds}; "
        f"{origin['date']}; {origin['machine']}; Python {origin['python']}; {versions}</small>"
    )


def markdown(frame: pd.DataFrame, digits: int = 3) -> str:
    """Table of Markdown, its index as the first columns, numbers rounded."""
    shown = frame.reset_index()
    for name in shown.columns:
        if pd.api.types.is_float_dtype(shown[name]):
            shown[name] = shown[name].map(lambda value: _number(value, digits))
    return shown.to_markdown(index=False, disable_numparse=True)


def spread(mean: float, low: float, high: float, digits: int = 3) -> str:
    """Mean with a range beside it, the range only where it shows."""
    shown, least, most = (_number(value, digits) for value in (mean, low, high))
    return shown if least == most else f"{shown} ({least}–{most})"


def _number(value: float, digits: int) -> str:
    if pd.isna(value):
        return "–"
    text = f"{value:.{digits}f}"
    return text[1:] if text.startswith("0.") else text


def _commit() -> str:
    """Commit of the checkout that the package runs from, if it is one."""
    package = Path(__file__).parents[1]

    def git(*words: str) -> str:
        command = ["git", "-C", str(package), *words]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        git("ls-files", "--error-unmatch", __file__)  # a virtual environment lies in others' too
        commit = git("rev-parse", "--short", "HEAD")
        changes = git("status", "--porcelain", "--untracked-files=no", "--", ".")
    except (OSError, subprocess.CalledProcessError):
        return "none (installed package)"
    return f"{commit} with changes" if changes else commit
