"""
What does evasion cost?
=======================

The attacker knows everything: the network, the defender, the threshold. How many images can be
changed by at most ε so that the network is wrong *and* nothing is flagged?
"""

import argparse
from pathlib import Path

import pandas as pd
import torch
from sklearn.model_selection import train_test_split
from torch import nn

from skmrr import CertifiedDefender, LatentDefender, replicate
from skmrr.attacks import LagrangianPGD, SelectivePGD
from skmrr.datasets import load_digits_images
from skmrr.evaluation import SuccessCurveDisplay, certified_success_rate, evaluate_adaptive

parser = argparse.ArgumentParser()
parser.add_argument("--epochs", type=int, default=40, help="of the network and of the defenders")
parser.add_argument("--attacked", type=int, default=50, help="images to attack")
parser.add_argument("--output", type=Path, default=Path(__file__).parent / "output")
args, _ = parser.parse_known_args()
torch.manual_seed(0)
torch.set_num_threads(1)  # images of 8×8 are too small to share among threads
EPS = (0.025, 0.05, 0.1, 0.2, 0.3)
SP = 0.05  # share of clean images that may be flagged

# %%
# A classifier
# ------------

X, y = load_digits_images()  # (1797, 1, 8, 8) in [0, 1]
X_train, X_rest, y_train, y_rest = train_test_split(X, y, test_size=1000, random_state=0)
X_new, X_test, _, y_test = train_test_split(X_rest, y_rest, test_size=400, random_state=0)


def build() -> nn.Sequential:
    """Two convolutions, two dense layers."""
    return nn.Sequential(
        *(nn.Conv2d(1, 16, 3, padding=1), nn.ReLU()),
        *(nn.Conv2d(16, 32, 3, stride=2, padding=1), nn.ReLU(), nn.Flatten()),
        *(nn.Linear(512, 64), nn.ReLU(), nn.Linear(64, 10)),
    )


classifier = build()
optimizer = torch.optim.Adam(classifier.parameters(), 2e-3)
x, labels = torch.as_tensor(X_train), torch.as_tensor(y_train)
for _ in range(args.epochs):
    for batch in torch.randperm(len(x)).split(64):
        optimizer.zero_grad()
        nn.functional.cross_entropy(classifier(x[batch]), labels[batch]).backward()
        optimizer.step()
classifier.eval()

# %%
# Three defenders
# ---------------
# A plain one is trained on clean images as they are, an explored one also on the worst point of a
# ball around each, a certified one by bounds over whole balls. No attack can exceed these.

shared = {
    "classifier": classifier,
    "clip_values": (0, 1),
    "max_epochs": args.epochs,
    "security_parameter": SP,
    "calibration_fraction": 0,
    "random_state": 0,
}
explored = {"exploration_radius": 0.2, "learning_rate": 3e-3}
certified = {"exploration_radius": 0.2, "certified_radius": 0.05, "learning_rate": 5e-3}
defenders = {
    "plain": LatentDefender(replicate(classifier), **shared),
    "explored": LatentDefender(replicate(classifier), **explored, **shared),
    "certified": CertifiedDefender(build(), **certified, **shared),
}
for name, defender in defenders.items():
    defender.fit(X_train, y_train).calibrate(X_new)
    print(f"{name}: {(defender.predict(X_test) == -1).mean():.1%} false alarms on clean images")

# %%
# Success against ε
# -----------------
# Each image is driven to wrong classes by two kinds of attack, from random points and from clean
# images of that class. It counts as lost as soon as one of them gets it through. For figures that
# you report, leave out ``attacks=``: then there are more of them, with more steps.

attacks = {
    "selective": SelectivePGD(steps=20, n_targets=4),
    "lagrangian": LagrangianPGD(steps=20, n_targets=4),
    "from guides": LagrangianPGD(steps=20, n_targets=4, start="guide"),
}
params = {"attacks": attacks, "security_parameters": [SP], "n_attacked": args.attacked}
outcomes = {
    name: evaluate_adaptive(defender, X_test, y_test, eps=EPS, guides=X_new, **params)
    for name, defender in defenders.items()
}
rows = outcomes["certified"].rows  # the images attacked
bound = certified_success_rate(
    defenders["certified"], X_test[rows], y_test[rows], eps=EPS, security_parameters=[SP]
).set_index("eps")["success_rate"]
worst = {
    name: outcome.success.query("attack == 'worst case'").set_index("eps")["success_rate"]
    for name, outcome in outcomes.items()
}
print(pd.DataFrame({**worst, "certified, at most": bound}).round(3).to_string())

display = SuccessCurveDisplay.from_evaluation(outcomes)
display.ax_.plot(EPS, bound, "--", color="C2", label="certified: no attack can exceed")
display.ax_.set(title=f"The attacker knows all; {SP:.0%} false alarms promised")
display.ax_.legend()
args.output.mkdir(parents=True, exist_ok=True)
display.figure_.savefig(args.output / "plot_evasion_cost.png", dpi=120, bbox_inches="tight")
# sphinx_gallery_thumbnail_path = "images/thumbnails/plot_evasion_cost.png"
