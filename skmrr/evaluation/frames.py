"""What an evaluation of detection found, as tidy frames."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from skmrr._sklearn import check_pandas_support

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class DetectionEvaluation:
    """Outcome of `evaluate_detection`; each frame is tidy, a row an observation."""

    detection: "pd.DataFrame"
    """By ``detector``, ``channel`` and ``attack``: number ``n_rows`` and ``success_rate`` of what
    fools the victim when it arrives, among rows that the channel alone leaves right;
    ``mean_distortion`` before it was sent; against all clean rows that come through the same
    channel ``auc`` with its 95 % interval ``auc_low`` to ``auc_high``, and ``tpr_0.01`` … at these
    shares of them flagged; ``auc_raw`` against clean rows as they are, the channel's own marks
    counted as evidence. NaN for an attack without a success. The attack "worst case" takes, of each
    row that all attacks began from, the success that the detector finds most normal; in the channel
    "any channel" it does so over all channels, against the clean rows of all of them."""
    flagged: "pd.DataFrame"
    """By ``detector``, ``channel``, ``rows`` ("clean", "clean, victim right", "clean, victim
    wrong", or an attack) and ``security_parameter``: ``n_rows`` and the share ``flagged`` at the
    detector's calibrated threshold, with its 95 % interval ``low`` to ``high`` (Clopper and
    Pearson)."""
    scores: "pd.DataFrame"
    """``detector``, ``channel``, ``attack`` ("clean" for none), ``row`` and ``score`` of every row
    scored, and of those of the worst case."""

    @classmethod
    def concat(
        cls, parts: "Mapping[int, DetectionEvaluation] | Sequence[DetectionEvaluation]"
    ) -> "DetectionEvaluation":
        """Join the evaluations of several seeds, with a column ``seed``, or of several detectors.

        Parameters
        ----------
        parts : mapping of int to DetectionEvaluation, or sequence of DetectionEvaluation
            By seed, or without.
        """
        pandas = check_pandas_support("DetectionEvaluation.concat")
        if isinstance(parts, Mapping):
            frames = [
                {name: frame.assign(seed=seed) for name, frame in part.frames.items()}
                for seed, part in parts.items()
            ]
        else:
            frames = [part.frames for part in parts]
        names = frames[0]
        return cls(**{n: pandas.concat([f[n] for f in frames], ignore_index=True) for n in names})

    @property
    def frames(self) -> "dict[str, pd.DataFrame]":
        """Frames by name."""
        return dict(vars(self))

    def save(self, folder) -> list[Path]:
        """Write each frame as CSV and as JSON records into a folder; return the paths."""
        return save_frames(self.frames, folder)


def save_frames(frames: "Mapping[str, pd.DataFrame]", folder) -> list[Path]:
    """Write frames, by name, as CSV and as JSON records into a folder; return the paths."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for name, frame in frames.items():
        if frame.index.names != [None]:  # else what the rows are would be lost
            frame = frame.reset_index()
        paths += [folder / f"{name}.csv", folder / f"{name}.json"]
        frame.to_csv(paths[-2], index=False)
        frame.to_json(paths[-1], orient="records")
    return paths


def over_seeds(frame: "pd.DataFrame", by: Sequence[str], values: Sequence[str]) -> "pd.DataFrame":
    """Mean, least and greatest value over seeds, in the order of first appearance.

    Parameters
    ----------
    frame : DataFrame
        With a column ``seed``, the columns `by` and the columns `values`.
    by : sequence of str
        What is kept apart.
    values : sequence of str
        What is averaged.

    Returns
    -------
    DataFrame
        Indexed by `by`, columns (value, "mean" | "min" | "max").
    """
    return frame.groupby(list(by), sort=False)[list(values)].agg(["mean", "min", "max"])
