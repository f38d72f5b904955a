"""
Is the promise still kept?
==========================

A detector promises a rate of false alarms. `RiskMonitor` watches the risks of all rows in use, and
says when there are more alarms than promised, or fewer. How often is it wrong, in runs of 100,000
clean rows? And how many rows does it take until a campaign of attacks is noticed?

Statistics of clean rows are standard normal here, those of attacked rows are shifted, so that a
given share of them is flagged at SP. `ConformalSurvival` turns both into risks, by calibration rows
that are drawn anew in each run.
"""

import argparse
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from scipy.special import gammainc, gammaln
from scipy.stats import binom, norm

from skmrr import ConformalSurvival, RiskMonitor
from skmrr.evaluation import RiskMonitorDisplay

parser = argparse.ArgumentParser()
parser.add_argument("--runs", type=int, default=200, help="of clean rows, for each setting")
parser.add_argument("--campaigns", type=int, default=20, help="for each setting")
parser.add_argument("--rows", type=int, default=100_000, help="of a run")
parser.add_argument("--alpha", type=float, default=0.01)
parser.add_argument("--output", type=Path, default=Path("out/monitor"))
args, _ = parser.parse_known_args()
args.output.mkdir(parents=True, exist_ok=True)
rng = np.random.default_rng(0)

# %%
# A calibration, and rows that come after it.


def calibrate(n):
    """Fit a calibration on n clean rows; without rows it is perfect, its p-values uniform."""
    clean = rng.standard_normal((n or 2, 1))
    survival = ConformalSurvival.fit(clean, np.zeros(len(clean), dtype=int), 1)

    def p_values(statistics):
        if n is None:
            return norm.sf(statistics)
        rows = torch.as_tensor(statistics)[:, None]
        return survival(rows, torch.zeros(len(rows), dtype=torch.long))[:, 0].exp().numpy()

    return p_values


def statistics(n_rows, shift=0.0, share=0.0):
    """Draw clean rows, and a share of attacked ones."""
    return rng.standard_normal(n_rows) + shift * (rng.uniform(size=n_rows) < share)


# %%
# Three ways to do without the monitor. Each takes the p-values for exactly uniform, and says after
# how many rows it raised an alarm, if it did. The last two need to know how long the run will be.


def first(exceeds):
    """Position of the first True, counted from 1; infinite if there is none."""
    return exceeds.argmax() + 1 if exceeds.any() else np.inf


def vovk_mixture(p, sp):
    """Vovk's mixture of the power martingales, ∫ Π ε pᵢ^(ε − 1) dε."""
    n, s = np.arange(1, len(p) + 1), -np.log(p).cumsum()
    inside = gammainc(n + 1, s)
    with np.errstate(divide="ignore"):
        log_wealth = s - (n + 1) * np.log(s) + gammaln(n + 1) + np.log(inside)
    return first(log_wealth >= -np.log(args.alpha))


def binomial_windows(p, sp, size=1000):
    """Binomial tests of windows of 1000 rows, with Bonferroni's correction."""
    size = min(size, len(p))
    counts = (p[: len(p) // size * size] < sp).reshape(-1, size).sum(1)
    low, high = binom.cdf(counts, size, sp), binom.sf(counts - 1, size, sp)
    return size * first(2 * np.minimum(low, high) * len(counts) <= args.alpha)


def cusum(p, sp):
    """CUSUM of alarms at twice the rate, as an e-detector for this number of rows."""
    steps = np.where(p < sp, np.log(2), np.log1p(-2 * sp) - np.log1p(-sp)).cumsum()
    lowest = np.minimum.accumulate(np.concatenate([[0.0], steps]))[:-1]
    return first(steps - lowest >= np.log(len(p) / args.alpha))


PEERS = {"Vovk's mixture": vovk_mixture, "binomial windows": binomial_windows, "CUSUM": cusum}

# %%
# Runs of clean rows: how many of them raise an alarm? Whoever takes p-values for exactly uniform
# mistakes the luck of a small calibration for a change.

false_alarms = []
for sp in (0.01, 0.05):
    for n in (500, 2000, 10_000, None):
        rows = []
        for _ in range(args.runs):
            p = calibrate(n)(statistics(args.rows))
            monitor = RiskMonitor(n or 10_000, security_parameter=sp, alpha=args.alpha)
            alarms = {"RiskMonitor": monitor.update(1 - p).alarm_row_ is not None}
            alarms |= {name: np.isfinite(peer(p, sp)) for name, peer in PEERS.items()}
            rows.append(alarms)
        share = pd.DataFrame(rows).mean()
        false_alarms.append({"SP": sp, "calibration rows": n or "uniform p", **share})
        print(false_alarms[-1], flush=True)
false_alarms = pd.DataFrame(false_alarms)
false_alarms.to_csv(args.output / "false_alarms.csv", index=False)
print(f"Share of {args.runs} runs of {args.rows} clean rows with an alarm, promised {args.alpha}:")
print(false_alarms.round(3).to_string(index=False))

# %%
# Campaigns: rows from their beginning to the alarm. A run with an alarm before that, the share
# "false" of them, has noticed nothing.


def delays(n, sp, power, share, n_clean):
    """Rows of a campaign until each way notices it."""
    shift = norm.isf(sp) - norm.isf(power)
    p_values = calibrate(n)
    clean, attacked = statistics(n_clean), statistics(args.rows, shift, share)
    p = p_values(np.concatenate([clean, attacked]))
    monitor = RiskMonitor(n, security_parameter=sp, alpha=args.alpha)
    for batch in np.array_split(1 - p, max(1, len(p) // 5000)):
        if monitor.update(batch).alarm_row_ is not None:
            break
    found = {"RiskMonitor": monitor.alarm_row_ or np.inf}
    found |= {name: peer(p, sp) for name, peer in PEERS.items()}
    return {name: row - n_clean if row > n_clean else np.nan for name, row in found.items()}


noticed = []
for n in (2000, 10_000):
    for sp in (0.01, 0.05):
        for power in (0.5, 0.9):
            for share in (0.01, 0.05, 0.2):
                for n_clean in (0, args.rows // 2):
                    setting = {"n": n, "SP": sp, "caught": power, "share": share, "clean": n_clean}
                    runs = [delays(n, sp, power, share, n_clean) for _ in range(args.campaigns)]
                    frame = pd.DataFrame(runs)
                    for name in frame:
                        quantiles = (
                            frame[name].fillna(np.inf).quantile([0.5, 0.9], interpolation="higher")
                        )
                        noticed.append(
                            {
                                **setting,
                                "by": name,
                                "median": quantiles[0.5],
                                "90 %": quantiles[0.9],
                                "false": frame[name].isna().mean(),
                            }
                        )
                    print(*noticed[-4:], sep="\n", flush=True)
noticed = pd.DataFrame(noticed)
noticed.to_csv(args.output / "delays.csv", index=False)
print(noticed.to_string(index=False))

# %%
# One run: 20,000 clean rows, then 2 % attacked ones.

p_values = calibrate(2000)
n_clean = args.rows // 5
monitor = RiskMonitor(2000)
monitor.update(1 - p_values(statistics(n_clean)))
monitor.update(1 - p_values(statistics(n_clean // 2, norm.isf(0.01), 0.02)))
RiskMonitorDisplay.from_monitor(monitor)
plt.savefig(args.output / "monitor.png", dpi=120)
print(monitor)
