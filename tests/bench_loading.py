"""A folder of JPEG files through a DataLoader: who decodes, and how long it takes.

Numbers of workers alternate within one run; ratios of medians are what counts.
"""

import time

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset

from skmrr import MarginDetector

pytest.importorskip("PIL")
from PIL import Image

N_FILES = 200
ROUNDS = 5


class Folder(Dataset):
    """JPEG files of 640×640 pixels, read at 224×224."""

    def __init__(self, paths):
        self.paths = paths

    def __len__(self):
        return len(self.paths)

    def __getitem__(self, i):
        with Image.open(self.paths[i]) as image:
            pixels = np.asarray(image.convert("RGB").resize((224, 224)), dtype=np.float32) / 255
        return torch.as_tensor(pixels).permute(2, 0, 1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    home, generator = tmp_path_factory.mktemp("photographs"), np.random.default_rng(0)
    paths = [home / f"{k}.jpg" for k in range(N_FILES)]
    for path in paths:
        coarse = generator.integers(0, 256, (80, 80, 3), dtype=np.uint8)
        Image.fromarray(coarse).resize((640, 640)).save(path, quality=92)
    return Folder(paths)


def test_workers_decode(benchmark, folder):
    """Peer: the same rows decoded in the main process."""
    pooled = nn.Sequential(nn.AvgPool2d(32), nn.Flatten(), nn.Linear(147, 10))
    detector = MarginDetector(pooled, calibration_fraction=0, random_state=0).fit(folder)
    detector.calibrate(folder)

    def measure(n_workers):
        loader = DataLoader(folder, batch_size=32, num_workers=n_workers)
        start, own = time.perf_counter(), time.process_time()
        detector.score_samples(loader)
        return time.perf_counter() - start, time.process_time() - own

    runs = np.array([[measure(n) for n in (0, 1, 2)] for _ in range(ROUNDS)])  # round n kind
    (alone, one, two), (own, _, own_with_two) = np.median(runs, axis=0).T
    benchmark.extra_info["time, two workers / one"] = round(two / one, 2)
    benchmark.pedantic(measure, args=(2,), rounds=1)
    print(
        f"\nno worker {alone:.2f} s, one {one:.2f} s, two {two:.2f} s; processor time of the main "
        f"process {own:.2f} s without, {own_with_two:.2f} s with two"
    )
    assert own_with_two < 0.6 * own
