"""
Inside the Adversarial Robustness Toolbox
=========================================

Put a detector beside a classifier of ART. ART's own attack first knows one, and then both.
"""

import argparse
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch
from art.attacks.evasion import ProjectedGradientDescent
from art.estimators.classification import PyTorchClassifier
from sklearn.model_selection import train_test_split
from torch import nn

from skmrr import MRREnsemble
from skmrr.art import MRRDetector, defended_classifier
from skmrr.datasets import load_digits_images

parser = argparse.ArgumentParser()
parser.add_argument("--epochs", type=int, default=30, help="of the network and of the defenders")
parser.add_argument("--attacked", type=int, default=100, help="images")
parser.add_argument("--output", type=Path, default=Path(__file__).parent / "output")
args, _ = parser.parse_known_args()
torch.manual_seed(0)
np.random.seed(0)  # noqa: NPY002 - ART draws from it
torch.set_num_threads(1)  # images of 8×8 are too small to share among threads
SP = 0.05  # share of clean images that may be flagged

# %%
# A classifier of ART
# -------------------

X, y = load_digits_images()  # (1797, 1, 8, 8) in [0, 1]
X_train, X_rest, y_train, y_rest = train_test_split(X, y, test_size=1000, random_state=0)
X_new, X_test, _, y_test = train_test_split(X_rest, y_rest, test_size=400, random_state=0)
network = nn.Sequential(
    *(nn.Conv2d(1, 16, 3, padding=1), nn.ReLU()),
    *(nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten()),
    *(nn.Linear(512, 64), nn.ReLU(), nn.Dropout(0.5), nn.Linear(64, 10)),
)
optimizer = torch.optim.Adam(network.parameters(), 2e-3)
classifier = PyTorchClassifier(
    network,
    nn.CrossEntropyLoss(),
    (1, 8, 8),
    nb_classes=10,
    optimizer=optimizer,
    clip_values=(0, 1),
)
classifier.fit(X_train, y_train, batch_size=64, nb_epochs=args.epochs)

# %%
# A detector beside it
# --------------------
# ``detect`` answers as ART's detectors do: a report, and for each image whether it is adversarial.

template = MRREnsemble(security_parameter=SP, calibration_fraction=0, random_state=0)
defence = MRRDetector(classifier, template)
defence.fit(X_train, y_train, batch_size=64, nb_epochs=args.epochs)
defence.calibrate(X_new)  # on images that neither it nor the classifier has seen
print(f"clean test images flagged: {np.mean(defence.detect(X_test)[1]):.1%}, promised {SP:.0%}")

# %%
# An attack that sees the classifier alone, and one that sees both
# ----------------------------------------------------------------
# Both begin at images that are classified rightly. ``defended_classifier`` makes one classifier of
# classifier and detector. With ``labels=c`` it is the view for images of class c, in which
# "flagged" counts as c: any untargeted attack of ART then succeeds exactly where an image is
# misclassified *and* not flagged.

right = np.flatnonzero(classifier.predict(X_test).argmax(1) == y_test)[: args.attacked]
X_right, y_right = X_test[right], y_test[right]
views = {c: defended_classifier(defence, labels=c) for c in np.unique(y_right)}


def attack(target, eps, images, labels):
    """Take twenty steps along the signs of the gradient, within ε of each image."""
    settings = {"eps": eps, "eps_step": eps / 8, "max_iter": 20, "batch_size": 512}
    return ProjectedGradientDescent(target, **settings, verbose=False).generate(images, labels)


EPS = (0.05, 0.1, 0.2, 0.3)
curves = {
    name: []
    for name in ("fooled, no detector", "evaded, detector unknown", "evaded, detector known")
}
for eps in EPS:
    blind = attack(classifier, eps, X_right, y_right)
    knowing = X_right.copy()
    for c, view in views.items():
        knowing[y_right == c] = attack(view, eps, X_right[y_right == c], y_right[y_right == c])
    fooled = [classifier.predict(images).argmax(1) != y_right for images in (blind, knowing)]
    flagged = [defence.detect(images)[1] for images in (blind, knowing)]
    unknown, known = (wrong & ~alarm for wrong, alarm in zip(fooled, flagged, strict=True))
    for shares, hit in zip(curves.values(), (fooled[0], unknown, known), strict=True):
        shares.append(hit.mean())

print(f"\nshare of {len(X_right)} images, at ε =      " + "".join(f"{eps:8}" for eps in EPS))
for name, shares in curves.items():
    print(f"{name:32}" + "".join(f"{share:8.1%}" for share in shares))

# %%

fig, axis = plt.subplots(figsize=(7.5, 4.4), layout="constrained")
for (name, shares), style in zip(curves.items(), ("k:", "C0o-", "C3D-"), strict=True):
    axis.plot((0, *EPS), (0, *shares), style, label=name)
axis.set(xlabel="largest change of a pixel ε", ylabel="share of images", ylim=(-0.02, 1.05))
axis.set_title("What an attacker gains by knowing the detector")
axis.legend(framealpha=1)
args.output.mkdir(parents=True, exist_ok=True)
fig.savefig(args.output / "plot_art.png", dpi=120)

# %%
# Read the red curve, as a lower bound: attacks made for detectors, `skmrr.attacks`, find more.
# sphinx_gallery_thumbnail_path = "images/thumbnails/plot_art.png"
