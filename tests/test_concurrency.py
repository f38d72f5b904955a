"""One fitted detector asked by many at once: each gets what one gets, and memory stays flat."""

import json
import os
import pickle
import subprocess
import sys

import numpy as np
import pytest

from .table import default_ensemble

# Threads that share the detector of this process: requests a second, growth of its memory, and
# requests whose verdicts are others than those of one at a time.
SERVE = """
import json, pickle, sys, time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
import numpy as np, torch
torch.set_num_threads(1)
sys.setswitchinterval(1e-4)
with open(sys.argv[1], "rb") as file:
    detector, requests, expected = pickle.load(file)
n_threads, n_requests = map(int, sys.argv[2:])

def n_same(first, n):  # a future for each request would take more memory than all else
    asked = (i % len(requests) for i in range(first, n, n_threads))
    return sum(np.array_equal(detector.predict(requests[k]), expected[k]) for k in asked)

def resident():
    statm = Path("/proc/self/statm")
    return int(statm.read_text().split()[1]) * 4096 if statm.exists() else 0

with ThreadPoolExecutor(n_threads) as pool:
    everyone = range(n_threads)
    list(pool.map(n_same, everyone, [200] * n_threads))
    before, start = resident(), time.perf_counter()
    n_right = sum(pool.map(n_same, everyone, [n_requests] * n_threads))
    seconds = time.perf_counter() - start
    grown = resident() - before
print(json.dumps([n_requests - n_right, n_requests / seconds, grown]))
"""
FLAT = 2**25  # bytes that an allocator may keep for later


@pytest.fixture(scope="module")
def service(net, digits, tmp_path_factory):
    """File with a detector, requests of one to nine rows, and the verdict of each by itself."""
    X, y = digits
    detector = default_ensemble(net).fit(X[:1000], y[:1000])
    rng = np.random.default_rng(0)
    noise = rng.random((2000, 1, 8, 8), dtype=np.float32)
    mixed = np.where(rng.random((2000, 1, 1, 1)) < 0.5, noise, X[rng.integers(1000, 1797, 2000)])
    requests = np.split(mixed, np.cumsum(rng.integers(1, 10, 350)))[:-1]
    requests = [request for request in requests if len(request)]
    verdicts = [detector.predict(request) for request in requests]
    assert 0.1 < np.mean(np.concatenate(verdicts) == -1) < 0.9
    path = tmp_path_factory.mktemp("service") / "detector"
    path.write_bytes(pickle.dumps((detector, requests, verdicts)))
    return path


@pytest.mark.parametrize("n_processes", [1, 2])
@pytest.mark.parametrize("n_requests", [600, pytest.param(100_000, marks=pytest.mark.slow)])
def test_every_verdict_is_that_of_one_at_a_time(service, n_processes, n_requests):
    """Eight threads in each process, which share all requests."""
    share = str(n_requests // n_processes)
    command = [sys.executable, "-c", SERVE, str(service), "8", share]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    running = [
        subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
        for _ in range(n_processes)
    ]
    answers = [json.loads(process.communicate()[0]) for process in running]
    n_wrong, throughput, grown = np.transpose(answers)
    print(
        f"\n{n_processes} processes of 8 threads: {throughput.sum():.0f} requests a second, "
        f"memory grown by {grown.max() / 2**20:.1f} MiB"
    )
    assert n_wrong.sum() == 0
    assert grown.max() < FLAT
