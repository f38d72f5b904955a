"""Bets against the promise of a calibration, whose winnings are evidence that it is broken.

Whether rows lie beyond a threshold is all that is bet on. Axes of the arrays: rows, directions
(more, fewer), thresholds, rates.
"""

from dataclasses import dataclass

import numpy as np
from scipy.optimize import brentq
from scipy.special import betaln, logsumexp, xlog1py, xlogy
from scipy.stats import beta

from skmrr.calibration import least_rank

DIRECTIONS = ("more", "fewer")
N_RATES = 6
PATIENCE = 100  # rows until about half of the money is bet


@dataclass(frozen=True)
class Wealth:
    """What a sequence of rows has made of one unit of money for each bet, as logarithms.

    `running` is the money on a rate, `waiting` what is kept for bets that begin later. Both are
    likelihoods of the rows: divided by that of a rate they are money.
    """

    n_rows: int
    hits: np.ndarray  # thresholds
    waiting: np.ndarray  # thresholds
    running: np.ndarray  # directions thresholds rates

    def times(self, other: "Wealth") -> "Wealth":
        """Wealth on both of two sequences of rows."""
        # All money that is not still waiting in both is bet.
        both_ways = [
            self.running + other.running,
            self.running + other.waiting[:, None],
            self.waiting[:, None] + other.running,
        ]
        return Wealth(
            self.n_rows + other.n_rows,
            self.hits + other.hits,
            self.waiting + other.waiting,
            np.logaddexp.reduce(both_ways),
        )


class Bets:
    """Bets that rows beyond thresholds are more, or fewer, than a calibration explains.

    Parameters
    ----------
    thresholds : ndarray of shape (n_thresholds,)
        P-values; a row beyond one is a hit.
    n_calibration : ndarray of shape (n_groups,)
        Rows of each calibration that p-values are taken from.
    error : float
        Probability that luck of the calibration is taken for a broken promise, in each direction.
    conservative : bool
        Whether fewer hits than promised prove nothing.
    """

    def __init__(self, thresholds, n_calibration, error: float, conservative: bool):
        self.thresholds = thresholds
        ranks = np.floor(np.multiply.outer(n_calibration + 1, thresholds) + 1e-9)  # groups th.
        n = n_calibration[:, None]
        tail = error / ranks.size
        # The share of clean rows beyond the k-th oddest of n calibration rows is
        # Beta(k, n + 1 − k) (Vovk 2012); that of a mixture of classes lies between theirs.
        self.highest = beta.isf(tail, ranks, n + 1 - ranks).max(0)
        least = least_rank(ranks, n)
        lowest = np.where(least > 0, beta.ppf(tail, np.maximum(least, 1), n + 1 - least), 0.0)
        self.lowest = np.zeros_like(self.highest) if conservative else lowest.min(0)
        smallest = n_calibration.argmin()
        self.prior = np.array([ranks[smallest], n_calibration[smallest] + 1 - ranks[smallest]])
        caught = np.geomspace(thresholds / 2, 0.5, N_RATES, axis=-1)  # thresholds rates
        rate = thresholds[:, None]
        self.rates = np.array([rate + (1 - rate) * caught, rate / (1 + caught / rate)])

    def start(self) -> Wealth:
        """Wealth before the first row."""
        n_thresholds = len(self.thresholds)
        kept = _kept(np.zeros(1))
        return Wealth(
            0,
            np.zeros(n_thresholds, dtype=int),
            np.repeat(np.log(kept), n_thresholds),
            np.full(self.rates.shape, np.log1p(-kept[0])),
        )

    def follow(self, wealth: Wealth, p_values: np.ndarray) -> tuple[Wealth, np.ndarray, np.ndarray]:
        """Wealth after further rows; after each of them, the hits and the evidence."""
        is_hit = p_values[:, None] < self.thresholds
        new = np.vstack([np.zeros_like(wealth.hits), is_hit.cumsum(0)])  # rows+1 thresholds
        hits = wealth.hits + new
        n_new = np.arange(len(new))
        n_rows = wealth.n_rows + n_new

        # Waiting money predicts a row by the rows before it and the calibration: Pólya's urn.
        urn = self.prior[:, None] + np.stack([hits, n_rows[:, None] - hits])  # 2 rows+1 thresholds
        chosen = np.where(is_hit, urn[0, :-1], urn[1, :-1]) / urn[:, :-1].sum(0)
        kept = _kept(n_rows)
        waiting = np.vstack([np.zeros(urn.shape[2]), np.log(chosen).cumsum(0)])
        waiting += wealth.waiting + np.log(kept / kept[0])[:, None]

        # After each row some of it goes on every rate, and stays there.
        won = _log_likelihood(
            new[:, None, :, None], n_new[:, None, None, None], self.rates
        )  # rows+1 directions thresholds rates
        bet_now = waiting[1:] + np.log(kept[:-1] / kept[1:] - 1)[:, None]
        stakes = np.concatenate([wealth.running[None], bet_now[:, None, :, None] - won[1:]])
        running = won + np.logaddexp.accumulate(stakes)
        after = Wealth(int(n_rows[-1]), hits[-1], waiting[-1], running[-1])
        return after, hits[1:], self._evidence(n_rows, hits, waiting, running)[1:]

    def evidence(self, wealth: Wealth) -> np.ndarray:
        """Log e-value of each direction."""
        parts = wealth.hits, wealth.waiting, wealth.running
        return self._evidence(np.array([wealth.n_rows]), *(part[None] for part in parts))[0]

    def _evidence(self, n_rows, hits, waiting, running) -> np.ndarray:
        """Money of all bets against the rate that the promise allows and the rows fit best."""
        total = np.logaddexp(running, waiting[:, None, :, None])
        fitted = hits / np.maximum(n_rows, 1)[:, None]
        allowed = np.stack([fitted.clip(max=self.highest), fitted.clip(min=self.lowest)], 1)
        best = _log_likelihood(hits[:, None], n_rows[:, None, None], allowed)
        return logsumexp(total - best[..., None], axis=(2, 3)) - np.log(total[0, 0].size)


def share_interval(hits: int, n: int, guess: float, error: float) -> tuple[float, float]:
    """Interval that holds a constant rate after every row, except with probability `error`.

    It is the mixture method of Robbins (1970): rates under which the rows are `error` times less
    likely than under a mixture of rates, here Beta(1, 1 / guess − 1).
    """
    if n == 0:
        return 0.0, 1.0
    a, b = 1.0, 1 / guess - 1
    least = betaln(a + hits, b + n - hits) - betaln(a, b) + np.log(error)

    def excess(rate):
        return _log_likelihood(hits, n, rate) - least

    share = hits / n
    low = brentq(excess, 0.0, share, xtol=1e-12) if hits > 0 else 0.0
    high = brentq(excess, share, 1.0, xtol=1e-12) if hits < n else 1.0
    return low, high


def _kept(n_rows) -> np.ndarray:
    """Share of the money that is kept for campaigns after so many rows.

    It falls so slowly that money is left whenever a campaign begins.
    """
    return 1 / (1 + np.log1p((n_rows + 1) / PATIENCE))


def _log_likelihood(hits, n, rate):
    return xlogy(hits, rate) + xlog1py(n - hits, -rate)
