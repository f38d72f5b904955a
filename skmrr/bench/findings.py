"""What the reports come to: one small table for the README and the head of the results."""

from pathlib import Path

import numpy as np
import pandas as pd

from skmrr.bench.peers import ADAPTIVE_SP, pooled_success
from skmrr.bench.report import assemble
from skmrr.bench.systems import CERTIFIED, ENSEMBLE
from skmrr.evaluation.channels import RAW
from skmrr.evaluation.siege import WORST
from skmrr.evaluation.successes import CLEAN

DETECTORS = (ENSEMBLE, CERTIFIED, "MagNet", "Efficient Defenses", "feature squeezing")
MISSING = "–"
JPEG = "JPEG 75"
EPS = 0.2
# that the rows of any frame are chosen by
COLUMNS = ("detector", "channel", "attack", "rows", "security_parameter")
SAID = (
    "AUC: of the worst case. Of each image it takes the one success that looks most normal to the "
    "detector, and compares these with all clean test images. SP 5 %: 5 % false alarms are "
    "promised. Passes: of the classifier, its own included. The attacker who knows everything met "
    f"an earlier version of the ensemble. {MISSING}: not measured."
)


def findings(folder: Path) -> pd.DataFrame:
    """Read the reports in a folder; return a table of strings, a row a finding, by detector."""
    tables = {name: Tables(folder, name) for name in ("mnist", "cifar10", "imagenette")}
    mnist, cifar10, photographs = tables.values()
    rows = {
        "attacker knows the classifier, MNIST: AUC": mnist.area(),
        "… CIFAR-10: AUC": cifar10.area(),
        "… ten classes of ImageNet: AUC": photographs.area(),
        f"… CIFAR-10, arrived as {JPEG}: AUC": cifar10.area(JPEG),
        f"attacker knows everything, MNIST, ε = {EPS}, SP 5 %: succeeds": mnist.success(),
        "clean images flagged, CIFAR-10, SP 5 %": cifar10.flagged(),
        f"… arrived as {JPEG}": cifar10.flagged(JPEG),
        "cost of scoring, CIFAR-10: passes": cifar10.cost(),
    }
    table = pd.DataFrame.from_dict(rows, orient="index").reindex(columns=list(DETECTORS))
    return table.dropna(how="all").fillna(MISSING).rename_axis("finding")


def findings_text(folder: Path) -> str:
    """Write the findings as Markdown; nothing where no report has any."""
    table = findings(folder)
    return f"{table.to_markdown(disable_numparse=True)}\n\n{SAID}" if len(table) else ""


def results_page(folder: Path, page_folder: Path) -> str:
    """Join the findings and all reports in a folder to one page of Markdown."""
    found = findings_text(folder)
    return assemble(folder, page_folder, summary=["## Findings", "", found, ""] if found else [])


class Tables:
    """Frames of one data set from all reports of table 1."""

    def __init__(self, folder: Path, dataset: str):
        self.folder, self.dataset = Path(folder), dataset

    def frame(self, name: str) -> pd.DataFrame:
        """Rows of a frame; of a detector in several reports those of this package's alone."""
        homes = (f"table1-{self.dataset}{part}" for part in ("-ours", "", "-rivals"))
        paths = [self.folder / home / f"{name}.csv" for home in homes]
        frames: list[pd.DataFrame] = []
        known: set[str] = set()
        for path in filter(Path.is_file, paths):
            frame = pd.read_csv(path)
            frames.append(frame[~frame["detector"].isin(known)])
            known |= set(frame["detector"])
        return pd.concat(frames, ignore_index=True) if frames else pd.DataFrame(columns=COLUMNS)

    def area(self, channel: str = RAW) -> dict[str, str]:
        """AUC in the worst case, the mean over seeds."""
        frame = self.frame("detection")
        frame = frame[(frame["attack"] == WORST) & (frame["channel"] == channel)]
        return shown(frame, "auc", "{:.2f}")

    def flagged(self, channel: str = RAW) -> dict[str, str]:
        """Share of clean images flagged at SP 5 %."""
        frame = self.frame("flagged")
        frame = frame[(frame["rows"] == CLEAN) & (frame["channel"] == channel)]
        return shown(frame[frame["security_parameter"] == ADAPTIVE_SP], "flagged", "{:.1%}")

    def cost(self) -> dict[str, str]:
        """Cost of scoring, in passes of the classifier."""
        return shown(self.frame("cost"), "score_cost", "{:.1f}")

    def success(self) -> dict[str, str]:
        """Share of images that attackers who know the detector turn into an unflagged error."""
        path = self.folder / f"peers-{self.dataset}" / "adaptive.csv"
        if not path.is_file():
            return {}
        frame = pd.read_csv(path)
        frame = frame[np.isclose(frame["eps"], EPS) & (frame["security_parameter"] == ADAPTIVE_SP)]
        return shown(pooled_success(frame).reset_index(), "success_rate", "{:.0%}")


def shown(frame: pd.DataFrame, column: str, form: str) -> dict[str, str]:
    """Mean of a column by detector, as text."""
    if frame.empty:
        return {}
    means = frame.groupby("detector")[column].mean()
    return {name: form.format(value).replace("%", " %") for name, value in means.items()}
