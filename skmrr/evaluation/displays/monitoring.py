"""How the evidence that a promise is broken has grown in use."""

from typing import TYPE_CHECKING, Any

import numpy as np

from skmrr._sklearn import check_matplotlib_support
from skmrr.betting import DIRECTIONS
from skmrr.evaluation.displays.display import Display
from skmrr.monitor import RiskMonitor

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.lines import Line2D

COLORS = ("C3", "C0")


class RiskMonitorDisplay(Display):
    """Evidence for more and for fewer alarms than promised, over the rows seen.

    Parameters
    ----------
    n_rows : ndarray of shape (n_points,)
        Rows seen.
    evidence : dict of str to ndarray of shape (n_points,)
        Log e-values, "more" and "fewer".
    limit : float
        Log e-value from which on there is a report.
    alarm_row : int, optional
        Rows seen when a report came.
    name : str, optional
        Title.

    Attributes
    ----------
    lines_ : list of matplotlib Line2D
        Evidence, for more and for fewer alarms.
    limit_line_ : matplotlib Line2D
        Where a report is due.
    alarm_line_ : matplotlib Line2D or None
        When it came.
    ax_ : matplotlib Axes
        Where they are drawn.
    figure_ : matplotlib Figure
        Figure of ``ax_``.

    Examples
    --------
    >>> import matplotlib
    >>> matplotlib.use("Agg")
    >>> import numpy as np
    >>> from skmrr import RiskMonitor
    >>> from skmrr.evaluation import RiskMonitorDisplay
    >>> monitor = RiskMonitor(2000).update(np.random.default_rng(0).uniform(size=1000))
    >>> display = RiskMonitorDisplay.from_monitor(monitor)
    >>> [line.get_label() for line in display.lines_]
    ['more alarms', 'fewer alarms']
    >>> matplotlib.pyplot.close(display.figure_)
    """

    lines_: "list[Line2D]"
    limit_line_: "Line2D"
    alarm_line_: "Line2D | None"

    def __init__(
        self,
        *,
        n_rows: np.ndarray,
        evidence: dict[str, np.ndarray],
        limit: float,
        alarm_row: int | None = None,
        name: str | None = None,
    ):
        self.n_rows = n_rows
        self.evidence = evidence
        self.limit = limit
        self.alarm_row = alarm_row
        self.name = name

    @classmethod
    def from_monitor(
        cls,
        monitor: RiskMonitor,
        *,
        name: str | None = None,
        ax: "Axes | None" = None,
        **kwargs: Any,
    ):
        """Draw what a monitor has seen.

        Parameters
        ----------
        monitor : RiskMonitor
            It may have seen any number of rows but none.
        name : str, optional
            Title; by default the verdict.
        ax : matplotlib Axes, optional
            Where to draw; by default in a new figure.
        **kwargs : dict
            As `plot` takes them.

        Returns
        -------
        display : RiskMonitorDisplay
        """
        check_matplotlib_support(f"{cls.__name__}.from_monitor")
        if monitor.n_rows_ == 0:
            raise ValueError("The monitor has seen no rows; call update before it is drawn.")
        n_rows, _, *evidence = monitor.history_.T
        display = cls(
            n_rows=n_rows,
            evidence=dict(zip(DIRECTIONS, evidence, strict=True)),
            limit=monitor.limit_,
            alarm_row=monitor.alarm_row_,
            name=monitor.verdict if name is None else name,
        )
        return display.plot(ax, **kwargs)

    def plot(self, ax: "Axes | None" = None, *, name: str | None = None, **kwargs: Any):
        """Draw the evidence and its limit.

        Parameters
        ----------
        ax : matplotlib Axes, optional
            Where to draw; by default in a new figure.
        name : str, optional
            Title instead of the display's own.
        **kwargs : dict
            Properties of the lines of evidence.

        Returns
        -------
        self : object
        """
        ax, name = self._begin(ax, name)
        self.lines_ = []
        for (direction, values), color in zip(self.evidence.items(), COLORS, strict=True):
            (line,) = ax.plot(self.n_rows, values / np.log(10), color=color)
            line.set(**{"label": f"{direction} alarms", **kwargs})
            self.lines_.append(line)
        limit = self.limit / np.log(10)
        self.limit_line_ = ax.axhline(limit, color="k", linestyle="--", label="report")
        self.alarm_line_ = None
        if self.alarm_row is not None:
            self.alarm_line_ = ax.axvline(self.alarm_row, color="0.4", linestyle=":")
        ax.set(xlabel="Rows seen", ylabel="Evidence, log₁₀ of the e-value")
        ax.grid(alpha=0.3)
        ax.legend(title=name)
        return self
