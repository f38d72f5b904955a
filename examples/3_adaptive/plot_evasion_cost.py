"""
What does evasion cost?
=======================

The attacker knows everything: the network, the defender, the threshold. How many images can be
changed within a ball of ε so that the network is wrong *and* nothing is flagged? And how much
farther than without a defender does an image have to go?
"""

import argparse
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from sklearn.frozen import FrozenEstimator
from sklearn.model_selection import train_test_split
from torch import nn

from skmrr import (
    CertifiedDefender,
    LatentDefender,
    MRREnsemble,
    default_defenders,
    replicate,
)
from skmrr.attacks import adaptive_suite
from skmrr.datasets import load_digits_images
from skmrr.evaluation import (
    SuccessCurveDisplay,
    certified_success_rate,
    evaluate_adaptive,
    evasion_cost,
)

parser = argparse.ArgumentParser()
parser.add_argument("--epochs", type=int, default=40, help="of the network and of the defenders")
parser.add_argument("--attacked", type=int, default=50, help="images to attack")
parser.add_argument("--steps", type=int, default=20, help="of an attack")
parser.add_argument("--members", type=int, nargs="+", default=[1, 2, 4], help="N of ensembles")
parser.add_argument("--output", type=Path, default=Path(__file__).parent / "output")
args, _ = parser.parse_known_args()
args.output.mkdir(parents=True, exist_ok=True)
torch.manual_seed(0)
torch.set_num_threads(1)  # images of 8×8 are too small to share among threads
EPS = (0.05, 0.1, 0.2, 0.3)
SP = 0.05  # share of clean images that may be flagged

# %%
# A classifier
# ------------

X, y = load_digits_images()  # (1797, 1, 8, 8) in [0, 1]
X_train, X_test, y_train, y_test = train_test_split(
    X, y, test_size=0.25, random_state=0, stratify=y
)


def build() -> nn.Sequential:
    """Two convolutions, two dense layers."""
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(16, 32, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(512, 64),
        nn.ReLU(),
        nn.Linear(64, 10),
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
#
# A plain one is trained on clean images as they are, an explored one also on the worst point of a
# ball around each, a certified one by bounds over whole balls: what these rule out, no attack can
# do. All learn from the same images; the rows that `fit` holds out set the threshold.

shared = {
    "classifier": classifier,
    "clip_values": (0, 1),
    "max_epochs": args.epochs,
    "security_parameter": SP,
    "random_state": 0,
}
defenders = {
    "plain": LatentDefender(replicate(classifier), **shared),
    "explored": LatentDefender(
        replicate(classifier), exploration_radius=0.2, learning_rate=3e-3, **shared
    ),
    "certified": CertifiedDefender(
        build(),
        exploration_radius=0.2,
        certified_radius=0.05,
        learning_rate=5e-3,
        **shared,
    ),
}
for defender in defenders.values():
    defender.fit(X_train, y_train)

# %%
# Success against ε
# -----------------
#
# Each image is driven to wrong classes, by four kinds of attack, from random points and from
# clean images of that class. An image counts as lost as soon as one of them gets it through.

suite = adaptive_suite(steps=args.steps, n_targets=5)
params = {"attacks": suite, "security_parameters": [SP], "n_attacked": args.attacked}
outcomes = {}
for name, defender in defenders.items():
    outcome = evaluate_adaptive(defender, X_test, y_test, eps=EPS, guides=X_train, **params)
    outcomes[name] = outcome
    clean = outcome.clean.iloc[0]
    print(f"{name}: {clean['false_alarms']:.1%} false alarms on clean images")
same = outcome.rows  # of the certified defender, which came last; all defenders have the same
bound = certified_success_rate(
    defenders["certified"], X_test[same], y_test[same], eps=EPS, security_parameters=[SP]
).set_index("eps")["success_rate"]
shown = pd.DataFrame(
    {name: o.success.set_index("eps")["success_rate"] for name, o in outcomes.items()}
)
print(shown.assign(**{"certified, at most": bound}).round(3).to_string())

# %%
# Distance against N
# ------------------
#
# Carlini's attack looks for the nearest image that passes. Members are explored defenders of half
# the classifier's width, each from another seed.

ensemble = MRREnsemble(
    classifier,
    defenders=default_defenders(
        classifier,
        latent=LatentDefender(exploration_radius=0.2, learning_rate=3e-3, max_epochs=args.epochs),
        n_latent=max(args.members),
        width=0.5,
        margin=False,
    ),
    clip_values=(0, 1),
    calibration_fraction=0.0,
    random_state=0,
)
X_fit, X_new, y_fit, y_new = train_test_split(X_train, y_train, test_size=0.3, random_state=0)
members = list(ensemble.fit(X_fit, y_fit).named_defenders_.items())
ratios = {0.01: [], SP: []}
for n in args.members:
    first = MRREnsemble(
        classifier,
        defenders=[(name, FrozenEstimator(member), 1) for name, member in members[:n]],
        clip_values=(0, 1),
        random_state=0,
    ).fit(X_new, y_new)
    costs = evasion_cost(
        first,
        X_test,
        y_test,
        guides=X_new,
        n_attacked=args.attacked // 2,
        security_parameters=list(ratios),
        search_steps=3,
        max_iter=3 * args.steps,
    ).set_index("security_parameter")
    for sp, ratio in ratios.items():
        ratio.append(costs.loc[sp, "ratio"])
    print(f"N = {n}\n{costs.round(2).to_string()}")

# %%
# The picture
# -----------

fig, (left, right) = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
SuccessCurveDisplay.from_evaluation(outcomes, ax=left)
left.plot(EPS, bound, "--", color="C2", label="certified: no attack can exceed")
left.set(title=f"The attacker knows all; {SP:.0%} false alarms")
left.legend(fontsize=8, loc="lower right")
places = np.arange(len(args.members))
for shift, (sp, ratio) in zip((-0.2, 0.2), ratios.items(), strict=True):
    bars = right.bar(places + shift, ratio, 0.38, label=f"SP {sp:.0%}")
    right.bar_label(bars, fmt="%.2f", fontsize=8)
right.axhline(1, color="k", lw=1)
right.set(xticks=places, xticklabels=args.members, xlabel="explored defenders, N")
right.set(ylabel="L2 of evasion / L2 without defender", title="Carlini-L2, median of the images")
right.legend(fontsize=8, loc="upper left")
right.margins(y=0.2)
fig.savefig(args.output / "plot_evasion_cost.png", dpi=120)
plt.show()
