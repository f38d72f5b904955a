"""DET curve of a detector: adversarial rows are the positive class."""

from typing import TYPE_CHECKING, Any

from sklearn.metrics import DetCurveDisplay, det_curve
from sklearn.utils._optional_dependencies import check_matplotlib_support

from skmrr.evaluation.displays.base import FALSE_ALARMS, ScoreDisplay, positives

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.lines import Line2D


class DetectionDetDisplay(ScoreDisplay):
    """Missed attacks against false alarms on normal-deviate axes, drawn by scikit-learn.

    Parameters
    ----------
    fpr : ndarray of shape (n_thresholds,)
        Shares of clean rows flagged.
    fnr : ndarray of shape (n_thresholds,)
        Shares of adversarial rows missed.
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

    See Also
    --------
    sklearn.metrics.DetCurveDisplay : The same of classifiers.

    Examples
    --------
    >>> import matplotlib
    >>> matplotlib.use("Agg")
    >>> import numpy as np
    >>> from skmrr.evaluation import DetectionDetDisplay
    >>> rng = np.random.default_rng(0)
    >>> scores = np.r_[rng.normal(0, 1, 200), rng.normal(-2, 1, 100)]
    >>> y = np.r_[np.zeros(200), np.full(100, -1)]
    >>> display = DetectionDetDisplay.from_predictions(y, scores, name="some detector")
    >>> display.ax_.get_ylabel()
    'Miss rate (adversarial rows passed)'
    >>> matplotlib.pyplot.close(display.figure_)
    """

    line_: "Line2D"

    def __init__(self, *, fpr, fnr, name: str | None = None):
        self.fpr = fpr
        self.fnr = fnr
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
            Properties of the line.

        Returns
        -------
        display : DetectionDetDisplay
        """
        check_matplotlib_support(f"{cls.__name__}.from_predictions")
        fpr, fnr, _ = det_curve(*positives(y, scores))
        return cls(fpr=fpr, fnr=fnr, name=name).plot(ax, **kwargs)

    def plot(self, ax: "Axes | None" = None, *, name: str | None = None, **kwargs: Any):
        """Draw the curve.

        Parameters
        ----------
        ax : matplotlib Axes, optional
            Where to draw; by default in a new figure.
        name : str, optional
            Name to show instead of the display's own.
        **kwargs : dict
            Properties of the line.

        Returns
        -------
        self : object
        """
        ax, name = self._begin(ax, name)
        self.line_ = DetCurveDisplay(fpr=self.fpr, fnr=self.fnr).plot(ax, name=name).line_
        self.line_.set(**kwargs)
        ax.set(xlabel=FALSE_ALARMS, ylabel="Miss rate (adversarial rows passed)")
        if ax.get_legend_handles_labels()[1]:
            ax.legend(loc="upper right")
        return self
