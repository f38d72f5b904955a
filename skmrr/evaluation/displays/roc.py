"""ROC curve of a detector: adversarial rows are the positive class."""

from typing import TYPE_CHECKING, Any

import numpy as np
from sklearn.metrics import auc, roc_curve

from skmrr._sklearn import check_matplotlib_support
from skmrr.evaluation.displays.display import (
    FALSE_ALARMS,
    ScoreDisplay,
    label_log_axis,
    percent,
    positives,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.lines import Line2D

LEAST_RATE, GREATEST_RATE = 1e-4, 0.1  # between which a logarithmic axis starts


class DetectionRocDisplay(ScoreDisplay):
    """ROC curve of a detector, by default over the logarithm of the false-alarm rate.

    Few deployments bear more than 5 % false alarms; a linear axis leaves that part no room.

    Parameters
    ----------
    fpr : ndarray of shape (n_thresholds,)
        Shares of clean rows flagged, ascending.
    tpr : ndarray of shape (n_thresholds,)
        Shares of adversarial rows flagged.
    roc_auc : float, optional
        Area under the curve.
    name : str, optional
        Name of the detector.

    Attributes
    ----------
    line_ : matplotlib Line2D
        The curve.
    ax_ : matplotlib Axes
        Where it is drawn.
    figure_ : matplotlib Figure
        Figure of ``ax_``.

    Examples
    --------
    >>> import matplotlib
    >>> matplotlib.use("Agg")
    >>> from sklearn.datasets import load_digits
    >>> from skmrr import LatentDefender
    >>> from skmrr.evaluation import DetectionRocDisplay
    >>> X, y = load_digits(return_X_y=True)
    >>> detector = LatentDefender(max_epochs=3, random_state=0).fit(X[:1500], y[:1500])
    >>> y[1700:], X[1700:] = -1, 16 - X[1700:]
    >>> display = DetectionRocDisplay.from_estimator(detector, X[1500:], y[1500:])
    >>> bool(display.roc_auc > 0.5)
    True
    >>> matplotlib.pyplot.close(display.figure_)
    """

    line_: "Line2D"

    def __init__(self, *, fpr, tpr, roc_auc: float | None = None, name: str | None = None):
        self.fpr = fpr
        self.tpr = tpr
        self.roc_auc = roc_auc
        self.name = name

    @classmethod
    def from_predictions(cls, y, scores, *, name=None, ax=None, **kwargs):
        """Draw given scores.

        Parameters
        ----------
        y : array-like of shape (n_samples,)
            Classes, −1 for adversarial rows.
        scores : array-like of shape (n_samples,)
            ``score_samples``: high = normal.
        name : str, optional
            Name to show.
        ax : matplotlib Axes, optional
            Where to draw; by default in a new figure.
        **kwargs : dict
            As `plot` takes them.

        Returns
        -------
        display : DetectionRocDisplay
        """
        check_matplotlib_support(f"{cls.__name__}.from_predictions")
        # The points between are collinear on a linear axis, but not on a logarithmic one.
        fpr, tpr, _ = roc_curve(*positives(y, scores), drop_intermediate=False)
        return cls(fpr=fpr, tpr=tpr, roc_auc=auc(fpr, tpr), name=name).plot(ax, **kwargs)

    def plot(
        self, ax: "Axes | None" = None, *, name: str | None = None, log: bool = True, **kwargs: Any
    ):
        """Draw the curve.

        Parameters
        ----------
        ax : matplotlib Axes, optional
            Where to draw; by default in a new figure.
        name : str, optional
            Name to show instead of the display's own.
        log : bool, default=True
            Whether the axis of false alarms is logarithmic. The curve is then drawn in steps, at
            the detection rate that at most so many false alarms allow.
        **kwargs : dict
            Properties of the line.

        Returns
        -------
        self : object
        """
        ax, name = self._begin(ax, name)
        area = None if self.roc_auc is None else f"AUC = {self.roc_auc:.3f}"
        label = area if name is None else name if area is None else f"{name} ({area})"
        style = {"label": label, "drawstyle": "steps-post" if log else "default"}
        (self.line_,) = ax.plot(self.fpr, self.tpr)
        self.line_.set(**style)
        self.line_.set(**kwargs)
        ax.set(xlabel=FALSE_ALARMS, ylabel="True positive rate (adversarial rows flagged)")
        ax.set_ylim(-0.01, 1.01)
        ax.yaxis.set_major_formatter(percent)
        if log:
            resolved = np.min(self.fpr, where=self.fpr > 0, initial=1.0)
            left = np.clip(resolved, LEAST_RATE, GREATEST_RATE)
            if ax.get_xscale() == "log":  # another curve is there already
                left = min(left, ax.get_xlim()[0])
            ax.set(xscale="log", xlim=(left, 1))
            label_log_axis(ax.xaxis, percent)
            ax.grid(alpha=0.3)
        else:
            ax.set(xlim=(-0.01, 1.01), aspect="equal")
            ax.xaxis.set_major_formatter(percent)
        if self.line_.get_label() and not str(self.line_.get_label()).startswith("_"):
            ax.legend(loc="lower right")
        return self
