"""
Honest noise is no attack
=========================

A camera adds noise, a program saves a JPEG, a lens blurs. Images that come this way are odd to a
detector that has never seen the like. Declare such changes harmless, and they raise no more alarms
than promised.
"""

import argparse
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch
from sklearn.model_selection import train_test_split
from torch import nn

from skmrr import MRREnsemble
from skmrr.datasets import load_digits_images
from skmrr.evaluation import flag_rates
from skmrr.harmless import JPEG, GaussianBlur, GaussianNoise

parser = argparse.ArgumentParser()
parser.add_argument("--epochs", type=int, default=60, help="of the network")
parser.add_argument("--output", type=Path, default=Path(__file__).parent / "output")
args, _ = parser.parse_known_args()
torch.manual_seed(0)
torch.set_num_threads(1)  # images of 8×8 are too small to share among threads
SP = 0.05  # share of harmless images that may be flagged

# %%
# A classifier
# ------------

X, y = load_digits_images()  # (1797, 1, 8, 8) in [0, 1]
X_train, X_rest, y_train, y_rest = train_test_split(X, y, test_size=1000, random_state=0)
X_new, X_test, _, y_test = train_test_split(X_rest, y_rest, test_size=400, random_state=0)
classifier = nn.Sequential(
    *(nn.Conv2d(1, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten()),
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
# With and without
# ----------------
# With ``harmless``, a calibration image counts as the oddest of its versions. So the promise holds
# under each change that is named, at the strength named, and on images as they are.

named = {"JPEG 30": JPEG(30), "noise": GaussianNoise(40 / 255), "blur": GaussianBlur(0.7)}
detectors = {}
for name, harmless in (("not told", None), ("told", list(named.values()))):
    detectors[name] = MRREnsemble(
        classifier,
        harmless=harmless,
        clip_values=(0, 1),
        security_parameter=SP,
        calibration_fraction=0,
        random_state=0,
    )
    detectors[name].fit(X_train, y_train).calibrate(X_new)

# %%
# ``flag_rates`` asks about test images that the classifier still gets right. "none" are images as
# they are.

rates = flag_rates(
    detectors,
    X_test,
    y_test,
    changes={name: [change] for name, change in named.items()},
    security_parameters=[SP],
)
flagged = rates.pivot(index="change", columns="detector", values="flagged")[list(detectors)]
flagged = flagged.loc[["none", *named]]
print(f"share of harmless images flagged, at SP = {SP:.0%}")
print(flagged.map("{:.1%}".format).to_string())

# %%
# What it costs: an attack that looks no odder than a harmless image is no longer detected.

x, labels = torch.as_tensor(X_test).requires_grad_(), torch.as_tensor(y_test)
(gradient,) = torch.autograd.grad(nn.functional.cross_entropy(classifier(x), labels), x)
attacked = (x + 0.1 * gradient.sign()).clamp(0, 1).detach()
fooled = (classifier(x).argmax(1) == labels) & (classifier(attacked).argmax(1) != labels)
caught = {name: np.mean(d.predict(attacked[fooled]) == -1) for name, d in detectors.items()}
print(f"of {fooled.sum()} successful attacks flagged:", end=" ")
print(", ".join(f"{name} {share:.1%}" for name, share in caught.items()))

# %%

flagged.loc["attack"] = caught
fig = plt.figure(figsize=(10, 4.6), layout="constrained")
above, below = fig.subfigures(2, 1, height_ratios=(1, 2.2))
image = torch.as_tensor(X_test[:1])
versions = [image, *(change(image) for change in named.values()), attacked[:1]]
for axis, version in zip(above.subplots(1, 5), versions, strict=True):
    axis.imshow(version[0, 0], cmap="gray_r", vmin=0, vmax=1)
    axis.axis("off")
axis = below.subplots()
flagged.plot.bar(ax=axis, rot=0, color=["C7", "C0"], xlabel="", ylabel="share flagged")
for bars in axis.containers:
    axis.bar_label(bars, fmt="{:.0%}")
axis.set_ylim(0, 1)
axis.axhline(SP, color="black", linestyle="--", label=f"promised: {SP:.0%}", zorder=0)
axis.legend(title="the detector was", loc="upper left")
args.output.mkdir(parents=True, exist_ok=True)
fig.savefig(args.output / "plot_harmless.png", dpi=120)
# sphinx_gallery_thumbnail_path = "images/thumbnails/plot_harmless.png"
