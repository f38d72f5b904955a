"""
Is my classifier being fooled?
==============================

Train a small network on scikit-learn's bundled digits, fit a defender on clean images alone, attack
the network with the Adversarial Robustness Toolbox and see who notices. Then save the defender, and
score in another process.
"""

import argparse
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import matplotlib.pyplot as plt
import numpy as np
import torch
from art.attacks.evasion import BasicIterativeMethod, FastGradientMethod
from art.estimators.classification import PyTorchClassifier
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import train_test_split
from torch import nn

import skmrr
from skmrr import LatentDefender, replicate
from skmrr.datasets import load_digits_images
from skmrr.evaluation import (
    DetectionRocDisplay,
    RiskHistogramDisplay,
    false_alarm_interval,
    tpr_at_fpr,
)

parser = argparse.ArgumentParser()
parser.add_argument("--epochs", type=int, default=70, help="of the network and of the defender")
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
# A defender beside it
# --------------------
# It is a copy of the network that learns, from clean images alone, what each class looks like
# even at the worst point of a small ball around each image. The risk is calibrated on images that
# neither network has seen. The classifier stays as it is.

defender = LatentDefender(
    replicate(classifier),
    classifier=classifier,
    exploration_radius=0.25,
    clip_values=(0, 1),
    max_epochs=args.epochs,
    learning_rate=3e-3,
    security_parameter=0.05,
    calibration_fraction=0,
    random_state=0,
).fit(X_train, y_train)
defender.calibrate(X_new)

# %%
# An attacker
# -----------
# Only attacks that succeed count: the image was classified rightly and no longer is.

wrapped = PyTorchClassifier(
    classifier, nn.CrossEntropyLoss(), (1, 8, 8), nb_classes=10, clip_values=(0, 1)
)
attacks = {
    f"{name} {eps}": attack
    for eps in (0.05, 0.1, 0.2)
    for name, attack in (
        ("FGSM", FastGradientMethod(wrapped, eps=eps, batch_size=512)),
        (
            "BIM",
            BasicIterativeMethod(wrapped, eps, eps / 8, 20, batch_size=512, verbose=False),
        ),
    )
}
decided = wrapped.predict(X_test).argmax(1)
adversarial = {}
for name, attack in attacks.items():
    X_attacked = attack.generate(X_test, y_test)
    fooled = (decided == y_test) & (wrapped.predict(X_attacked).argmax(1) != y_test)
    adversarial[name] = X_attacked[fooled]

# %%
# The risk tells
# --------------
# The clean side is every test image, also those that the classifier gets wrong by itself.

clean_score = defender.score_samples(X_test)
scores = {name: defender.score_samples(X_attacked) for name, X_attacked in adversarial.items()}


def classes_of(clean, adversarial):
    """Classes of scored images: here 0 for all clean ones, −1 for adversarial ones."""
    return np.repeat([0, -1], [len(clean), len(adversarial)])


print(f"classifier: {np.mean(decided == y_test):.1%} of {len(X_test)} test images right")
print("\nattack      fooled   AUC   caught at 5 % false alarms")
for name, score in scores.items():
    is_adversarial = classes_of(clean_score, score) == -1
    auc = roc_auc_score(is_adversarial, -np.r_[clean_score, score])
    caught = tpr_at_fpr(clean_score, score, fpr=0.05)
    print(f"{name:10} {len(score):7} {auc:6.3f}   {caught:.1%}")
print("\nfalse alarms on clean test images: promised, measured, and what chance allows (99 %)")
for sp in (0.01, 0.05, 0.1):
    defender.set_params(security_parameter=sp)  # free: no refit, no rescoring of anything
    low, high = false_alarm_interval(sp, len(X_test), n_calibration=len(X_new))
    alarms = np.mean(defender.predict(X_test) == -1)
    print(f"  SP = {sp:4.0%}   {alarms:5.1%}   [{low:.1%}, {high:.1%}]")
print(f"({len(X_new)} images calibrate: with more of them, chance allows less)")

# %%
# Pictures
# --------

fig, (left, right) = plt.subplots(1, 2, figsize=(11, 4.2), layout="constrained")
attacked = np.concatenate(list(scores.values()))
left.set_yscale("log")
RiskHistogramDisplay.from_predictions(
    classes_of(clean_score, attacked),
    np.r_[clean_score, attacked],
    security_parameters=[0.05],
    ax=left,
    name="all attacks",
    bins=40,
)
left.set_title("Risk of clean and attacked images")
for name, score in scores.items():
    DetectionRocDisplay.from_predictions(
        classes_of(clean_score, score), np.r_[clean_score, score], name=name, ax=right
    )
right.set(xlim=(None, 1), ylim=(0.5, 1.01), title="Who notices, and at what price")
args.output.mkdir(parents=True, exist_ok=True)
fig.savefig(args.output / "plot_digits.png", dpi=120)
print(f"\npicture: {args.output / 'plot_digits.png'}")

# %%
# In another process
# ------------------
# The detector's file holds no code and not the classifier, which comes as it always does: built by
# its own code, with its weights loaded. Here it is a whole file, as all of it is torch's.

SERVICE = """
import numpy as np
import skmrr
import torch

classifier = torch.load("classifier.pt", weights_only=False)
defender = skmrr.load("defender.safetensors", classifier=classifier)
np.save("risks.npy", defender.risk(np.load("images.npy")))
"""
with TemporaryDirectory() as folder:
    torch.save(classifier, f"{folder}/classifier.pt")
    skmrr.save(defender, f"{folder}/defender.safetensors")
    np.save(f"{folder}/images.npy", X_test)
    subprocess.run([sys.executable, "-c", SERVICE], cwd=folder, check=True)
    risks = np.load(f"{folder}/risks.npy")
difference = np.abs(risks - defender.risk(X_test)).max()
print(f"saved, loaded in another process: risks differ by {difference:g} at most")
