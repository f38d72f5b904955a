"""
A thousand classes of photographs
=================================

A classifier of ImageNet has a thousand classes, and hardly anybody has clean photographs of them
all. Here EfficientNet-Lite0 is guarded by an ensemble fitted on six hundred photographs, most of
them of classes that the others do not show. It needs two files, which the
how-to page on reproducing results names, and ``pip install "skmrr[imagenet]"``.

Beside the classifier's own margin the ensemble looks at the margin of a copy of the classifier,
which sees the photograph at three quarters of its size: what an attack has fitted to the pixels,
another grid of pixels shows less of. So few photographs could teach the copy less than it knows
already, and it is left as it is.
"""

import argparse
import resource
import time

import numpy as np
import pandas as pd

from skmrr import MRREnsemble
from skmrr.art import as_art_classifier, paper_attacks, run_attacks
from skmrr.bench.images import load_imagenette, load_nips2017
from skmrr.bench.victims import predict, read_efficientnet
from skmrr.evaluation import Successes, evaluate_detection, scoring_cost

parser = argparse.ArgumentParser()
parser.add_argument("--fit", type=int, default=600, help="photographs to fit on")
parser.add_argument("--calibrate", type=int, default=450, help="photographs to calibrate on")
parser.add_argument("--attacked", type=int, default=40, help="photographs to attack")
parser.add_argument("--seed", type=int, default=0)
args, _ = parser.parse_known_args()

# %%
# Photographs and classifier
# --------------------------
# A photograph of each class, and fifty of each of ten classes, none of them in ILSVRC's training
# set. All thousand logits of the classifier are kept.

parts = load_nips2017(), load_imagenette("val", target="ilsvrc")
X, y = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
order = np.random.default_rng(args.seed).permutation(len(y))
ends = np.cumsum([args.fit, args.calibrate])
fit, new, test = np.split(order, ends)
victim = read_efficientnet(range(1000))
is_right = predict(victim, X[test]) == y[test]
print(f"{len(np.unique(y[fit]))} classes to fit on; classifier right on {is_right.mean():.1%}")

# %%
# The classifier's margin, and that of its smaller self
# -----------------------------------------------------

start = time.perf_counter()
ensemble = MRREnsemble(
    victim,
    clip_values=(0, 1),
    calibration_fraction=0,
    random_state=args.seed,
    verbose=True,
).fit(X[fit], y[fit])
minutes = (time.perf_counter() - start) / 60
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 2**30
print(f"fitted in {minutes:.1f} minutes; at most {peak:.1f} GiB, the photographs included")
ensemble.calibrate(X[new])
cost = scoring_cost(ensemble, X[test][:64])
print(f"{ensemble.batch_size_} rows a pass; scoring costs {cost:.2f} passes of the classifier")

# %%
# Attacks that see the classifier alone
# -------------------------------------

EPS = tuple(n / 255 for n in (2, 4, 8))
rows = np.flatnonzero(is_right)[: args.attacked]
suite = paper_attacks(
    fgsm=EPS,
    bim=EPS,
    bim_steps=(4, 10),
    deepfool=None,
    jsma=(),
    carlini=(0,),
    learning_rate=0.005,
    initial_const=0.01,
    max_iter=30,
    search_steps=3,
)
wrapped = as_art_classifier(victim, X.shape[1:], 1000, clip_values=(0, 1))
found = run_attacks(wrapped, suite, X[test][rows], y[test][rows], batch_size=10, verbose=True)
attacks = {name: Successes.of(result, rows) for name, result in found.items()}
outcome = evaluate_detection(
    {"MRREnsemble": ensemble}, X[test], y[test], attacks, channels={"raw": None}
)

pd.set_option("display.width", 120)
columns = ["attack", "n_rows", "success_rate", "auc", "tpr_0.01"]
print(outcome.detection[columns].to_string(index=False))
print(outcome.flagged.to_string(index=False))
