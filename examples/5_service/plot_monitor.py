"""
Is the promise still kept?
==========================

A detector promises a rate of false alarms. `RiskMonitor` watches the risks of all rows in use, and
says when there are more alarms than promised, or fewer. How many rows does it take until a campaign
of attacks is noticed, and how often is it wrong?
"""

import argparse
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch
from scipy.stats import norm

from skmrr import ConformalSurvival, RiskMonitor
from skmrr.evaluation import RiskMonitorDisplay

parser = argparse.ArgumentParser()
parser.add_argument("--runs", type=int, default=20, help="for each share of attacked rows")
parser.add_argument("--rows", type=int, default=50_000, help="of a run at most")
parser.add_argument("--output", type=Path, default=Path(__file__).parent / "output")
args, _ = parser.parse_known_args()
rng = np.random.default_rng(0)
N_CALIBRATION, SP = 2000, 0.01

# %%
# A detector's risks
# ------------------
# Statistics of clean rows are standard normal here. Those of attacked rows are shifted, so that the
# detector flags half of them. Calibration rows are drawn anew for each detector, as their luck
# decides what its true rate of false alarms is.


def calibrate():
    """Calibrate a detector on clean rows; return the function from statistics to risks."""
    clean = rng.standard_normal((N_CALIBRATION, 1))
    survival = ConformalSurvival.fit(clean, np.zeros(N_CALIBRATION, dtype=int), 1)

    def risk(statistics):
        one_class = torch.zeros(len(statistics), dtype=torch.long)
        return -torch.expm1(survival(torch.as_tensor(statistics)[:, None], one_class))[:, 0].numpy()

    return risk


def statistics(n_rows, attacked=0.0):
    """Draw rows, of which a share is attacked."""
    return rng.standard_normal(n_rows) + norm.isf(SP) * (rng.uniform(size=n_rows) < attacked)


# %%
# One campaign
# ------------
# After 10,000 clean rows, every twentieth row is attacked. A verdict stays, and `alpha` bounds the
# probability that it is wrong in the whole run, however long.

risk = calibrate()
monitor = RiskMonitor(N_CALIBRATION, security_parameter=SP, alpha=0.01)
monitor.update(risk(statistics(10_000)))
print(f"after 10,000 clean rows: {monitor.verdict}")
monitor.update(risk(statistics(3000, attacked=0.05)))
print(f"after 3,000 rows of a campaign: {monitor.verdict}, noticed in row {monitor.alarm_row_}")

# %%
# Many campaigns
# --------------
# From the first row on, as a campaign is noticed latest if the monitor has never seen better days.
# The runs without an attack say how often the monitor is wrong.


def noticed_after(attacked):
    """Rows until the alarm, infinite if there was none."""
    risk, monitor = calibrate(), RiskMonitor(N_CALIBRATION, security_parameter=SP, alpha=0.01)
    for _ in range(0, args.rows, 5000):
        if monitor.update(risk(statistics(5000, attacked))).alarm_row_ is not None:
            return monitor.alarm_row_
    return np.inf


shares = (0.02, 0.05, 0.1, 0.2, 0.5)
delays = {share: [noticed_after(share) for _ in range(args.runs)] for share in shares}
false_alarms = np.mean(np.isfinite([noticed_after(0.0) for _ in range(args.runs)]))
print(f"\nfalse alarms in {args.runs} clean runs of {args.rows} rows: {false_alarms:.0%}")
print("attacked   noticed   rows until then, median of all runs")
for share, rows in delays.items():
    print(f"{share:8.0%}   {np.mean(np.isfinite(rows)):7.0%}   {np.median(rows):.0f}")

# %%

fig, (left, right) = plt.subplots(1, 2, figsize=(11, 4.2), layout="constrained")
RiskMonitorDisplay.from_monitor(monitor, ax=left)
left.set_title("Every twentieth row attacked, from row 10,000 on")
for share, rows in delays.items():
    found = np.array(rows)[np.isfinite(rows)]
    right.plot(np.full(len(found), share), found, "o", color="C0", alpha=0.3)
right.plot(shares, [np.median(rows) for rows in delays.values()], "C3_", ms=24, label="median")
right.set(xscale="log", yscale="log", xlabel="share of rows attacked", ylabel="rows until noticed")
right.set_xticks(shares, [f"{share:.0%}" for share in shares])
right.set_xticks([], minor=True)
right.set_title(f"{args.runs} campaigns for each share")
right.legend()
args.output.mkdir(parents=True, exist_ok=True)
fig.savefig(args.output / "plot_monitor.png", dpi=120)
# sphinx_gallery_thumbnail_path = "images/thumbnails/plot_monitor.png"
