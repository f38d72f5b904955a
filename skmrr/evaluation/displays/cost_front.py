"""What detection costs against what it catches."""

from typing import TYPE_CHECKING, Any

import numpy as np

from skmrr.evaluation.displays.display import Display, check_columns, label_log_axis

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.collections import PathCollection
    from matplotlib.lines import Line2D

AXES = {
    "score_cost": "Time to score, × the victim's own pass",
    "auc": "AUC",
}
# Where a name may stand beside its point, in points; the front runs level with the points.
PLACES = [(6, 8), (6, -8), (-6, 8), (-6, -8), (6, 19), (6, -19), (-6, 19), (-6, -19)]


class CostDisplay(Display):
    """Each detector as a point, cost against merit, and those that no other beats in both.

    Parameters
    ----------
    frame : DataFrame
        A row for each detector.
    x, y, label : str
        Columns of the cost (low is good), the merit (high is good) and the name.
    name : str, optional
        Title.

    Attributes
    ----------
    points_ : matplotlib PathCollection
        The detectors.
    texts_ : list of matplotlib Annotation
        Their names.
    line_ : matplotlib Line2D
        Pareto front: the best merit to be had at each cost.
    ax_ : matplotlib Axes
        Where they are drawn.
    figure_ : matplotlib Figure
        Figure of ``ax_``.

    Examples
    --------
    >>> import matplotlib
    >>> matplotlib.use("Agg")
    >>> import pandas as pd
    >>> from skmrr.evaluation import CostDisplay
    >>> frame = pd.DataFrame(
    ...     {"detector": ["a", "b", "c"], "score_cost": [1.1, 3, 9], "auc": [0.8, 0.95, 0.9]}
    ... )
    >>> display = CostDisplay.from_frame(frame)
    >>> display.front["detector"].tolist()
    ['a', 'b']
    >>> matplotlib.pyplot.close(display.figure_)
    """

    points_: "PathCollection"
    texts_: list[Any]
    line_: "Line2D"

    def __init__(
        self,
        *,
        frame: "pd.DataFrame",
        x: str = "score_cost",
        y: str = "auc",
        label: str = "detector",
        name: str | None = None,
    ):
        self.frame = frame
        self.x = x
        self.y = y
        self.label = label
        self.name = name

    @classmethod
    def from_frame(
        cls,
        frame: "pd.DataFrame",
        *,
        x: str = "score_cost",
        y: str = "auc",
        label: str = "detector",
        name: str | None = None,
        ax: "Axes | None" = None,
        **kwargs: Any,
    ):
        """Draw a frame of costs and merits.

        Parameters
        ----------
        frame : DataFrame
            A row for each detector. Columns named as `y` with ``_low`` and ``_high`` behind, if
            there are any, are drawn as its interval.
        x : str, default="score_cost"
            Column of the cost, above 0.
        y : str, default="auc"
            Column of the merit.
        label : str, default="detector"
            Column of the names.
        name : str, optional
            Title.
        ax : matplotlib Axes, optional
            Where to draw; by default in a new figure.
        **kwargs : dict
            As `plot` takes them.

        Returns
        -------
        display : CostDisplay
        """
        return cls(frame=frame, x=x, y=y, label=label, name=name).plot(ax, **kwargs)

    @property
    def front(self) -> "pd.DataFrame":
        """Rows that no other row beats in cost and merit, in the order of cost."""
        ordered = self.frame.sort_values([self.x, self.y], ascending=[True, False], kind="stable")
        best_so_far = ordered[self.y].cummax().shift(fill_value=-np.inf)
        return ordered[ordered[self.y] > best_so_far]

    def plot(self, ax: "Axes | None" = None, *, name: str | None = None, **kwargs: Any):
        """Draw the points, their names and the Pareto front.

        Parameters
        ----------
        ax : matplotlib Axes, optional
            Where to draw; by default in a new figure.
        name : str, optional
            Title instead of the display's own.
        **kwargs : dict
            As matplotlib's ``scatter`` takes them.

        Returns
        -------
        self : object
        """
        check_columns(self.frame, (self.x, self.y, self.label))
        cost, merit = (self.frame[column].to_numpy(float) for column in (self.x, self.y))
        if not np.all(np.isfinite(cost) & (cost > 0) & np.isfinite(merit)):
            raise ValueError(
                f"{self.x} must be finite and above 0, and {self.y} finite; leave out the rows of "
                "which they are not known."
            )
        ax, name = self._begin(ax, name)
        ax.set_xscale("log")
        interval = [f"{self.y}_low", f"{self.y}_high"]
        if set(interval) <= set(self.frame.columns):
            ends = self.frame[interval].to_numpy(float).T
            ax.vlines(cost, *ends, color="0.7", linewidth=1, zorder=1)
        self.points_ = ax.scatter(cost, merit, **{"zorder": 3, **kwargs})
        ax.margins(x=0.25, y=0.15)
        left, right = ax.get_xlim()
        front = self.front
        (self.line_,) = ax.plot(
            [*front[self.x], right],
            [*front[self.y], front[self.y].iloc[-1]],
            drawstyle="steps-post",
            linestyle="--",
            color="0.4",
            zorder=2,
            label="Pareto front",
        )
        ax.set(xlim=(left, right), xlabel=AXES.get(self.x, self.x), ylabel=AXES.get(self.y, self.y))
        label_log_axis(ax.xaxis, "{x:g}")
        ax.grid(alpha=0.3)
        self.texts_ = _name_points(ax, cost, merit, self.frame[self.label].map(str))
        ax.legend(loc="lower right")
        if name is not None:
            ax.set_title(name)
        return self


def _name_points(ax: "Axes", x: np.ndarray, y: np.ndarray, names) -> list[Any]:
    """Write a name beside each point, where it covers the least of points, names and frame."""
    points = ax.transData.transform(np.c_[x, y])
    inside = ax.get_window_extent()
    texts: list[Any] = []
    for point, name in zip(zip(x, y, strict=True), names, strict=True):
        text = ax.annotate(
            name, point, PLACES[0], textcoords="offset points", va="center", fontsize=9
        )
        taken = [other.get_window_extent() for other in texts]

        def covered(place, text=text, taken=taken):
            _move(text, place)
            box = text.get_window_extent()
            leaves = sum(not inside.contains(*corner) for corner in box.corners())
            return leaves + box.count_overlaps(taken) + box.padded(4).count_contains(points)

        _move(text, min(PLACES, key=covered))
        texts.append(text)
    return texts


def _move(text, place: tuple[int, int]) -> None:
    text.set_position(place)
    text.set_horizontalalignment("left" if place[0] > 0 else "right")
