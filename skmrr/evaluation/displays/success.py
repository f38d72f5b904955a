"""Success of attacks against their budget."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from skmrr._sklearn import check_matplotlib_support, check_pandas_support
from skmrr.evaluation.adaptive import AdaptiveEvaluation
from skmrr.evaluation.displays.display import Display, check_columns, percent
from skmrr.evaluation.metrics import exact_interval
from skmrr.evaluation.siege import WORST

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.collections import PolyCollection
    from matplotlib.lines import Line2D


class SuccessCurveDisplay(Display):
    """Share of rows that an attack breaks, unflagged, against how far it may change them.

    Parameters
    ----------
    frame : DataFrame
        Columns ``curve`` (its name), ``eps``, ``success_rate``, ``low`` and ``high``.
    steps : bool, default=False
        Whether the rate stays as it is up to the next ε, as where each row's distortion is known.
    name : str, optional
        Title of the legend.

    Attributes
    ----------
    lines_ : list of matplotlib Line2D
        The curves.
    bands_ : list of matplotlib PolyCollection
        Their 95 % intervals.
    ax_ : matplotlib Axes
        Where they are drawn.
    figure_ : matplotlib Figure
        Figure of ``ax_``.

    Examples
    --------
    >>> import matplotlib
    >>> matplotlib.use("Agg")
    >>> import numpy as np
    >>> from skmrr.evaluation import SuccessCurveDisplay
    >>> distortions = {"victim alone": [0.1, 0.2, 0.4], "defended": [0.3, 0.9, np.inf]}
    >>> display = SuccessCurveDisplay.from_distortions(distortions)
    >>> display.frame.loc[display.frame["curve"] == "defended", "success_rate"].round(2).tolist()
    [0.0, 0.33, 0.67]
    >>> matplotlib.pyplot.close(display.figure_)
    """

    lines_: "list[Line2D]"
    bands_: "list[PolyCollection]"

    def __init__(self, *, frame: "pd.DataFrame", steps: bool = False, name: str | None = None):
        self.frame = frame
        self.steps = steps
        self.name = name

    @classmethod
    def from_evaluation(
        cls,
        evaluation: AdaptiveEvaluation | Mapping[str, AdaptiveEvaluation],
        *,
        attack: str = WORST,
        name: str | None = None,
        ax: "Axes | None" = None,
        **kwargs: Any,
    ):
        """Draw outcomes of `evaluate_adaptive`, a curve for each detector and threshold.

        Parameters
        ----------
        evaluation : AdaptiveEvaluation or mapping of str to AdaptiveEvaluation
            Outcome, or outcomes by the detector's name.
        attack : str, default="worst case"
            Which attack to show.
        name : str, optional
            Title of the legend.
        ax : matplotlib Axes, optional
            Where to draw; by default in a new figure.
        **kwargs : dict
            As `plot` takes them.

        Returns
        -------
        display : SuccessCurveDisplay
        """
        check_matplotlib_support(f"{cls.__name__}.from_evaluation")
        pandas = check_pandas_support(f"{cls.__name__}.from_evaluation")
        by_name = evaluation if isinstance(evaluation, Mapping) else {"": evaluation}
        if not by_name:
            raise ValueError("There is no evaluation to draw; give {name: evaluation}.")
        parts = []
        for detector, outcome in by_name.items():
            success = outcome.success
            check_columns(success, ("attack", "eps", "security_parameter", "success_rate"))
            shown = success[success["attack"] == attack].sort_values(["security_parameter", "eps"])
            if len(shown) == 0:
                raise ValueError(
                    f"attack={attack!r} was not reported; there are: "
                    f"{', '.join(success['attack'].unique())}."
                )
            prefix = f"{detector}, " if detector else ""
            parts.append(shown.assign(curve=_curve_names(shown["security_parameter"], prefix)))
        frame = pandas.concat(parts, ignore_index=True)
        frame = frame[["curve", "eps", "success_rate", "low", "high"]]
        return cls(frame=frame, name=name).plot(ax, **kwargs)

    @classmethod
    def from_distortions(
        cls,
        distortions: Mapping[str, Any],
        *,
        name: str | None = None,
        ax: "Axes | None" = None,
        **kwargs: Any,
    ):
        """Draw how many rows are broken within each distance, from the rows' own distances.

        Parameters
        ----------
        distortions : mapping of str to array-like of shape (n_rows,)
            Of each curve the least distortion that broke each row, infinite where none did: the
            ``distortion`` of an `AttackResult`.
        name : str, optional
            Title of the legend.
        ax : matplotlib Axes, optional
            Where to draw; by default in a new figure.
        **kwargs : dict
            As `plot` takes them.

        Returns
        -------
        display : SuccessCurveDisplay
        """
        check_matplotlib_support(f"{cls.__name__}.from_distortions")
        pandas = check_pandas_support(f"{cls.__name__}.from_distortions")
        rows = {curve: np.ravel(np.asarray(part, float)) for curve, part in distortions.items()}
        for curve, part in rows.items():
            if len(part) == 0 or not np.all(part >= 0):  # NaN fails this too
                raise ValueError(
                    f"{curve}: distortions must be at least one, and no less than 0; use inf for a "
                    "row that was not broken."
                )
        finite = [part[np.isfinite(part)] for part in rows.values()]
        if not any(len(part) for part in finite):
            raise ValueError("No row was broken at all, so there is no success to draw.")
        end = max(part.max() for part in finite if len(part))
        parts = []
        for (curve, part), broken in zip(rows.items(), finite, strict=True):
            eps = np.unique(np.r_[0.0, broken, end])
            hits = np.searchsorted(np.sort(broken), eps, side="right")
            low, high = exact_interval(hits, len(part))
            columns = {"eps": eps, "success_rate": hits / len(part), "low": low, "high": high}
            parts.append(pandas.DataFrame({"curve": curve, **columns}))
        frame = pandas.concat(parts, ignore_index=True)
        return cls(frame=frame, steps=True, name=name).plot(ax, **kwargs)

    def plot(self, ax: "Axes | None" = None, *, name: str | None = None, **kwargs: Any):
        """Draw a curve with its band for each name.

        Parameters
        ----------
        ax : matplotlib Axes, optional
            Where to draw; by default in a new figure.
        name : str, optional
            Title of the legend instead of the display's own.
        **kwargs : dict
            Properties of the lines.

        Returns
        -------
        self : object
        """
        check_columns(self.frame, ("curve", "eps", "success_rate", "low", "high"))
        ax, name = self._begin(ax, name)
        self.lines_, self.bands_ = [], []
        for curve, part in self.frame.groupby("curve", sort=False):
            eps = part["eps"].to_numpy()
            (line,) = ax.plot(eps, part["success_rate"].to_numpy())
            style = {"drawstyle": "steps-post"} if self.steps else {"marker": "o"}
            line.set(label=curve, **style)
            line.set(**kwargs)
            band = ax.fill_between(
                eps,
                part["low"].to_numpy(),
                part["high"].to_numpy(),
                step="post" if self.steps else None,
                color=line.get_color(),
                alpha=0.15,
                linewidth=0,
            )
            self.lines_.append(line)
            self.bands_.append(band)
        ax.set(ylim=(-0.01, 1.01), ylabel="Success rate (misclassified and not flagged)")
        ax.set(xlabel="Distortion" if self.steps else "ε")
        ax.yaxis.set_major_formatter(percent)
        ax.grid(alpha=0.3)
        ax.legend(title=name)
        return self


def _curve_names(security_parameters, prefix: str) -> list[str]:
    return [f"{prefix}SP {percent(sp)}" for sp in security_parameters]
