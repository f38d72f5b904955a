"""
My own network, my own arrays
=============================

The network is a class of yours, and its images are bytes from 0 to 255 in arrays of yours. Guard
it, show it images of another kind than those it knows, and read the alarms.
"""

import argparse
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import nn

from skmrr import MRREnsemble

parser = argparse.ArgumentParser()
parser.add_argument("--epochs", type=int, default=60, help="of the network")
parser.add_argument("--output", type=Path, default=Path(__file__).parent / "output")
args, _ = parser.parse_known_args()
torch.manual_seed(0)
torch.set_num_threads(1)  # images of 8×8 are too small to share among threads

# %%
# What you have
# -------------
# The network takes pixels as they come and scales them itself. So everything that is said of pixels
# below is said on one scale, that of the arrays.


class Reader(nn.Module):
    """Logits of ten digits."""

    def __init__(self):
        super().__init__()
        self.look = nn.Sequential(nn.Conv2d(1, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2))
        self.decide = nn.Sequential(nn.Linear(512, 64), nn.ReLU(), nn.Linear(64, 10))

    def forward(self, x):
        return self.decide(self.look((x - 78.0) / 96.0).flatten(1))


X, y = load_digits(return_X_y=True)
X = np.round(X * 255 / 16).astype(np.float32).reshape(-1, 1, 8, 8)
order = np.random.default_rng(0).permutation(len(X))  # the digits come sorted by writer
train, new, test = np.split(order, [800, 1400])

network = Reader()
optimizer = torch.optim.Adam(network.parameters(), 2e-3)
for _ in range(args.epochs):
    for batch in torch.randperm(len(train)).split(64):
        rows = train[batch.numpy()]
        optimizer.zero_grad()
        logits = network(torch.as_tensor(X[rows]))
        nn.functional.cross_entropy(logits, torch.as_tensor(y[rows])).backward()
        optimizer.step()
network.eval()

# %%
# Guard it
# --------
# ``clip_values`` declares the scale: a pixel outside is an error. Fit on the rows that trained the
# network, then calibrate on rows that are new to it. Without those, its confidence in what it knows
# by heart would be taken for normal, and too many honest rows would be odd.

ensemble = MRREnsemble(
    network,
    clip_values=(0, 255),
    security_parameter=0.05,
    calibration_fraction=0,
    random_state=0,
)
ensemble.fit(X[train], y[train]).calibrate(X[new])

# %%
# Read an alarm
# -------------
# In what comes in, every tenth image has been touched: a square of ink lies over a part of it.
# ``member_risks`` says which member would raise the alarm by itself. The margin sees a network that
# hesitates; the latent defender, a robust copy, sees one that is sure of something else.

incoming = X[test].copy()
touched = np.arange(len(incoming)) % 10 == 0
incoming[touched, :, 2:5, 2:5] = 255

risk, answers = ensemble.risk(incoming), ensemble.classify(incoming)
flagged = answers == -1  # "don't know"
members = ensemble.member_risks(incoming)
with torch.no_grad():
    named = network(torch.as_tensor(incoming)).argmax(1).numpy()
is_right = named == y[test]
print(f"flagged: {flagged[~touched].mean():.1%} of {np.sum(~touched)} clean images,", end=" ")
print(f"{flagged[touched].mean():.1%} of {touched.sum()} touched ones")
print(f"right: {is_right.mean():.1%} of all, {is_right[~flagged].mean():.1%} where not flagged")

# %%
# The most alarming rows, those that were touched in red.

worst = np.argsort(-risk)[:12]
fig, axes = plt.subplots(2, 6, figsize=(11, 5.8), layout="constrained")
for axis, row in zip(axes.flat, worst, strict=True):
    axis.imshow(incoming[row, 0], cmap="gray_r", vmin=0, vmax=255)
    axis.set(xticks=[], yticks=[])
    axis.set_title(f"a {y[test][row]}, network says {named[row]}", fontsize=10)
    who = "\n".join(f"{name} {members.loc[row, name]:.3f}" for name in members)
    axis.set_xlabel(f"risk {risk[row]:.4f}\n{who}", fontsize=9)
    axis.spines[:].set(color="C3" if touched[row] else "black", linewidth=3 if touched[row] else 1)
fig.suptitle(f"The 12 most alarming of {len(incoming)} images")
args.output.mkdir(parents=True, exist_ok=True)
fig.savefig(args.output / "plot_own_model.png", dpi=120)
# sphinx_gallery_thumbnail_path = "images/thumbnails/plot_own_model.png"
