"""Watching the promise of a detector in use: as many alarms as its calibration says, or not."""

import json
from collections.abc import Sequence
from dataclasses import astuple
from numbers import Integral, Real
from typing import Any

import numpy as np

from skmrr.base import BaseDetector
from skmrr.betting import DIRECTIONS, Bets, Wealth, share_interval
from skmrr.nn.fusion import CalibratedFusion

KEPT = "kept"
REPORTS = tuple(f"{direction} alarms" for direction in DIRECTIONS)
NEIGHBOURS = (0.2, 1.0, 5.0)  # thresholds that are watched, × SP
ROWS_AT_ONCE = 4096
MAX_POINTS = 256  # of the history
FORMAT, VERSION = "skmrr.RiskMonitor", 1


class RiskMonitor:
    """Watch over the risks of a stream of rows, and say when the promise is no longer kept.

    Rows that are exchangeable with the calibration rows lie beyond a threshold with a probability
    that is one and the same for all of them, and as near to the threshold as luck of so many
    calibration rows allows. The monitor bets against that, on the rows beyond SP / 5, SP and 5 SP,
    and reports when it has won too much. A false report in the *whole* run, however long, has a
    probability of at most `alpha`.

    Of that, half is for each direction, and of each half one half for luck of the calibration, the
    other for luck of the bets. **Why it holds**: the share q of clean rows beyond the k-th oddest
    of n calibration rows is Beta(k, n + 1 − k) (Vovk 2012), so q lies in the range that the
    monitor tolerates. Given q, a bet's likelihood of the rows divided by theirs under q is a test
    martingale (Shafer et al. 2011), and divided by the largest under any tolerated rate it is
    smaller still, an e-process (Ramdas et al. 2023); so is a mean of such. By Ville's inequality
    it ever exceeds 1 / ε with probability at most ε.

    **What it notices**: a rate outside of the tolerated range from the first row on, and a rate
    that changes, which calibration rows need not explain. Money for bets that begin later is kept
    (Shin, Ramdas and Rinaldo 2022), so a long clean time hides nothing. A row of risk 1 counts no
    more than one of 1 − SP / 5, so that no single row makes a report.

    Parameters
    ----------
    n_calibration : int or sequence of int
        Number of calibration rows; of each calibration, where large classes have their own.
    security_parameter : float, default=0.01
        Share SP of clean rows that may be flagged.
    alpha : float, default=0.01
        Probability of a false report in the whole run.
    conservative : bool, default=False
        Whether fewer alarms than SP are meant, as after a calibration with ``harmless``. Then
        "fewer alarms" says that they have become fewer in the course of the run.

    Attributes
    ----------
    n_rows_ : int
        Rows seen.
    evidence_ : dict of str to float
        Logarithm of the e-values for "more" and "fewer" alarms. They start at 0.
    limit_ : float
        Evidence from which on there is a report, log(4 / `alpha`).
    verdict : {"kept", "more alarms", "fewer alarms"}
        The first report, which stays.
    alarm_row_ : int or None
        Rows seen when it came.
    flagged_share_, flagged_interval_ : float, (float, float)
        Share of the rows that are flagged, and an interval for its expectation, if that is
        constant. The interval holds after every row, except with probability `alpha`.
    tolerated_ : (float, float)
        Expected shares that luck of the calibration explains.
    history_ : ndarray of shape (n_points, 4)
        Rows seen, rows flagged, evidence for more and for fewer alarms, at 257 times at most.
    state : dict
        All there is to the monitor, as `to_json` writes it. Its size does not grow.

    Notes
    -----
    Frames of one film are not exchangeable: an odd scene is odd in each of its frames. Show the
    monitor one frame of each scene. After a report, find the cause and begin a new monitor; each
    has a probability `alpha` of its own.

    References
    ----------
    V. Vovk, I. Nouretdinov, A. Gammerman, "Testing exchangeability on-line", ICML 2003; V. Vovk,
    A. Gammerman, G. Shafer, "Algorithmic learning in a random world", 2nd edition 2022, ch. 8.

    V. Vovk, "Conditional validity of inductive conformal predictors", ACML 2012.

    G. Shafer, A. Shen, N. Vereshchagin, V. Vovk, "Test martingales, Bayes factors and p-values",
    Statistical Science 2011.

    A. Ramdas, P. Grünwald, V. Vovk, G. Shafer, "Game-theoretic statistics and safe anytime-valid
    inference", Statistical Science 2023.

    J. Shin, A. Ramdas, A. Rinaldo, "E-detectors: a nonparametric framework for sequential change
    detection", 2022.

    Examples
    --------
    >>> import numpy as np
    >>> from skmrr import RiskMonitor
    >>> rng = np.random.default_rng(0)
    >>> monitor = RiskMonitor(n_calibration=2000)
    >>> monitor.update(rng.uniform(size=10_000)).verdict
    'kept'
    >>> attacked = np.where(rng.uniform(size=500) < 0.1, 0.999, rng.uniform(size=500))
    >>> monitor.update(attacked).verdict
    'more alarms'
    >>> RiskMonitor.from_json(monitor.to_json()).alarm_row_ == monitor.alarm_row_
    True
    """

    def __init__(
        self,
        n_calibration: int | Sequence[int],
        *,
        security_parameter: float = 0.01,
        alpha: float = 0.01,
        conservative: bool = False,
    ):
        self.n_calibration = _as_counts(n_calibration)
        self.security_parameter = _as_rate(security_parameter, "security_parameter")
        self.alpha = _as_rate(alpha, "alpha")
        self.conservative = bool(conservative)
        smallest = 1 / (min(self.n_calibration) + 1)
        if self.security_parameter < smallest * (1 - 1e-9):
            raise ValueError(
                f"{min(self.n_calibration)} calibration rows promise no security_parameter="
                f"{self.security_parameter:g}; the least they promise is {smallest:.3g}."
            )
        watched = [self.security_parameter * ratio for ratio in NEIGHBOURS]
        thresholds = [t for t in watched if smallest * (1 - 1e-9) <= t <= 0.5]
        if self.security_parameter > 0.5:
            thresholds.append(self.security_parameter)
        self._flagging = thresholds.index(self.security_parameter)
        counts = np.array(self.n_calibration)
        self._bets = Bets(np.array(thresholds), counts, self.alpha / 4, self.conservative)
        self._wealth = self._bets.start()
        self._alarm: tuple[str, int] | None = None
        self._stride = 1
        self._history = np.empty((0, 4))

    @classmethod
    def of(cls, detector: BaseDetector, *, alpha: float = 0.01) -> "RiskMonitor":
        """Monitor for a detector: its threshold, and the number of its calibration rows.

        Parameters
        ----------
        detector : BaseDetector
            Fitted and calibrated detector.
        alpha : float, default=0.01
            Probability of a false report in the whole run.

        Returns
        -------
        RiskMonitor

        Raises
        ------
        TypeError
            If it is no detector of this package.
        """
        if not isinstance(detector, BaseDetector):
            raise TypeError(
                f"RiskMonitor.of takes a detector of skmrr, not {type(detector).__name__}; of a "
                "Pipeline give the last step, and else the number of calibration rows: "
                "RiskMonitor(n_calibration, security_parameter=…)."
            )
        detector._check_calibrated()
        module: Any = detector.module_
        fused = isinstance(module.fusion, CalibratedFusion)
        survival = module.fusion.survival if fused else module.survival
        return cls(
            survival.n_rows.tolist(),
            security_parameter=detector.security_parameter,
            alpha=alpha,
            conservative=detector.harmless is not None,
        )

    def update(self, risks) -> "RiskMonitor":
        """Take the risks of further rows, in the order in which these came.

        Parameters
        ----------
        risks : array-like of shape (n_rows,)
            ``detector.risk(X)``.

        Returns
        -------
        self : object

        Raises
        ------
        ValueError
            If a risk is no number in [0, 1]; the monitor is then left as it was.
        """
        risks = np.asarray(risks, dtype=float)
        if risks.ndim != 1:
            raise ValueError(f"risks have shape {risks.shape}; give detector.risk(X), one per row.")
        wrong = np.flatnonzero(~((risks >= 0) & (risks <= 1)))
        if len(wrong):
            raise ValueError(
                f"{len(wrong)} risks are no numbers in [0, 1], the first is {risks[wrong[0]]} at "
                f"{wrong[0]}; give detector.risk(X), not its score_samples, and leave out rows "
                "that have no risk. Nothing was updated."
            )
        for start in range(0, len(risks), ROWS_AT_ONCE):
            self._follow(1 - risks[start : start + ROWS_AT_ONCE])
        return self

    def _follow(self, p_values: np.ndarray) -> None:
        before = self.n_rows_
        self._wealth, hits, evidence = self._bets.follow(self._wealth, p_values)
        n_rows = before + 1 + np.arange(len(p_values))
        self._note(n_rows, evidence)
        flagged = hits[:, self._flagging]
        points = np.column_stack([n_rows, flagged, evidence])
        self._history = np.concatenate([self._history, points[n_rows % self._stride == 0]])
        while len(self._history) > MAX_POINTS:
            self._stride *= 2
            self._history = self._history[self._history[:, 0] % self._stride == 0]

    def _note(self, n_rows: np.ndarray, evidence: np.ndarray) -> None:
        """Remember the first report."""
        above = np.flatnonzero((evidence >= self.limit_).any(1))
        if self._alarm is None and len(above):
            self._alarm = REPORTS[evidence[above[0]].argmax()], int(n_rows[above[0]])

    def merge(self, *others: "RiskMonitor") -> "RiskMonitor":
        """Monitor of all the rows that several workers, or several days, have seen.

        Each bet is made on each worker's rows, and its winnings are multiplied: given the rate of
        clean rows those of different workers are independent, so the product keeps the promise
        at any time, like the factors; a campaign that all see is noticed sooner than by any one
        of them. A worker that sees a campaign alone notices it sooner by itself. The result is
        the same in whatever order they are merged, and may go on with `update`. It says what all
        rows together say: a report of one worker is not taken over, as each has a probability
        `alpha` of being false. Merge rows once, not a monitor and its own later self.

        Parameters
        ----------
        *others : RiskMonitor
            Monitors of the same parameters. They are left as they are.

        Returns
        -------
        RiskMonitor
            A new one, with a history that begins here.

        Raises
        ------
        ValueError
            If their parameters differ.
        """
        merged = RiskMonitor(**self._parameters)
        merged._wealth = self._wealth
        for other in others:
            if other._parameters != self._parameters:
                raise ValueError(
                    f"Monitors of {self._parameters} and of {other._parameters} watch different "
                    "promises; merge those of one and the same detector and alpha."
                )
            merged._wealth = merged._wealth.times(other._wealth)
        merged._note(np.array([merged.n_rows_]), merged._bets.evidence(merged._wealth)[None])
        return merged

    @property
    def n_rows_(self) -> int:
        """Rows seen."""
        return self._wealth.n_rows

    @property
    def evidence_(self) -> dict[str, float]:
        """Log e-values of both directions."""
        return dict(zip(DIRECTIONS, self._bets.evidence(self._wealth).tolist(), strict=True))

    @property
    def limit_(self) -> float:
        """Evidence from which on there is a report."""
        return float(np.log(4 / self.alpha))

    @property
    def verdict(self) -> str:
        """The first report, or "kept"."""
        return KEPT if self._alarm is None else self._alarm[0]

    @property
    def alarm_row_(self) -> int | None:
        """Rows seen when the report came."""
        return None if self._alarm is None else self._alarm[1]

    @property
    def flagged_share_(self) -> float:
        """Share of the rows that are flagged, NaN before the first."""
        n_flagged = int(self._wealth.hits[self._flagging])
        return n_flagged / self.n_rows_ if self.n_rows_ else float("nan")

    @property
    def flagged_interval_(self) -> tuple[float, float]:
        """Interval of the expected share."""
        n_flagged = int(self._wealth.hits[self._flagging])
        return share_interval(n_flagged, self.n_rows_, self.security_parameter, self.alpha)

    @property
    def tolerated_(self) -> tuple[float, float]:
        """Lowest and highest expected share."""
        return float(self._bets.lowest[self._flagging]), float(self._bets.highest[self._flagging])

    @property
    def history_(self) -> np.ndarray:
        """Rows seen, rows flagged and evidence, thinned, up to the last row."""
        now = [self.n_rows_, self._wealth.hits[self._flagging], *self.evidence_.values()]
        last = self._history[-1:, 0]
        return self._history if last == self.n_rows_ else np.vstack([self._history, now])

    @property
    def _parameters(self) -> dict[str, Any]:
        names = ("n_calibration", "security_parameter", "alpha", "conservative")
        return {name: getattr(self, name) for name in names}

    @property
    def state(self) -> dict[str, Any]:
        """All there is to the monitor, in numbers, strings and lists."""
        wealth = [np.asarray(part).tolist() for part in astuple(self._wealth)]
        return {
            "format": FORMAT,
            "version": VERSION,
            "parameters": {**self._parameters, "n_calibration": list(self.n_calibration)},
            "wealth": wealth,
            "alarm": None if self._alarm is None else list(self._alarm),
            "stride": self._stride,
            "history": self._history.tolist(),
        }

    def to_json(self) -> str:
        """Write the state as JSON, exactly.

        Returns
        -------
        str
        """
        return json.dumps(self.state, allow_nan=False)

    @classmethod
    def from_json(cls, text: str) -> "RiskMonitor":
        """Read what `to_json` has written, and go on from there.

        Parameters
        ----------
        text : str
            JSON.

        Returns
        -------
        RiskMonitor

        Raises
        ------
        ValueError
            If it is something else, of another version or incomplete.
        """
        state = json.loads(text)
        if not isinstance(state, dict) or state.get("format") != FORMAT:
            raise ValueError("This JSON is no RiskMonitor; give what to_json has written.")
        if state.get("version") != VERSION:
            raise ValueError(
                f"This monitor is of version {state.get('version')!r} and skmrr here reads version "
                f"{VERSION}; begin a new monitor, or use the skmrr that wrote it."
            )
        try:
            monitor = cls(**state["parameters"])
            n_rows, *parts = state["wealth"]
            started = monitor._wealth
            hits = np.array(parts[0], dtype=int)
            waiting, running = (np.array(part, dtype=float) for part in parts[1:])
            shapes = [part.shape for part in (hits, waiting, running)]
            if shapes != [s.shape for s in (started.hits, started.waiting, started.running)]:
                raise ValueError(f"its arrays have shapes {shapes}")
            monitor._wealth = Wealth(int(n_rows), hits, waiting, running)
            if state["alarm"] is not None:
                verdict, row = state["alarm"]
                if verdict not in REPORTS:
                    raise ValueError(f"{verdict!r} is no report")
                monitor._alarm = verdict, int(row)
            monitor._stride = int(state["stride"])
            monitor._history = np.array(state["history"], dtype=float).reshape(-1, 4)
        except (LookupError, TypeError, ValueError) as error:
            raise ValueError(
                f"This state of a RiskMonitor is damaged ({error!r}); take a whole one, or begin a "
                "new monitor."
            ) from error
        return monitor

    def __repr__(self):
        parameters = ", ".join(f"{name}={value!r}" for name, value in self._parameters.items())
        return f"<RiskMonitor({parameters}): {self.verdict!r} after {self.n_rows_} rows>"


def _as_counts(n_calibration) -> tuple[int, ...]:
    counts: list[Any] = list(np.atleast_1d(np.asarray(n_calibration, dtype=object)))
    if not counts or not all(isinstance(n, Integral) and int(n) > 0 for n in counts):
        raise ValueError(
            f"n_calibration={n_calibration!r} must be a number of rows, or one for each "
            "calibration; RiskMonitor.of(detector) knows it."
        )
    return tuple(int(n) for n in counts)


def _as_rate(value, name: str) -> float:
    if not isinstance(value, Real) or not 0 < float(value) < 1:
        raise ValueError(f"{name}={value!r} is no rate; give one between 0 and 1.")
    return float(value)
