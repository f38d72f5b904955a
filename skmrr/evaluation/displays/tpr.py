"""Attacks caught at a few false-alarm rates."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from sklearn.utils._optional_dependencies import check_matplotlib_support

from skmrr.evaluation.displays.base import (
    ScoreDisplay,
    as_scores,
    percent,
    scores_by_kind,
)
from skmrr.evaluation.metrics import FALSE_ALARM_RATES, exact_interval, tpr_at_fpr

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.container import ErrorbarContainer


class TprAtFprDisplay(ScoreDisplay):
    """Share of each attack's rows caught, at a few shares of clean rows flagged.

    Parameters
    ----------
    tpr, low, high : ndarray of shape (n_attacks, n_rates)
        Shares of adversarial rows caught, and their 95 % intervals (Clopper and Pearson). These
        count the chance in the adversarial rows, not that in the threshold.
    fpr : sequence of float
        Shares of clean rows that may be flagged.
    attacks : sequence of str
        Names of the attacks.
    name : str, optional
        Name of the detector.

    Attributes
    ----------
    errorbars_ : list of matplotlib ErrorbarContainer
        Points and intervals, by false-alarm rate.
    ax_ : matplotlib Axes
        Where they are drawn.
    figure_ : matplotlib Figure
        Figure of ``ax_``.

    Examples
    --------
    >>> import matplotlib
    >>> matplotlib.use("Agg")
    >>> from sklearn.datasets import load_digits
    >>> from skmrr import LatentDefender
    >>> from skmrr.evaluation import TprAtFprDisplay
    >>> X, y = load_digits(return_X_y=True)
    >>> detector = LatentDefender(max_epochs=3, random_state=0).fit(X[:1500], y[:1500])
    >>> attacks = {"negative": 16 - X[1500:], "mirrored": X[1500:, ::-1]}
    >>> display = TprAtFprDisplay.from_scores(
    ...     detector.score_samples(X[1500:]),
    ...     {attack: detector.score_samples(rows) for attack, rows in attacks.items()},
    ... )
    >>> display.tpr.shape
    (2, 3)
    >>> matplotlib.pyplot.close(display.figure_)
    """

    errorbars_: "list[ErrorbarContainer]"

    def __init__(self, *, tpr, low, high, fpr, attacks: Sequence[str], name: str | None = None):
        self.tpr = tpr
        self.low = low
        self.high = high
        self.fpr = fpr
        self.attacks = attacks
        self.name = name

    @classmethod
    def from_scores(
        cls,
        clean_scores,
        attacks: Mapping,
        *,
        fpr: Sequence[float] = FALSE_ALARM_RATES,
        name: str | None = None,
        ax: "Axes | None" = None,
        **kwargs: Any,
    ):
        """Draw the scores of several attacks.

        Parameters
        ----------
        clean_scores : array-like of shape (n_clean,)
            ``score_samples`` of clean rows.
        attacks : mapping of str to array-like of shape (n_rows,)
            ``score_samples`` of each attack's rows.
        fpr : sequence of float, default=(0.01, 0.05, 0.1)
            Shares of clean rows that may be flagged.
        name : str, optional
            Name of the detector.
        ax : matplotlib Axes, optional
            Where to draw; by default in a new figure.
        **kwargs : dict
            As `plot` takes them.

        Returns
        -------
        display : TprAtFprDisplay
        """
        check_matplotlib_support(f"{cls.__name__}.from_scores")
        if not attacks:
            raise ValueError("There is no attack to draw; give attacks={name: scores}.")
        wrong = [rate for rate in fpr if not 0 < rate < 1]
        if wrong:
            raise ValueError(f"fpr={wrong[0]!r} is no rate; give rates between 0 and 1.")
        clean = as_scores(clean_scores, "clean_scores")
        odd = {attack: as_scores(scores, attack) for attack, scores in attacks.items()}
        tpr = np.array([[tpr_at_fpr(clean, part, rate) for rate in fpr] for part in odd.values()])
        n_rows = np.array([[len(part)] for part in odd.values()])
        low, high = exact_interval(np.rint(tpr * n_rows), n_rows)
        display = cls(tpr=tpr, low=low, high=high, fpr=tuple(fpr), attacks=list(odd), name=name)
        return display.plot(ax, **kwargs)

    @classmethod
    def from_predictions(cls, y, scores, *, name=None, ax=None, **kwargs):
        """Draw given scores of one attack.

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
            ``fpr``, and what `plot` takes.

        Returns
        -------
        display : TprAtFprDisplay
        """
        clean, adversarial = scores_by_kind(y, scores)
        return cls.from_scores(clean, {"adversarial": adversarial}, name=name, ax=ax, **kwargs)

    def plot(self, ax: "Axes | None" = None, *, name: str | None = None, **kwargs: Any):
        """Draw a line for each attack, a point on it for each false-alarm rate.

        Parameters
        ----------
        ax : matplotlib Axes, optional
            Where to draw; by default in a new figure.
        name : str, optional
            Name to show instead of the display's own.
        **kwargs : dict
            As matplotlib's ``errorbar`` takes them.

        Returns
        -------
        self : object
        """
        ax, name = self._begin(ax, name)
        place = np.arange(len(self.attacks))
        shifts = (np.arange(len(self.fpr)) - (len(self.fpr) - 1) / 2) * 0.6 / len(self.fpr)
        self.errorbars_ = []
        for k, rate in enumerate(self.fpr):
            tpr = self.tpr[:, k]
            reach = np.maximum([tpr - self.low[:, k], self.high[:, k] - tpr], 0)
            style = {"fmt": "o", "capsize": 3, "label": percent(rate), **kwargs}
            self.errorbars_.append(ax.errorbar(tpr, place + shifts[k], xerr=reach, **style))
        ax.set(xlim=(-0.01, 1.01), xlabel="True positive rate (adversarial rows flagged)")
        ax.set(yticks=place, yticklabels=self.attacks, ylim=(len(place) - 0.5, -0.5))
        ax.xaxis.set_major_formatter(percent)
        ax.grid(axis="x", alpha=0.3)
        ax.legend(title="False-alarm rate", loc="best")
        if name is not None:
            ax.set_title(name)
        return self
