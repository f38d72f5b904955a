"""
On several machines
===================

Rows that do not fit one machine come as an array of Dask. Workers read their rows and score them
with a detector that comes from a file; only risks return. Here the cluster is two processes on this
machine: with ``Client("tcp://…")`` the same lines run on another one. It needs
``pip install "skmrr[distributed]"``.
"""

import argparse
from pathlib import Path
from tempfile import TemporaryDirectory

import dask
import matplotlib.pyplot as plt
import numpy as np
import torch
from dask.distributed import Client, LocalCluster
from torch import nn

import skmrr
from skmrr.datasets import load_digits_images
from skmrr.distributed import npy_rows

CHUNK = 500  # rows that a worker holds at a time


def arguments() -> argparse.Namespace:
    """Options of the command line."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rows", type=int, default=20_000)
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "output")
    return parser.parse_known_args()[0]


# %%
# The day before: fit, calibrate, save
# ------------------------------------


def prepare(folder: str, n_rows: int) -> nn.Module:
    """Save a detector, and rows to score: digits with noise that grows from the first to the last.

    Returns
    -------
    classifier : Module
        It is not in the detector's file.
    """
    X, y = load_digits_images()
    torch.manual_seed(0)
    classifier = nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
    optimizer = torch.optim.Adam(classifier.parameters(), 3e-3)
    x, labels = torch.as_tensor(X[:700]), torch.as_tensor(y[:700])
    for _ in range(200):
        optimizer.zero_grad()
        nn.functional.cross_entropy(classifier(x), labels).backward()
        optimizer.step()
    detector = skmrr.MarginDetector(classifier, clip_values=(0, 1), security_parameter=0.05)
    skmrr.save(detector.fit(X[700:1300], y[700:1300]), f"{folder}/detector.safetensors")

    rng = np.random.default_rng(0)
    rows = X[1300:][rng.integers(0, len(X) - 1300, n_rows)]
    noise = rng.standard_normal(rows.shape) * np.linspace(0, 0.5, n_rows)[:, None, None, None]
    np.save(f"{folder}/rows.npy", np.clip(rows + noise, 0, 1).astype(np.float32))
    return classifier


# %%
# Score
# -----
# Nothing is read or computed until ``dask.compute``, and then once for both results.


def score(folder: str, classifier: nn.Module) -> tuple[np.ndarray, np.ndarray]:
    """Risks and flags of all rows, by two workers."""
    detector = skmrr.load(f"{folder}/detector.safetensors", classifier=classifier)
    rows = npy_rows(f"{folder}/rows.npy", chunk_rows=CHUNK)
    risks, flags = detector.risk(rows), detector.predict(rows) == -1
    print(f"{rows.shape[0]} rows in {rows.numblocks[0]} chunks, nothing computed yet: {risks}")
    with (
        LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster,
        Client(cluster),
    ):
        risks, flags = dask.compute(risks, flags)
    same = np.abs(risks[:CHUNK] - detector.risk(np.load(f"{folder}/rows.npy")[:CHUNK])).max()
    print(f"the cluster's risks differ from this process's by {same:.0e} at most")
    return risks, flags


# %%
# Two workers start as processes of their own and read this file, so what it does stands below.

if __name__ == "__main__":
    args = arguments()
    with TemporaryDirectory() as folder:
        risks, flags = score(folder, prepare(folder, args.rows))
    parts = np.array_split(flags, 20)
    print(f"flagged: {parts[0].mean():.1%} of the first rows, {parts[-1].mean():.1%} of the last")

    fig, axis = plt.subplots(figsize=(8, 4), layout="constrained")
    noise = np.linspace(0, 0.5, len(risks))
    axis.hexbin(noise, risks, gridsize=(40, 20), cmap="Blues", bins="log")
    axis.plot(np.linspace(0, 0.5, 20), [part.mean() for part in parts], "C3", label="share flagged")
    axis.axhline(0.95, color="black", linestyle="--", label="alarm, at SP = 5%")
    axis.set(xlabel="standard deviation of the noise", ylabel="risk")
    axis.set_title(f"{len(risks)} rows scored by two workers")
    axis.legend(loc="lower right", framealpha=1)
    args.output.mkdir(parents=True, exist_ok=True)
    fig.savefig(args.output / "plot_cluster.png", dpi=120)
# sphinx_gallery_thumbnail_path = "images/thumbnails/plot_cluster.png"
