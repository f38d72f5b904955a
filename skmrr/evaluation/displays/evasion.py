"""How much dearer a detector makes evasion."""

from typing import TYPE_CHECKING, Any

import numpy as np
from sklearn.utils._optional_dependencies import check_matplotlib_support, check_pandas_support

from skmrr.evaluation.adaptive import evasion_cost
from skmrr.evaluation.displays.base import Display, check_columns, last_step, percent

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.container import BarContainer
    from matplotlib.lines import Line2D

COLUMNS = ("security_parameter", "success_rate", "ratio")


class EvasionCostDisplay(Display):
    """How many times farther rows must be changed to pass the detector too, by threshold.

    Over each bar stands the share of rows that the attack broke at all. A bar up to the edge,
    hatched and with ∞, means that half of the rows were not broken at any distance.

    Parameters
    ----------
    frame : DataFrame
        As `evasion_cost` returns it. A column ``detector``, if there is one, groups the bars.
    name : str, optional
        Name of the detector.

    Attributes
    ----------
    bars_ : list of matplotlib BarContainer
        Median ratios of L2 distortions, by detector.
    line_ : matplotlib Line2D
        Ratio 1: the victim alone.
    ax_ : matplotlib Axes
        Where they are drawn.
    figure_ : matplotlib Figure
        Figure of ``ax_``.

    See Also
    --------
    SuccessCurveDisplay.from_distortions : Of each row's distortion.

    Examples
    --------
    >>> import matplotlib
    >>> matplotlib.use("Agg")
    >>> import torch
    >>> from sklearn.datasets import load_digits
    >>> from skmrr import LatentDefender
    >>> from skmrr.evaluation import EvasionCostDisplay
    >>> X, y = load_digits(return_X_y=True)
    >>> X /= 16
    >>> net = torch.nn.Linear(64, 10)
    >>> defender = LatentDefender(classifier=net, max_epochs=2, clip_values=(0, 1), random_state=0)
    >>> display = EvasionCostDisplay.from_estimator(
    ...     defender.fit(X[:1500], y[:1500]), X[1500:], y[1500:],
    ...     n_attacked=10, search_steps=2, max_iter=10,
    ... )
    >>> list(display.frame["security_parameter"])
    [0.0, 0.01, 0.05]
    >>> matplotlib.pyplot.close(display.figure_)
    """

    bars_: "list[BarContainer]"
    line_: "Line2D"

    def __init__(self, *, frame: "pd.DataFrame", name: str | None = None):
        self.frame = frame
        self.name = name

    @classmethod
    def from_estimator(
        cls, detector, X, y, *, name=None, ax=None, bar_kwargs: dict | None = None, **params
    ):
        """Run `evasion_cost`, and draw.

        Parameters
        ----------
        detector : BaseDetector
            Fitted, calibrated, and with a ``classifier``.
        X : array-like of shape (n_samples, …)
            Clean test rows.
        y : array-like of shape (n_samples,)
            True classes.
        name : str, optional
            Name to show; by default that of the detector's class.
        ax : matplotlib Axes, optional
            Where to draw; by default in a new figure.
        bar_kwargs : dict, optional
            As `plot` takes them.
        **params : dict
            Parameters of `evasion_cost`.

        Returns
        -------
        display : EvasionCostDisplay
        """
        check_matplotlib_support(f"{cls.__name__}.from_estimator")
        frame = evasion_cost(detector, X, y, **params)
        name = type(last_step(detector)).__name__ if name is None else name
        return cls.from_frame(frame, name=name, ax=ax, **(bar_kwargs or {}))

    @classmethod
    def from_frame(
        cls,
        frame: "pd.DataFrame",
        *,
        name: str | None = None,
        ax: "Axes | None" = None,
        **kwargs: Any,
    ):
        """Draw the outcome of `evasion_cost`.

        Parameters
        ----------
        frame : DataFrame
            Columns ``security_parameter``, ``success_rate`` and ``ratio``, and ``detector`` if
            several are joined.
        name : str, optional
            Name to show.
        ax : matplotlib Axes, optional
            Where to draw; by default in a new figure.
        **kwargs : dict
            As `plot` takes them.

        Returns
        -------
        display : EvasionCostDisplay
        """
        return cls(frame=frame, name=name).plot(ax, **kwargs)

    def plot(self, ax: "Axes | None" = None, *, name: str | None = None, **kwargs: Any):
        """Draw a bar for each threshold and detector.

        Parameters
        ----------
        ax : matplotlib Axes, optional
            Where to draw; by default in a new figure.
        name : str, optional
            Name to show instead of the display's own.
        **kwargs : dict
            As matplotlib's ``bar`` takes them.

        Returns
        -------
        self : object
        """
        pandas = check_pandas_support(f"{type(self).__name__}.plot")
        check_columns(self.frame, COLUMNS)
        defended = self.frame[self.frame["security_parameter"] > 0]
        if len(defended) == 0:
            raise ValueError("The frame has no security_parameter above 0: nothing is defended.")
        ax, name = self._begin(ax, name)
        if "detector" not in defended:
            defended = defended.assign(detector="" if name is None else name)
        order = pandas.Index(sorted(defended["security_parameter"].unique()))
        finite = defended["ratio"][np.isfinite(defended["ratio"])]
        top = 1.25 * max(finite.max() if len(finite) else 1.0, 1.2)
        groups = list(defended.groupby("detector", sort=False))
        width = 0.8 / max(len(groups), 2)
        self.bars_ = []
        for k, (detector, part) in enumerate(groups):
            place = order.get_indexer(part["security_parameter"])
            place = place + (k - (len(groups) - 1) / 2) * width
            ratio = part["ratio"].to_numpy()
            height = np.nan_to_num(ratio, nan=0.0, posinf=top)
            label = {"label": detector} if detector else {}
            bars = ax.bar(place, height, **{"width": 0.9 * width, **label, **kwargs})
            for bar, value in zip(bars, ratio, strict=True):
                bar.set_hatch("//" if np.isinf(value) else "")
            inside = [_text(*pair) for pair in zip(ratio, part["success_rate"], strict=True)]
            _annotate(ax, bars, inside, top)
            self.bars_.append(bars)
        self.line_ = ax.axhline(1, color="k", linestyle="--", label="victim alone")
        ax.set(ylim=(0, top), ylabel="L2 distortion, × that which fools the victim (median)")
        ax.set(xticks=range(len(order)), xticklabels=map(percent, order))
        ax.set(xlabel="Security parameter", xlim=(-0.6, len(order) - 0.4))
        ax.legend(loc="best")
        return self


def _text(ratio: float, success: float) -> str:
    times = "–" if np.isnan(ratio) else "∞" if np.isinf(ratio) else f"×{ratio:.2f}"
    return f"{times}\n{percent(success)} evade"


def _annotate(ax: "Axes", bars, texts: list[str], top: float) -> None:
    """Write over each bar, or within it where there is no room over it."""
    for bar, text in zip(bars, texts, strict=True):
        height = bar.get_height()
        is_full = height > 0.9 * top
        ax.annotate(
            text,
            (bar.get_x() + bar.get_width() / 2, height),
            xytext=(0, -4 if is_full else 4),
            textcoords="offset points",
            ha="center",
            va="top" if is_full else "bottom",
            bbox={"facecolor": "w", "edgecolor": "none", "pad": 1, "alpha": 0.8},
        )
