"""
Is this image made of the right parts?
======================================

Learn from clean images which few parts each digit is made of. Then rebuild every new image from the
parts of the class that the network names, and see whether that works as well as it should.
"""

import argparse
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch
from art.attacks.evasion import BasicIterativeMethod, FastGradientMethod
from art.estimators.classification import PyTorchClassifier
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import train_test_split
from torch import nn

from skmrr import InputDictionaryDefender
from skmrr.datasets import load_digits_images
from skmrr.evaluation import false_alarm_interval, tpr_at_fpr

parser = argparse.ArgumentParser()
parser.add_argument("--epochs", type=int, default=40, help="of the network")
parser.add_argument("--output", type=Path, default=Path(__file__).parent / "output")
args, _ = parser.parse_known_args()
torch.manual_seed(0)
torch.set_num_threads(1)  # images of 8×8 are too small to share among threads

# %%
# A classifier that knows nothing of all this
# -------------------------------------------

X, y = load_digits_images()  # (1797, 1, 8, 8) in [0, 1]
X_rest, X_test, y_rest, y_test = train_test_split(X, y, test_size=0.25, random_state=0, stratify=y)
X_train, X_new, y_train, _ = train_test_split(X_rest, y_rest, test_size=0.2, random_state=0)

classifier = nn.Sequential(
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
optimizer = torch.optim.Adam(classifier.parameters(), 2e-3)
x, labels = torch.as_tensor(X_train), torch.as_tensor(y_train)
for _ in range(args.epochs):
    for batch in torch.randperm(len(x)).split(64):
        optimizer.zero_grad()
        nn.functional.cross_entropy(classifier(x[batch]), labels[batch]).backward()
        optimizer.step()
classifier.eval()

# %%
# Two ways to look at a reconstruction
# ------------------------------------
# ``residual`` asks how much of the image is left over. Its patch here is the whole image, and as a
# class has fewer images than its dictionary has atoms, the images themselves become the atoms.
#
# ``relabel`` shows the reconstruction to the classifier and asks whether it still names the same
# class. Small overlapping patches keep the digit and lose the perturbation.

defenders = {
    statistic: InputDictionaryDefender(
        classifier,
        statistic=statistic,
        n_atoms=128,
        clip_values=(0, 1),
        security_parameter=0.05,
        calibration_fraction=0,
        random_state=0,
        **patches,
    )
    .fit(X_train, y_train)  # clean images alone, no attack
    .calibrate(X_new)
    for statistic, patches in {
        "residual": {"patch_size": 8, "stride": 8, "n_nonzero_coefs": 5},
        "relabel": {"patch_size": 4, "stride": 1, "n_nonzero_coefs": 3},
    }.items()
}

# %%
# An attacker
# -----------
# Only attacks that succeed count: the image was classified rightly and no longer is.

wrapped = PyTorchClassifier(
    classifier, nn.CrossEntropyLoss(), (1, 8, 8), nb_classes=10, clip_values=(0, 1)
)
decided = wrapped.predict(X_test).argmax(1)
adversarial, origin = {}, {}
for eps in (0.05, 0.1, 0.2, 0.3):
    for name, attack in (
        ("FGSM", FastGradientMethod(wrapped, eps=eps, batch_size=512)),
        ("BIM", BasicIterativeMethod(wrapped, eps, eps / 8, 20, batch_size=512, verbose=False)),
    ):
        X_attacked = attack.generate(X_test, y_test)
        fooled = (decided == y_test) & (wrapped.predict(X_attacked).argmax(1) != y_test)
        adversarial[f"{name} {eps}"] = X_attacked[fooled]
        origin[f"{name} {eps}"] = X_test[fooled]

# %%
# Who notices
# -----------
# The clean side is every test image, also those that the classifier gets wrong by itself.

clean_scores = {name: defender.score_samples(X_test) for name, defender in defenders.items()}

print(f"classifier: {np.mean(decided == y_test):.1%} of {len(X_test)} test images right")
print("\n                   AUC               caught at 5 % false alarms")
print("attack      fooled residual relabel  residual relabel")
for name, X_attacked in adversarial.items():
    aucs, caught = [], []
    for statistic, defender in defenders.items():
        clean_score, score = clean_scores[statistic], defender.score_samples(X_attacked)
        is_adversarial = np.r_[np.zeros(len(clean_score)), np.ones(len(score))]
        aucs.append(roc_auc_score(is_adversarial, -np.r_[clean_score, score]))
        caught.append(tpr_at_fpr(clean_score, score, fpr=0.05))
    print(
        f"{name:10} {len(X_attacked):7} {aucs[0]:8.3f} {aucs[1]:7.3f}"
        f"  {caught[0]:8.1%} {caught[1]:7.1%}"
    )
print("\nfalse alarms on clean test images: promised, measured, and what chance allows (99 %)")
print("           residual relabel")
for sp in (0.01, 0.05, 0.1):
    low, high = false_alarm_interval(sp, len(X_test), n_calibration=len(X_new))
    alarms = [
        np.mean(defender.set_params(security_parameter=sp).predict(X_test) == -1)
        for defender in defenders.values()
    ]
    print(f"  SP = {sp:4.0%} {alarms[0]:8.1%} {alarms[1]:7.1%}   [{low:.1%}, {high:.1%}]")

# %%
# What they see
# -------------
# One attacked image and the image that it was: of all that FGSM fools, the one of median residual
# risk. What the dictionary of the named class cannot rebuild is the residual.

shown = "FGSM 0.1"
order = defenders["residual"].risk(adversarial[shown]).argsort()
middle = order[len(order) // 2]
pair = np.stack([origin[shown][middle], adversarial[shown][middle]])


def mosaic(atoms, side=6):
    """Return side × side atoms as one image with seams, each atom in its own scale."""
    size = round(atoms.shape[1] ** 0.5)
    image = np.full((side * (size + 1) - 1,) * 2, np.nan)
    for atom, place in zip(atoms, np.ndindex(side, side), strict=False):
        row, column = (i * (size + 1) for i in place)
        scaled = atom / max(np.abs(atom).max(), 1e-9) * (1 if atom.sum() > 0 else -1)
        image[row : row + size, column : column + size] = scaled.reshape(size, size)
    return image


named = wrapped.predict(pair).argmax(1)
rebuilt = {name: defender.reconstruct(pair, labels=named) for name, defender in defenders.items()}
risks = {name: defender.risk(pair) for name, defender in defenders.items()}
residual = pair - rebuilt["residual"]
renamed = wrapped.predict(rebuilt["relabel"]).argmax(1)
psnr = -10 * np.log10(np.square(residual).mean((1, 2, 3)))
scale = np.abs(residual).max()

fig, axes = plt.subplots(3, 4, figsize=(11.5, 8.6), layout="constrained")
grey, signed = {"cmap": "gray_r", "vmin": 0, "vmax": 1}, {"cmap": "RdBu_r"}
for axis, (statistic, c) in zip(
    axes[0], [(s, c) for s in ("relabel", "residual") for c in named], strict=True
):
    atoms = defenders[statistic].dictionaries_[c]
    atoms = atoms[np.abs(atoms).max(1) > 0]
    axis.imshow(mosaic(atoms), **signed, vmin=-1, vmax=1)
    axis.set_title(f"{statistic}:\n36 of {len(atoms)} atoms of “{c}”")
for i, row in enumerate(axes[1:]):
    row[0].imshow(pair[i, 0], **grey)
    row[0].set_title(f"\nclassifier says “{named[i]}”")
    row[1].imshow(rebuilt["relabel"][i, 0], **grey)
    row[1].set_title(f"relabel: rebuilt as “{named[i]}”\nclassifier says “{renamed[i]}”")
    row[1].set_xlabel(f"risk {risks['relabel'][i]:.3f}")
    row[2].imshow(rebuilt["residual"][i, 0], **grey)
    row[2].set_title(f"residual: rebuilt as “{named[i]}”\nPSNR {psnr[i]:.1f} dB")
    left_over = row[3].imshow(residual[i, 0], **signed, vmin=-scale, vmax=scale)
    row[3].set_title("residual:\nwhat is left over")
    row[3].set_xlabel(f"risk {risks['residual'][i]:.3f}")
for axis, what in zip(
    axes[:, 0], ("atoms, each in its own scale", "clean", f"adversarial: {shown}"), strict=True
):
    axis.set_ylabel(what)
fig.colorbar(left_over, ax=axes[:, 3], shrink=0.63, anchor=(0, 0))
for axis in axes.flat:
    axis.set(xticks=[], yticks=[])
args.output.mkdir(parents=True, exist_ok=True)
fig.savefig(args.output / "plot_dictionary.png", dpi=120)
print(f"\npicture: {args.output / 'plot_dictionary.png'}")
