"""
A vision transformer
====================

A classifier that convolves nothing: a small vision transformer, trained here on MNIST, which
is downloaded where it is missing. Nothing is said to the ensemble but the classifier; it finds the
checkpoint by itself, at the input of the linear layer that makes the logits.
"""

import argparse

import numpy as np
import pandas as pd
import torch
from torch import nn
from torch.nn import functional

from skmrr import LatentDefender, MRREnsemble
from skmrr.art import as_art_classifier, paper_attacks, run_attacks
from skmrr.bench.images import load_mnist
from skmrr.evaluation import Successes, evaluate_detection, scoring_cost

parser = argparse.ArgumentParser()
parser.add_argument("--train", type=int, default=30_000, help="digits to train the classifier on")
parser.add_argument("--fit", type=int, default=10_000, help="digits to fit the ensemble on")
parser.add_argument("--epochs", type=int, default=8)
parser.add_argument("--attacked", type=int, default=150, help="digits to attack")
parser.add_argument("--seed", type=int, default=0)
args, _ = parser.parse_known_args()


class VisionTransformer(nn.Module):
    """Patches of 7×7 pixels and a class token."""

    def __init__(self, dim=64, depth=4):
        super().__init__()
        self.embed = nn.Conv2d(1, dim, 7, stride=7)
        self.token = nn.Parameter(torch.zeros(1, 1, dim))
        self.position = nn.Parameter(0.02 * torch.randn(1, 17, dim))
        layer = nn.TransformerEncoderLayer(dim, 4, 2 * dim, dropout=0.0, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, depth, enable_nested_tensor=False)
        self.norm = nn.LayerNorm(dim)
        self.head = nn.Linear(dim, 10)

    def forward(self, x):
        patches = self.embed(x).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.token.expand(len(x), -1, -1), patches], dim=1) + self.position
        return self.head(self.norm(self.encoder(tokens)[:, 0]))


# %%
# The classifier
# --------------

torch.manual_seed(args.seed)
X, y = load_mnist("train")
X_train, y_train = torch.as_tensor(X[: args.train]), torch.as_tensor(y[: args.train])
victim = VisionTransformer()
optimizer = torch.optim.Adam(victim.parameters(), 1e-3)
for _ in range(args.epochs):
    for rows in torch.randperm(len(X_train)).split(128):
        optimizer.zero_grad()
        functional.cross_entropy(victim(X_train[rows]), y_train[rows]).backward()
        optimizer.step()
victim.eval()

# %%
# The ensemble: fitted on images that trained the classifier, calibrated on others
# --------------------------------------------------------------------------------

X_test, y_test = load_mnist("test")
ensemble = MRREnsemble(
    victim,
    estimator=LatentDefender(
        exploration_radius="auto",
        transfer_radius="auto",
        max_epochs=args.epochs,
        training_batch_size=128,
    ),
    clip_values=(0, 1),
    calibration_fraction=0,
    random_state=args.seed,
).fit(X[: args.fit], y[: args.fit])
ensemble.calibrate(X[-args.fit :])  # MNIST's order is random: images new to both
print(f"scoring costs {scoring_cost(ensemble, X_test[:500]):.2f} passes of the classifier")

# %%
# Attacks that see the classifier alone
# -------------------------------------

with torch.no_grad():
    decided = torch.cat([victim(x) for x in torch.as_tensor(X_test).split(500)]).argmax(1)
is_right = decided.numpy() == y_test
print(f"the classifier is right on {is_right.mean():.1%}")
rows = np.flatnonzero(is_right)[: args.attacked]
suite = paper_attacks(jsma=(), carlini=(0, 10), max_iter=100, search_steps=4)
wrapped = as_art_classifier(victim, (1, 28, 28), 10, clip_values=(0, 1))
found = run_attacks(wrapped, suite, X_test[rows], y_test[rows])
attacks = {name: Successes.of(result, rows) for name, result in found.items()}
outcome = evaluate_detection(
    {"MRREnsemble": ensemble}, X_test, y_test, attacks, channels={"raw": None}
)

pd.set_option("display.width", 120)
columns = ["attack", "n_rows", "success_rate", "auc", "tpr_0.01"]
print(outcome.detection[columns].round(3).to_string(index=False))
clean = outcome.flagged["rows"] == "clean"
print(outcome.flagged[clean].round(4).to_string(index=False))
