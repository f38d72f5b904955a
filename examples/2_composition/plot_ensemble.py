"""
Who raised the alarm?
=====================

Put defenders that look at different things beside a small network, fuse what they say into one
risk, and see which of them notices which attack.
"""

import argparse
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from art.attacks.evasion import BasicIterativeMethod, DeepFool, FastGradientMethod
from art.estimators.classification import PyTorchClassifier
from sklearn.model_selection import train_test_split
from torch import nn

from skmrr import MRREnsemble, default_defenders
from skmrr.datasets import load_digits_images

parser = argparse.ArgumentParser()
parser.add_argument("--epochs", type=int, default=40, help="of the network")
parser.add_argument("--output", type=Path, default=Path(__file__).parent / "output")
args, _ = parser.parse_known_args()
torch.manual_seed(0)
torch.set_num_threads(1)  # images of 8×8 are too small to share among threads
SP = 0.05  # share of clean images that may be flagged

# %%
# A classifier
# ------------

X, y = load_digits_images()  # (1797, 1, 8, 8) in [0, 1]
X_train, X_rest, y_train, y_rest = train_test_split(X, y, test_size=1000, random_state=0)
X_new, X_test, _, y_test = train_test_split(X_rest, y_rest, test_size=400, random_state=0)
classifier = nn.Sequential(
    *(nn.Conv2d(1, 16, 3, padding=1), nn.ReLU()),
    *(nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten()),
    *(nn.Linear(512, 64), nn.ReLU(), nn.Dropout(0.5), nn.Linear(64, 10)),
)
optimizer = torch.optim.Adam(classifier.parameters(), 2e-3)
x, labels = torch.as_tensor(X_train), torch.as_tensor(y_train)
for _ in range(args.epochs):
    for batch in torch.randperm(len(x)).split(64):
        optimizer.zero_grad()
        nn.functional.cross_entropy(classifier(x[batch]), labels[batch]).backward()
        optimizer.step()
classifier.eval()

# %%
# Defenders beside it
# -------------------
# Each member turns what it sees into a p-value. These are fused, and the fusion is calibrated anew,
# so that the promise of false alarms is one for all. By default the members are the classifier's
# margin and a robust copy of it. Two noise defenders, which are no default, stand beside them to
# show what they are worth.

ensemble = MRREnsemble(
    classifier,
    defenders=default_defenders(classifier, noise=True),
    clip_values=(0, 1),
    security_parameter=SP,
    calibration_fraction=0,
    random_state=0,
)
ensemble.fit(X_train, y_train)  # clean images alone, no attack
ensemble.calibrate(X_new)  # half of them for the members, half for the fusion

# %%
# Attackers
# ---------
# They know the classifier and not the ensemble. Only attacks that succeed count: the image was
# classified rightly and no longer is.

wrapped = PyTorchClassifier(
    classifier, nn.CrossEntropyLoss(), (1, 8, 8), nb_classes=10, clip_values=(0, 1)
)
attacks = {
    "FGSM 0.1": FastGradientMethod(wrapped, eps=0.1),
    "BIM 0.1": BasicIterativeMethod(wrapped, 0.1, 0.1 / 8, 20, batch_size=512, verbose=False),
    "DeepFool": DeepFool(wrapped, 20, epsilon=0.02, batch_size=512, verbose=False),
}
decided = wrapped.predict(X_test).argmax(1)
noise = 0.02 * np.random.default_rng(0).choice([-1, 1], X_test.shape)
groups = {"clean": X_test, "clean + noise": np.clip(X_test + noise, 0, 1).astype(np.float32)}
for name, attack in attacks.items():
    X_attacked = attack.generate(X_test, y_test)
    fooled = (decided == y_test) & (wrapped.predict(X_attacked).argmax(1) != y_test)
    groups[name] = X_attacked[fooled]

# %%
# Who raised the alarm
# --------------------
# Each member by itself, and the fusion, all at the same threshold. The dense-noise defender flags
# faint noise, which the classifier does not mind, as readily as it flags an attack. That is why it
# is for inputs of one clean source only. The sparse-noise defender waits for changes of a few
# pixels, which none of these attacks makes.

judges = [*ensemble.member_names_, "fused"]
flagged = np.empty((len(groups), len(judges)))
for row, images in zip(flagged, groups.values(), strict=True):
    row[:-1] = (ensemble.member_risks(images) > 1 - SP).mean()
    row[-1] = np.mean(ensemble.risk(images) > 1 - SP)

fig, axis = plt.subplots(figsize=(7.5, 4.2), layout="constrained")
image = axis.imshow(flagged, vmin=0, vmax=1, cmap="Blues", aspect="auto")
for (row, column), share in np.ndenumerate(flagged):
    colour = "white" if share > 0.6 else "black"
    axis.text(column, row, f"{share:.0%}", ha="center", va="center", color=colour)
axis.set_xticks(range(len(judges)), judges)
axis.set_yticks(range(len(groups)), [f"{name}\n{len(rows)}" for name, rows in groups.items()])
axis.set_title(f"Share of images flagged at SP = {SP:.0%}")
args.output.mkdir(parents=True, exist_ok=True)
fig.savefig(args.output / "plot_ensemble.png", dpi=120)
print(pd.DataFrame(flagged, list(groups), judges).round(3))
# sphinx_gallery_thumbnail_path = "images/thumbnails/plot_ensemble.png"
