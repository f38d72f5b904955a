"""What the displays share."""

from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import numpy as np
from sklearn.utils import check_array, check_consistent_length

from skmrr._sklearn import check_matplotlib_support
from skmrr.evaluation.scorers import _is_adversarial

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure, SubFigure


FALSE_ALARMS = "False-alarm rate (clean rows flagged)"


class Display(ABC):
    """Numbers, and how they are drawn."""

    name: str | None
    ax_: "Axes"
    figure_: "Figure | SubFigure"

    @abstractmethod
    def plot(self, ax: "Axes | None" = None, *, name: str | None = None, **kwargs: Any):
        """Draw the numbers."""

    def _begin(self, ax: "Axes | None", name: str | None) -> tuple["Axes", str | None]:
        """Axes to draw on, kept as ``ax_`` with their ``figure_``, and the name to show."""
        check_matplotlib_support(f"{type(self).__name__}.plot")
        from matplotlib import pyplot as plt

        if ax is None:
            ax = plt.figure(layout="constrained").add_subplot()
        self.ax_, self.figure_ = ax, ax.figure
        return ax, self.name if name is None else name


class ScoreDisplay(Display):
    """Display of the scores of clean and adversarial rows."""

    @classmethod
    def from_estimator(cls, detector, X, y, *, labels=None, name=None, ax=None, **kwargs):
        """Score rows with a detector, and draw.

        Parameters
        ----------
        detector : estimator
            Fitted detector, or a Pipeline that ends in one.
        X : array-like of shape (n_samples, …)
            Clean and adversarial rows.
        y : array-like of shape (n_samples,)
            Classes, −1 for adversarial rows.
        labels : array-like of shape (n_samples,), optional
            The classifier's decisions for X, handed to ``score_samples``.
        name : str, optional
            Name to show; by default that of the detector's class.
        ax : matplotlib Axes, optional
            Where to draw; by default in a new figure.
        **kwargs : dict
            As `from_predictions` takes them.

        Returns
        -------
        display : object
        """
        check_matplotlib_support(f"{cls.__name__}.from_estimator")
        if not hasattr(detector, "score_samples"):
            raise TypeError(
                f"{cls.__name__} needs a detector with score_samples, and {detector!r} has none; "
                "of other scores draw from_predictions(y, scores), high = normal."
            )
        given = {} if labels is None else {"labels": labels}
        name = type(last_step(detector)).__name__ if name is None else name
        return cls.from_predictions(
            y, detector.score_samples(X, **given), name=name, ax=ax, **kwargs
        )

    @classmethod
    @abstractmethod
    def from_predictions(cls, y, scores, *, name=None, ax=None, **kwargs):
        """Draw given scores."""


def last_step(detector):
    """Detector at the end of a Pipeline, or the detector itself."""
    return detector.steps[-1][1] if hasattr(detector, "steps") else detector


def scores_by_kind(y, scores) -> tuple[np.ndarray, np.ndarray]:
    """Scores of the clean rows, and of those of class −1."""
    scores = as_scores(scores, "scores")
    check_consistent_length(y, scores)
    is_adversarial = _is_adversarial(y)
    return scores[~is_adversarial], scores[is_adversarial]


def positives(y, scores) -> tuple[np.ndarray, np.ndarray]:
    """Truth and oddness of each row, as scikit-learn's metrics take them."""
    clean, adversarial = scores_by_kind(y, scores)
    is_adversarial = np.repeat([False, True], [len(clean), len(adversarial)])
    return is_adversarial, -np.concatenate([clean, adversarial])


def as_scores(scores, name: str) -> np.ndarray:
    """One finite float64 for each row."""
    return check_array(scores, ensure_2d=False, dtype=np.float64, input_name=name).ravel()


def check_columns(frame: "pd.DataFrame", needed: Iterable[str]) -> None:
    """Raise a ValueError unless a frame has rows and all columns needed."""
    for column in needed:
        if column not in frame:
            raise ValueError(
                f"The frame has no column {column!r}; its columns are: "
                f"{', '.join(map(str, frame.columns))}."
            )
    if len(frame) == 0:
        raise ValueError("The frame has no rows, so there is nothing to draw.")


def label_log_axis(axis, formatter) -> None:
    """Ticks at 1, 2 and 5 of each decade."""
    from matplotlib.ticker import LogLocator

    axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.set_major_formatter(formatter)
    axis.set_minor_formatter("")


def percent(share: float, _=None) -> str:
    """0.01 as 1%, also as a tick formatter."""
    return f"{100 * share:.3g}%"
