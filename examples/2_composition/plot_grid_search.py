"""
Pipelines, caching and searches
===============================

Detectors are scikit-learn estimators: they sit in pipelines, whose features are cached, and are
searched over with the package's own scorers. A search over the threshold fits nothing.
"""

import argparse
import tempfile
import time
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch
from sklearn.frozen import FrozenEstimator
from sklearn.model_selection import GridSearchCV, StratifiedKFold, cross_val_score
from sklearn.pipeline import make_pipeline
from torch import nn

from skmrr import FeatureExtractor, FixedThresholdDetector, LatentDefender, replicate
from skmrr.datasets import load_digits_images
from skmrr.evaluation import balanced_accuracy_scorer, roc_auc_scorer, tpr_at_fpr_scorer

parser = argparse.ArgumentParser()
parser.add_argument("--epochs", type=int, default=20, help="of the network and of the defenders")
parser.add_argument("--output", type=Path, default=Path(__file__).parent / "output")
args, _ = parser.parse_known_args()
torch.manual_seed(0)
torch.set_num_threads(1)  # images of 8×8 are too small to share among threads

# %%
# Clean and adversarial rows in one table
# ---------------------------------------
# In ``y`` the class −1 marks an adversarial row. ``fit`` drops such rows; scorers count them as
# what is to be caught. So one ``y`` serves every tool of model selection.

X, y = load_digits_images()
order = np.random.default_rng(0).permutation(len(X))  # the digits come sorted by writer
X, y = X[order], y[order]
x, labels = torch.as_tensor(X), torch.as_tensor(y)

net = nn.Sequential(
    nn.Conv2d(1, 16, 3, padding=1),
    nn.ReLU(),
    nn.MaxPool2d(2),
    nn.Flatten(),
    nn.Linear(256, 64),
    nn.ReLU(),
    nn.Linear(64, 10),
)
optimizer = torch.optim.Adam(net.parameters(), 3e-3)
for _ in range(args.epochs):
    for batch in torch.randperm(600).split(50):  # the net's own training images
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(x[batch]), labels[batch]).backward()
        optimizer.step()
net.eval()

attacked, truth = x[1400:].clone().requires_grad_(True), labels[1400:]
nn.functional.cross_entropy(net(attacked), truth).backward()
attacked_x = (attacked + 0.15 * attacked.grad.sign()).clamp(0, 1).detach()
fooled = (net(attacked).argmax(1) == truth) & (net(attacked_x).argmax(1) != truth)
X_all = np.concatenate([X[600:1400], attacked_x[fooled].numpy()])
y_all = np.concatenate([y[600:1400], np.full(int(fooled.sum()), -1)])
print(f"{np.sum(y_all >= 0)} clean and {np.sum(y_all == -1)} adversarial rows")

# %%
# A pipeline whose features are computed once
# -------------------------------------------
# The network is hashed by its weights, so ``memory`` hits as long as these and the rows are the
# same. Stratify: over rows in order, a plain ``KFold`` has folds without an adversarial row, and
# then there is nothing to compare.

cv = StratifiedKFold(4, shuffle=True, random_state=0)
with tempfile.TemporaryDirectory() as cache:
    pipeline = make_pipeline(
        FeatureExtractor(net, "5"),
        LatentDefender(max_epochs=args.epochs, security_parameter=0.05, random_state=0),
        memory=cache,
    )
    for scorer, name in ((roc_auc_scorer, "AUC"), (tpr_at_fpr_scorer(0.05), "TPR at 5 % FPR")):
        scores = cross_val_score(pipeline, X_all, y_all, cv=cv, scoring=scorer)
        print(f"features of the net, {name}: {scores.mean():.3f} ± {scores.std():.3f}")

# %%
# Which exploration radius?
# -------------------------
# On images, the defender is a replica of the network. Every radius is a training of its own.
# A search that scores on attacks has seen these attacks: report others.

defender = LatentDefender(
    replicate(net),
    classifier=net,
    clip_values=(0, 1),
    max_epochs=args.epochs,
    learning_rate=3e-3,
    security_parameter=0.05,
    random_state=0,
)
radii = [0.0, 0.05, 0.1, 0.2]
search = GridSearchCV(defender, {"exploration_radius": radii}, scoring=roc_auc_scorer, cv=cv)
search.fit(X_all, y_all)
for radius, score in zip(radii, search.cv_results_["mean_test_score"], strict=True):
    print(f"exploration radius {radius:4}: AUC {score:.3f}")

# %%
# Which threshold?
# ----------------
# Changing ``security_parameter`` on a fitted detector is free. Frozen, the detector is fitted by
# nobody: the search below costs scoring alone.

thresholds = [0.01, 0.02, 0.05, 0.1, 0.2]
frozen = FixedThresholdDetector(FrozenEstimator(search.best_estimator_))
start = time.perf_counter()
threshold_search = GridSearchCV(
    frozen, {"security_parameter": thresholds}, scoring=balanced_accuracy_scorer, cv=cv
).fit(X_all, y_all)
seconds = time.perf_counter() - start
for sp, score in zip(thresholds, threshold_search.cv_results_["mean_test_score"], strict=True):
    print(f"SP {sp:4.0%}: balanced accuracy {score:.3f}")
n_fits = len(thresholds) * cv.get_n_splits()
print(f"{n_fits} thresholds and folds in {seconds:.1f} s, none of them a training")

# %%

fig, (left, right) = plt.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
left.errorbar(
    radii,
    search.cv_results_["mean_test_score"],
    search.cv_results_["std_test_score"],
    marker="o",
    capsize=3,
)
left.set(xlabel="exploration radius", ylabel="AUC, mean and deviation of 4 folds", xticks=radii)
right.plot(thresholds, threshold_search.cv_results_["mean_test_score"], marker="o")
right.set(xlabel="security parameter", ylabel="balanced accuracy", xscale="log")
right.set_xticks(thresholds, [f"{sp:.0%}" for sp in thresholds])
right.set_xticks([], minor=True)
args.output.mkdir(parents=True, exist_ok=True)
fig.savefig(args.output / "plot_grid_search.png", dpi=120)
print(f"picture: {args.output / 'plot_grid_search.png'}")
