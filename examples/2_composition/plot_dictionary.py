"""
Is this image made of the right parts?
======================================

Learn from clean images which parts each digit is made of. Then rebuild every new image from a few
parts of the class that the network names, and see what is left over.
"""

import argparse
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch
from sklearn.model_selection import train_test_split
from torch import nn

from skmrr import InputDictionaryDefender
from skmrr.datasets import load_digits_images

parser = argparse.ArgumentParser()
parser.add_argument("--epochs", type=int, default=40, help="of the network")
parser.add_argument("--output", type=Path, default=Path(__file__).parent / "output")
args, _ = parser.parse_known_args()
torch.manual_seed(0)
torch.set_num_threads(1)  # images of 8×8 are too small to share among threads

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
# A dictionary of each class
# --------------------------
# A patch here is the whole image. As a class has fewer images than its dictionary may have atoms,
# the images themselves become the atoms, and five of them have to do.

defender = InputDictionaryDefender(
    classifier,
    statistic="residual",
    patch_size=8,
    stride=8,
    n_atoms=128,
    n_nonzero_coefs=5,
    clip_values=(0, 1),
    security_parameter=0.05,
    calibration_fraction=0,
    random_state=0,
)
defender.fit(X_train, y_train).calibrate(X_new)  # clean images alone, no attack

# %%
# An attacker
# -----------
# Each pixel moves by 0.1, to where the network errs more.

x, labels = torch.as_tensor(X_test).requires_grad_(), torch.as_tensor(y_test)
logits = classifier(x)
(gradient,) = torch.autograd.grad(nn.functional.cross_entropy(logits, labels), x)
attacked = (x + 0.1 * gradient.sign()).clamp(0, 1).detach()
renamed = classifier(attacked).argmax(1)
fooled = (logits.argmax(1) == labels) & (renamed != labels)
flagged = defender.predict(attacked.numpy()) == -1
print(f"flagged: {np.mean(defender.predict(X_test) == -1):.1%} of {len(X_test)} clean images,")
print(f"{np.mean(flagged[fooled]):.1%} of the {fooled.sum()} that the attack makes of them")

# %%
# What it sees
# ------------
# Of all images that fool the network, the one of median risk, and the image that it was. What five
# atoms of the named class cannot rebuild is left over.

risk = defender.risk(attacked[fooled].numpy())
row = np.flatnonzero(fooled)[risk.argsort()[len(risk) // 2]]
pair = np.stack([X_test[row], attacked[row].numpy()])
named = np.array([y_test[row], renamed[row]])
rebuilt = defender.reconstruct(pair, labels=named)
risks = defender.risk(pair)

fig, axes = plt.subplots(2, 4, figsize=(11, 6), layout="constrained")
ink = {"cmap": "gray_r", "vmin": 0, "vmax": 1}
signed = {"cmap": "RdBu_r", "vmin": -0.5, "vmax": 0.5}
for i, (given, atoms_of, what) in enumerate(zip(axes, named, ("clean", "attacked"), strict=True)):
    image, atoms, copy, left_over = given
    image.imshow(pair[i, 0], **ink)
    image.set(title=f"network says “{atoms_of}”", ylabel=what)
    tiles = defender.dictionaries_[atoms_of][:16].reshape(4, 4, 8, 8)
    tiles = np.abs(tiles) / np.abs(tiles).max((2, 3), keepdims=True)
    tiles = np.pad(tiles, [(0, 0), (0, 0), (0, 1), (0, 1)])
    atoms.imshow(tiles.transpose(0, 2, 1, 3).reshape(36, 36), **ink)
    atoms.set_title(f"16 atoms of “{atoms_of}”")
    copy.imshow(rebuilt[i, 0], **ink)
    copy.set_title("rebuilt of five atoms")
    shown = left_over.imshow((pair - rebuilt)[i, 0], **signed)
    left_over.set(title="left over", xlabel=f"risk {risks[i]:.3f}")
for axis in axes.flat:
    axis.set(xticks=[], yticks=[])
fig.colorbar(shown, ax=axes[:, 3], shrink=0.6)
args.output.mkdir(parents=True, exist_ok=True)
fig.savefig(args.output / "plot_dictionary.png", dpi=120)
# sphinx_gallery_thumbnail_path = "images/thumbnails/plot_dictionary.png"
