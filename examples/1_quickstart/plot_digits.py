"""
Is my classifier being fooled?
==============================

Train a small network on scikit-learn's bundled digits, put a detector beside it, attack the network
and see who notices. Then save the detector, and score in another process.
"""

import argparse
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import matplotlib.pyplot as plt
import numpy as np
import torch
from sklearn.model_selection import train_test_split
from torch import nn

import skmrr
from skmrr.datasets import load_digits_images
from skmrr.evaluation import DetectionRocDisplay, RiskHistogramDisplay, false_alarm_interval

parser = argparse.ArgumentParser()
parser.add_argument("--epochs", type=int, default=60, help="of the network")
parser.add_argument("--output", type=Path, default=Path(__file__).parent / "output")
args, _ = parser.parse_known_args()
torch.manual_seed(0)
torch.set_num_threads(1)  # images of 8×8 are too small to share among threads

# %%
# A classifier that knows nothing of all this
# -------------------------------------------
# 797 images train it, 600 will calibrate the detector, 400 test both.

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
# A detector beside it
# --------------------
# It learns from clean images alone. Those that the network has not seen decide what is odd.

ensemble = skmrr.MRREnsemble(classifier, clip_values=(0, 1), calibration_fraction=0, random_state=0)
ensemble.fit(X_train, y_train).calibrate(X_new)

# ``security_parameter`` is the promised rate of false alarms. To change it costs nothing.
print("false alarms on clean test images: promised, measured, and what chance allows (99 %)")
for rate in (0.01, 0.05, 0.1):
    alarms = np.mean(ensemble.set_params(security_parameter=rate).predict(X_test) == -1)
    low, high = false_alarm_interval(rate, len(X_test), n_calibration=len(X_new) // 2)
    print(f"  {rate:4.0%}   {alarms:5.1%}   [{low:.1%}, {high:.1%}]")

# %%
# An attacker
# -----------
# Each pixel moves by ε, to where the network errs more. Only successes count: images that were
# classified rightly and no longer are.

ensemble.set_params(security_parameter=0.05)
x, labels = torch.as_tensor(X_test).requires_grad_(), torch.as_tensor(y_test)
logits = classifier(x)
(gradient,) = torch.autograd.grad(nn.functional.cross_entropy(logits, labels), x)
clean = ensemble.score_samples(X_test)
fig, (left, right) = plt.subplots(1, 2, figsize=(11, 4.2), layout="constrained")
print("\nε      fools   of these flagged, with 5 % false alarms promised")
for eps in (0.05, 0.1, 0.2):
    attacked = (x + eps * gradient.sign()).clamp(0, 1).detach()
    fooled = (logits.argmax(1) == labels) & (classifier(attacked).argmax(1) != labels)
    score = ensemble.score_samples(attacked[fooled])
    print(f"{eps:4}   {fooled.double().mean():5.1%}   {np.mean(score < ensemble.offset_):.1%}")
    truth, scores = np.repeat([0, -1], [len(clean), len(score)]), np.r_[clean, score]
    DetectionRocDisplay.from_predictions(truth, scores, name=f"ε = {eps}", ax=right)
RiskHistogramDisplay.from_predictions(
    truth, scores, security_parameters=[0.05], name=f"ε = {eps}", ax=left, bins=40
)
left.set(yscale="log", title="Risk of clean and attacked images")
right.set(xlim=(None, 1), ylim=(0.5, 1.01), title="Who notices, and at what price")
args.output.mkdir(parents=True, exist_ok=True)
fig.savefig(args.output / "plot_digits.png", dpi=120)

# %%
# In another process
# ------------------
# The detector's file holds no code and not the classifier, which comes as it always does.

SERVICE = """
import numpy as np, skmrr, torch
classifier = torch.load("classifier.pt", weights_only=False)
ensemble = skmrr.load("detector.safetensors", classifier=classifier)
np.save("risks.npy", ensemble.risk(np.load("images.npy")))
"""
with TemporaryDirectory() as folder:
    torch.save(classifier, f"{folder}/classifier.pt")
    skmrr.save(ensemble, f"{folder}/detector.safetensors")
    np.save(f"{folder}/images.npy", X_test)
    subprocess.run([sys.executable, "-c", SERVICE], cwd=folder, check=True)
    difference = np.abs(np.load(f"{folder}/risks.npy") - ensemble.risk(X_test)).max()
print(f"\nsaved, loaded in another process: risks differ by {difference:g} at most")
print(f"picture: {args.output / 'plot_digits.png'}")
print("next: 1. plot_own_model.py, your own network  2. plot_harmless.py, JPEG and noise raise no")
print("alarm  3. ../3_adaptive/plot_evasion_cost.py, an attacker who knows the detector")
# sphinx_gallery_thumbnail_path = "images/thumbnails/plot_digits.png"
