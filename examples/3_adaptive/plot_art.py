"""
Inside the Adversarial Robustness Toolbox
=========================================

Put a detector beside a classifier of ART, measure with ART's own attacks what it catches, and then
hand the same attacks the classifier and the detector as one: an attacker that knows everything.
"""

import argparse
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch
from art.attacks.evasion import (
    AutoProjectedGradientDescent,
    DeepFool,
    FastGradientMethod,
    ProjectedGradientDescent,
)
from art.estimators.classification import PyTorchClassifier
from sklearn.model_selection import train_test_split
from torch import nn

from skmrr import MRREnsemble
from skmrr.art import MRRDetector, defended_classifier
from skmrr.datasets import load_digits_images
from skmrr.evaluation import false_alarm_interval

parser = argparse.ArgumentParser()
parser.add_argument("--epochs", type=int, default=30, help="of the network and of the defenders")
parser.add_argument("--attacked", type=int, default=100, help="images for the adaptive attacks")
parser.add_argument("--output", type=Path, default=Path(__file__).parent / "output")
args, _ = parser.parse_known_args()
args.output.mkdir(parents=True, exist_ok=True)
torch.manual_seed(0)
np.random.seed(0)  # noqa: NPY002 - ART draws from it
torch.set_num_threads(1)  # images of 8×8 are too small to share among threads
SP = 0.05  # share of clean images that may be flagged

# %%
# A classifier of ART
# -------------------

X, y = load_digits_images()  # (1797, 1, 8, 8) in [0, 1]
X_rest, X_test, y_rest, y_test = train_test_split(X, y, test_size=0.25, random_state=0, stratify=y)
X_train, X_new, y_train, _ = train_test_split(X_rest, y_rest, test_size=0.2, random_state=0)

network = nn.Sequential(
    nn.Conv2d(1, 16, 3, padding=1),
    nn.ReLU(),
    nn.Conv2d(16, 32, 3, padding=1),
    nn.ReLU(),
    nn.MaxPool2d(2),
    nn.Flatten(),
    nn.Linear(512, 64),
    nn.ReLU(),
    nn.Dropout(0.5),
    nn.Linear(64, 10),
)
classifier = PyTorchClassifier(
    network,
    nn.CrossEntropyLoss(),
    (1, 8, 8),
    nb_classes=10,
    optimizer=torch.optim.Adam(network.parameters(), 2e-3),
    clip_values=(0, 1),
)
classifier.fit(X_train, y_train, batch_size=64, nb_epochs=args.epochs)
decided = classifier.predict(X_test).argmax(1)
print(f"classifier: {np.mean(decided == y_test):.1%} of {len(X_test)} test images right")

# %%
# A detector beside it
# --------------------
# It is fitted on clean images and calibrated on others that neither it nor the classifier has seen.
# ``detect`` answers as ART's detectors do: a report, and for each image whether it is adversarial.

template = MRREnsemble(security_parameter=SP, calibration_fraction=0, random_state=0)
defence = MRRDetector(classifier, template)
defence.fit(X_train, y_train, batch_size=64, nb_epochs=args.epochs)
defence.calibrate(X_new)

report, is_flagged = defence.detect(X_test)
clean_flags = np.mean(is_flagged)
low, high = false_alarm_interval(SP, len(X_test), n_calibration=len(X_new) // 2)
print(f"clean test images flagged: {clean_flags:.1%}, promised {SP:.0%};", end=" ")
print(f"chance allows [{low:.1%}, {high:.1%}]")

# %%
# Attacks that see the classifier alone
# -------------------------------------
# An attack starts from images that are classified rightly, and only its successes count.

EPS = (0.05, 0.1, 0.2, 0.3)
right = decided == y_test
X_right, y_right = X_test[right], y_test[right]


def pgd(target, eps):
    """Twenty steps along the signs of the gradient, within ε of each image."""
    return ProjectedGradientDescent(
        target, eps=eps, eps_step=eps / 8, max_iter=20, batch_size=512, verbose=False
    )


attacks = {
    **{f"FGSM {eps}": FastGradientMethod(classifier, eps=eps) for eps in EPS},
    **{f"PGD {eps}": pgd(classifier, eps) for eps in EPS},
    "DeepFool": DeepFool(classifier, 50, epsilon=0.02, batch_size=512, verbose=False),
}
print("\nattack      fooled   flagged of these")
adversarial, caught = {}, {}
for name, attack in attacks.items():
    X_attacked = attack.generate(X_right, y_right)
    adversarial[name] = X_attacked
    fooled = classifier.predict(X_attacked).argmax(1) != y_right
    caught[name] = np.mean(defence.detect(X_attacked[fooled])[1]) if fooled.any() else np.nan
    print(f"{name:10} {np.mean(fooled):7.1%} {caught[name]:18.1%}")

fig, axis = plt.subplots(figsize=(8, 4.4), layout="constrained")
names = ["clean", *caught]
shares = [clean_flags, *caught.values()]
kinds = [name.split()[0] for name in names]
colours = {"clean": "C7", "FGSM": "C0", "PGD": "C1", "DeepFool": "C2"}
bars = axis.barh(names, shares, color=[colours[kind] for kind in kinds])
promised = f"promised on clean images: {SP:.0%}"
axis.axvline(SP, color="black", linestyle="--", label=promised, zorder=0)
paper = {"facecolor": "white", "edgecolor": "none", "pad": 1}
axis.bar_label(bars, [f"{share:.0%}" for share in shares], padding=5, bbox=paper)
axis.set(
    xlim=(0, 1.1),
    ylim=(len(names) - 0.4, -0.8),  # the first at the top
    xlabel="share flagged",
    title="Clean images, and those that fool the classifier, by attack",
)
axis.spines[["top", "right"]].set_visible(False)
axis.legend(loc="upper right", frameon=False)
fig.savefig(args.output / "plot_art_flags.png", dpi=120)

# %%
# Attacks that see both
# ---------------------
# ``defended_classifier`` makes one classifier of the two. With ``labels=c`` it is the view for
# images of class c, in which "flagged" counts as c: any untargeted attack of ART then succeeds
# exactly where an image is misclassified *and* not flagged. The attacks below are run on the images
# of each class in turn, with nothing about them changed.

X_few, y_few = X_right[: args.attacked], y_right[: args.attacked]
views = {c: defended_classifier(defence, labels=c) for c in np.unique(y_few)}


def apgd(target, eps):
    """PGD that halves its step by itself and keeps the best point (Croce and Hein 2020)."""
    return AutoProjectedGradientDescent(
        target, eps=eps, eps_step=eps / 4, max_iter=20, nb_random_init=1, verbose=False
    )


def evades(images):
    """Where images that should be `y_few` are misclassified and not flagged."""
    return (classifier.predict(images).argmax(1) != y_few) & ~defence.detect(images)[1]


def adaptive(attack, eps):
    """What an attack on classifier and detector makes of the images."""
    images = X_few.copy()
    for c, view in views.items():
        images[y_few == c] = attack(view, eps).generate(X_few[y_few == c], y_few[y_few == c])
    return images


blind = {eps: adversarial[f"PGD {eps}"][: args.attacked] for eps in EPS}
curves = {
    "fooled, no detector: PGD": [
        np.mean(classifier.predict(blind[eps]).argmax(1) != y_few) for eps in EPS
    ],
    "evaded, detector unknown: PGD": [np.mean(evades(blind[eps])) for eps in EPS],
}
found = {eps: [evades(adaptive(attack, eps)) for attack in (pgd, apgd)] for eps in EPS}
curves["evaded, detector known: PGD"] = [np.mean(found[eps][0]) for eps in EPS]
# An attacker takes whatever works, also what a smaller ε has found.
worst = np.logical_or.accumulate([evades(blind[eps]) | np.any(found[eps], axis=0) for eps in EPS])
curves["evaded, detector known: best of all"] = list(worst.mean(axis=1))

print(f"\nshare of {len(X_few)} images, at ε =" + "".join(f"{eps:8}" for eps in EPS))
for name, values in curves.items():
    print(f"{name:35}" + "".join(f"{value:8.1%}" for value in values))

fig, axis = plt.subplots(figsize=(7.5, 4.4), layout="constrained")
styles = ("k:", "C0o-", "C1s-", "C3D-")
for (name, values), style in zip(curves.items(), styles, strict=True):
    axis.plot((0, *EPS), (0, *values), style, label=name)
axis.set(
    xlim=(0, None),
    ylim=(-0.02, 1.05),
    xlabel="largest change of a pixel ε",
    ylabel="share of images",
    title="What an attacker gains by knowing the detector",
)
axis.spines[["top", "right"]].set_visible(False)
axis.legend(framealpha=1)
fig.savefig(args.output / "plot_art_adaptive.png", dpi=120)
print(f"\npictures: {args.output / 'plot_art_*.png'}")

# %%
# What a detector catches of an attacker who does not know it says little of one who does: read the
# red curve, and read it as a lower bound. Attacks made for this detector rather than for any
# classifier, those of `skmrr.attacks`, find more.
