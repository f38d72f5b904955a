"""
Pipelines and searches
======================

Detectors are scikit-learn estimators. They sit in pipelines, and they are searched over with the
package's own scorers. A search over the threshold fits nothing.
"""

import argparse
import time
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch
from sklearn.frozen import FrozenEstimator
from sklearn.model_selection import GridSearchCV, StratifiedKFold
from sklearn.pipeline import Pipeline
from torch import nn

from skmrr import FeatureExtractor, FixedThresholdDetector, LatentDefender
from skmrr.datasets import load_digits_images
from skmrr.evaluation import balanced_accuracy_scorer, roc_auc_scorer

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
x, labels = torch.as_tensor(X[order]), torch.as_tensor(y[order])
network = nn.Sequential(
    *(nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten()),
    *(nn.Linear(256, 64), nn.ReLU(), nn.Linear(64, 10)),
)
optimizer = torch.optim.Adam(network.parameters(), 3e-3)
for _ in range(args.epochs):
    for batch in torch.randperm(600).split(50):  # the network's own training images
        optimizer.zero_grad()
        nn.functional.cross_entropy(network(x[batch]), labels[batch]).backward()
        optimizer.step()
network.eval()

victims, truth = x[1400:].clone().requires_grad_(), labels[1400:]
nn.functional.cross_entropy(network(victims), truth).backward()
attacked = (victims + 0.15 * victims.grad.sign()).clamp(0, 1).detach()
fooled = (network(victims).argmax(1) == truth) & (network(attacked).argmax(1) != truth)
X_all = torch.cat([x[600:1400], attacked[fooled]]).numpy()
y_all = torch.cat([labels[600:1400], torch.full((int(fooled.sum()),), -1)]).numpy()
print(f"{np.sum(y_all >= 0)} clean and {np.sum(y_all == -1)} adversarial rows")

# %%
# Which layer?
# ------------
# The features of a layer, and a defender that learns from these alone. Stratify: a plain ``KFold``
# over rows in order has folds without an adversarial row, and then there is nothing to compare. A
# search that scores on attacks has seen these attacks: report others.

pipeline = Pipeline(
    [
        ("features", FeatureExtractor(network, "5")),
        ("defender", LatentDefender(max_epochs=args.epochs, random_state=0)),
    ]
)
layers = {"0": "convolution", "2": "pooling", "5": "hidden units", "6": "logits"}
cv = StratifiedKFold(4, shuffle=True, random_state=0)
search = GridSearchCV(pipeline, {"features__layer": list(layers)}, scoring=roc_auc_scorer, cv=cv)
search.fit(X_all, y_all)
aucs, deviations = (search.cv_results_[f"{what}_test_score"] for what in ("mean", "std"))
for name, auc, deviation in zip(layers.values(), aucs, deviations, strict=True):
    print(f"features of the {name}: AUC {auc:.3f} ± {deviation:.3f}")

# %%
# Which threshold?
# ----------------
# To change ``security_parameter`` on a fitted detector is free. Frozen, the detector is fitted by
# nobody: the search costs scoring alone.

thresholds = [0.01, 0.02, 0.05, 0.1, 0.2, 0.4]
frozen = FixedThresholdDetector(FrozenEstimator(search.best_estimator_))
start = time.perf_counter()
by_threshold = GridSearchCV(
    frozen, {"security_parameter": thresholds}, scoring=balanced_accuracy_scorer, cv=cv
).fit(X_all, y_all)
seconds = time.perf_counter() - start
accuracies = by_threshold.cv_results_["mean_test_score"]
for threshold, accuracy in zip(thresholds, accuracies, strict=True):
    print(f"SP {threshold:4.0%}: balanced accuracy {accuracy:.3f}")
print(f"{len(thresholds) * cv.get_n_splits()} thresholds and folds in {seconds:.1f} s")

# %%

fig, (left, right) = plt.subplots(1, 2, figsize=(10, 3.8), layout="constrained")
left.errorbar(list(layers.values()), aucs, deviations, fmt="o", capsize=4, markersize=8)
left.set(ylabel="AUC, mean and deviation of 4 folds", title="Which layer: four trainings each")
left.margins(x=0.15)
right.plot(thresholds, accuracies, marker="o")
right.set(ylabel="balanced accuracy", xscale="log", xlabel="security parameter")
right.set_title("Which threshold: no training")
right.set_xticks(thresholds, [f"{threshold:.0%}" for threshold in thresholds])
right.set_xticks([], minor=True)
args.output.mkdir(parents=True, exist_ok=True)
fig.savefig(args.output / "plot_grid_search.png", dpi=120)
# sphinx_gallery_thumbnail_path = "images/thumbnails/plot_grid_search.png"
