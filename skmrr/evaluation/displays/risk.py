"""How far apart the risks of clean and adversarial rows lie."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from skmrr._sklearn import check_matplotlib_support
from skmrr.evaluation.displays.display import ScoreDisplay, last_step, percent, scores_by_kind

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.lines import Line2D
    from matplotlib.patches import StepPatch

SCALES = ("risk", "p-value")


class RiskHistogramDisplay(ScoreDisplay):
    """Histograms of the risk of clean and of adversarial rows, with the thresholds.

    Of a calibrated detector the clean rows' risk is uniform, so their bars are level: a share SP
    of them lies beyond the threshold 1 − SP.

    Parameters
    ----------
    clean_scores : ndarray of shape (n_clean,)
        ``score_samples`` of the clean rows.
    adversarial_scores : ndarray of shape (n_adversarial,)
        ``score_samples`` of the adversarial rows.
    security_parameters : sequence of float, default=()
        Thresholds to show.
    name : str, optional
        Name of the detector.

    Attributes
    ----------
    bars_ : dict of str to matplotlib StepPatch
        The histograms, "clean" and "adversarial".
    lines_ : list of matplotlib Line2D
        The thresholds.
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
    >>> from skmrr.evaluation import RiskHistogramDisplay
    >>> X, y = load_digits(return_X_y=True)
    >>> detector = LatentDefender(max_epochs=3, random_state=0).fit(X[:1500], y[:1500])
    >>> y[1700:], X[1700:] = -1, 16 - X[1700:]
    >>> display = RiskHistogramDisplay.from_estimator(
    ...     detector, X[1500:], y[1500:], scale="p-value"
    ... )
    >>> display.security_parameters == (detector.security_parameter,)
    True
    >>> matplotlib.pyplot.close(display.figure_)
    """

    bars_: "dict[str, StepPatch]"
    lines_: "list[Line2D]"

    def __init__(
        self,
        *,
        clean_scores,
        adversarial_scores,
        security_parameters: Sequence[float] = (),
        name: str | None = None,
    ):
        self.clean_scores = clean_scores
        self.adversarial_scores = adversarial_scores
        self.security_parameters = security_parameters
        self.name = name

    @classmethod
    def from_estimator(cls, detector, X, y, *, labels=None, name=None, ax=None, **kwargs):
        """Score rows with a detector, and draw with its threshold.

        Parameters
        ----------
        detector : estimator
            Fitted detector, or a Pipeline that ends in one.
        X : array-like of shape (n_samples, …)
            Clean and adversarial rows.
        y : array-like of shape (n_samples,)
            Classes, −1 for adversarial rows.
        labels : array-like of shape (n_samples,), optional
            The classifier's decisions for X.
        name : str, optional
            Name to show; by default that of the detector's class.
        ax : matplotlib Axes, optional
            Where to draw; by default in a new figure.
        **kwargs : dict
            As `from_predictions` takes them; ``security_parameters`` is by default the detector's.

        Returns
        -------
        display : RiskHistogramDisplay
        """
        sp = getattr(last_step(detector), "security_parameter", None)
        kwargs.setdefault("security_parameters", () if sp is None else (sp,))
        return super().from_estimator(detector, X, y, labels=labels, name=name, ax=ax, **kwargs)

    @classmethod
    def from_predictions(cls, y, scores, *, security_parameters=(), name=None, ax=None, **kwargs):
        """Draw given scores.

        Parameters
        ----------
        y : array-like of shape (n_samples,)
            Classes, −1 for adversarial rows.
        scores : array-like of shape (n_samples,)
            ``score_samples``: logarithms of p-values.
        security_parameters : sequence of float, default=()
            Thresholds to show.
        name : str, optional
            Name to show.
        ax : matplotlib Axes, optional
            Where to draw; by default in a new figure.
        **kwargs : dict
            As `plot` takes them.

        Returns
        -------
        display : RiskHistogramDisplay
        """
        check_matplotlib_support(f"{cls.__name__}.from_predictions")
        clean, adversarial = scores_by_kind(y, scores)
        highest = max(clean.max(), adversarial.max())
        if highest > 0:
            raise ValueError(
                f"Scores must be log-survivals, at most 0, and one is {highest:g}; give the "
                "detector's score_samples, not its decision_function."
            )
        wrong = [sp for sp in security_parameters if not 0 < sp < 1]
        if wrong:
            raise ValueError(f"security_parameter={wrong[0]!r} is no rate; give some in (0, 1).")
        display = cls(
            clean_scores=clean,
            adversarial_scores=adversarial,
            security_parameters=tuple(security_parameters),
            name=name,
        )
        return display.plot(ax, **kwargs)

    def plot(
        self,
        ax: "Axes | None" = None,
        *,
        name: str | None = None,
        scale: str = "risk",
        bins: int = 20,
        **kwargs: Any,
    ):
        """Draw both histograms and the thresholds.

        Parameters
        ----------
        ax : matplotlib Axes, optional
            Where to draw; by default in a new figure.
        name : str, optional
            Name to show instead of the display's own.
        scale : {"risk", "p-value"}, default="risk"
            What is drawn: the risk, or −log₁₀ of the p-value, which shows the far tail.
        bins : int, default=20
            Number of bins.
        **kwargs : dict
            As matplotlib's ``stairs`` takes them.

        Returns
        -------
        self : object
        """
        if scale not in SCALES:
            raise ValueError(f"scale={scale!r} is none of {', '.join(map(repr, SCALES))}.")
        ax, name = self._begin(ax, name)
        kinds = {"clean": self.clean_scores, "adversarial": self.adversarial_scores}
        risky = {kind: _on_scale(scores, scale) for kind, scores in kinds.items()}
        end = 1.0 if scale == "risk" else max(1.0, *(part.max() for part in risky.values()))
        edges = np.linspace(0, end, bins + 1)
        self.bars_ = {}
        for (kind, part), color in zip(risky.items(), ("C0", "C3"), strict=True):
            share = np.histogram(part, edges)[0] / len(part)
            style = {"fill": True, "alpha": 0.5, "color": color, "label": kind}
            self.bars_[kind] = ax.stairs(share, edges, **{**style, **kwargs})
        self.lines_ = [
            ax.axvline(
                _on_scale(np.log(sp), scale), color="k", linestyle=style, label=f"SP {percent(sp)}"
            )
            for sp, style in zip(self.security_parameters, _LINESTYLES, strict=False)
        ]
        ax.set(ylabel="Share of rows", xlabel="Risk")
        if scale == "p-value":
            least = 1 / max(len(part) for part in risky.values())
            ax.set(xlabel="−log₁₀ of the p-value", yscale="log", ylim=(least / 2, 1))
        ax.yaxis.set_major_formatter(percent)
        ax.legend(title=name)
        return self


_LINESTYLES = ("--", ":", "-.", "-") * 4


def _on_scale(scores, scale: str):
    return -np.expm1(scores) if scale == "risk" else -np.asarray(scores) / np.log(10)
