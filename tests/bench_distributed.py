"""Scoring and fitting over Dask, two workers of one thread, beside plain batches.

    python tests/bench_distributed.py --output docs/results/distributed

All sides of a comparison alternate within the run; medians of the rounds count. Each comparison
is checked for equal bits. The tables are written as CSV, from which docs/how_to/many_machines.md
is made.
"""

import argparse
import csv
import os
import pickle
import platform
import resource
import subprocess
import tempfile
import time
from pathlib import Path

import dask
import distributed
import joblib
import numpy as np
import torch
from sklearn.base import clone
from torch import nn
from tqdm.auto import tqdm

import skmrr
from skmrr import LatentDefender, MRREnsemble, default_defenders
from skmrr.distributed import npy_rows

CHUNK = 4096
PLANNED = 10**8
MACHINES = (1, 4, 16)
THREADS = 16  # of each planned machine
# Dask's nannies have glibc give freed memory back at once, and take it again for the next step of
# a network; both numbers have to be set, or torch's larger tensors are given back all the same.
KEEP_MEMORY = {"MALLOC_TRIM_THRESHOLD_": str(2**28), "MALLOC_MMAP_THRESHOLD_": str(2**25)}


def victim():
    """A network for images of 1×28×28."""
    torch.manual_seed(0)
    return nn.Sequential(
        *(nn.Conv2d(1, 8, 3, stride=2), nn.ReLU(), nn.Conv2d(8, 16, 3, stride=2), nn.ReLU()),
        *(nn.Flatten(), nn.Linear(576, 64), nn.ReLU(), nn.Linear(64, 10)),
    ).eval()


def ensemble(n_latent, latent):
    """Narrow defenders, and the margin."""
    network = victim()
    members = default_defenders(network, latent=latent, n_latent=n_latent, width=0.25)
    return MRREnsemble(network, defenders=members, random_state=0, security_parameter=0.05)


def clean(n, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (n, 1, 28, 28), dtype=np.uint8)


def write_rows(path, n):
    """Write rows without holding them."""
    rows = np.lib.format.open_memmap(path, "w+", np.uint8, (n, 1, 28, 28))
    for start in range(0, n, 50_000):
        rows[start : start + 50_000] = clean(min(50_000, n - start), start)
    rows.flush()


def processor_seconds(clients):
    """Seconds of processor time that all workers have taken so far."""
    return sum(sum(client.run(time.process_time).values()) for client in clients)


def peaks(client):
    """Most memory that each worker has had so far, MiB."""
    found = client.run(lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
    return max(found.values())


class Measured:
    """Wall and processor seconds of sides that alternate."""

    def __init__(self, clients, bar):
        self.clients, self.bar = clients, bar

    def __call__(self, sides, rounds):
        """Medians of (wall, processor) by side; raise if the sides do not agree bit for bit."""
        taken = {name: [] for name in sides}
        for _ in range(rounds):
            results = {}
            for name, run in sides.items():
                self.bar.set_postfix_str(name)
                wall, own = time.perf_counter(), time.process_time()
                theirs = processor_seconds(self.clients)
                results[name] = run()
                theirs = processor_seconds(self.clients) - theirs
                own = time.process_time() - own
                taken[name].append((time.perf_counter() - wall, own + theirs))
                self.bar.update()
            first, *others = results.values()
            for other in others:
                np.testing.assert_array_equal(first, other)
        return {name: np.median(times, axis=0) for name, times in taken.items()}


def scoring(one, two, measured, path, sizes, rounds):
    """Rows and seconds: plain batches, one worker, two workers."""
    detector = ensemble(1, LatentDefender(realign=False)).fit(clean(2000))
    whole = np.load(path, mmap_mode="r")
    table = []
    for n in sizes:
        rows = npy_rows(path, chunk_rows=CHUNK)[:n]
        sides = {
            "plain batches": lambda n=n: detector.risk(whole[:n]),
            "one worker": lambda rows=rows: one.compute(detector.risk(rows)).result(),
            "two workers": lambda rows=rows: two.compute(detector.risk(rows)).result(),
        }
        if n == sizes[0]:
            measured(sides, 1)  # imports, and the first passes of networks
        for side, (wall, processor) in measured(sides, max(1, rounds if n < 10**6 else 1)).items():
            table.append(
                {
                    "rows": n,
                    "side": side,
                    "seconds": round(wall, 2),
                    "processor seconds": round(processor, 2),
                    "rows per second": round(n / wall),
                    "peak of a worker, MiB": round(max(peaks(one), peaks(two))),
                }
            )
    return table, detector


def members(measured, counts, rounds):
    """Latent members and seconds of plain batches."""
    X = clean(10_000)
    made = {n: ensemble(n, LatentDefender(realign=False)).fit(X[:2000]) for n in counts}
    table = []
    for n, detector in made.items():
        (seconds,) = measured({f"{n} members": lambda d=detector: d.risk(X)}, rounds).values()
        table.append(
            {
                "latent members": n,
                "processor seconds": round(seconds[1], 2),
                "rows per processor second": round(len(X) / seconds[1]),
            }
        )
    return table


def fitting(one, two, measured, n_rows, rounds):
    """Eight narrow members, fitted here, by one worker and by two."""

    def sides(n_members, X):
        template = ensemble(n_members, LatentDefender(max_epochs=1))

        def fitted(client):
            with joblib.parallel_config("dask", client=client):
                return clone(template).fit(X).score_samples(X[:1000])

        return {
            "here": lambda: clone(template).fit(X).score_samples(X[:1000]),
            "one worker": lambda: fitted(one),
            "two workers": lambda: fitted(two),
        }

    measured(sides(2, clean(200)), 1)  # the first optimizer imports a great part of torch
    return [
        {"members": 8, "rows": n_rows, "side": side}
        | {"seconds": round(wall, 2), "processor seconds": round(processor, 2)}
        for side, (wall, processor) in measured(sides(8, clean(n_rows)), rounds).items()
    ]


def travelling(detector, repeats=5):
    """A detector as a pickle, as it is in the graph, and as a saved file."""
    folder = tempfile.TemporaryDirectory()
    path = Path(folder.name, "detector.safetensors")
    pickled = pickle.dumps(detector, 5)
    runs = {
        "pickle": (lambda: pickle.dumps(detector, 5), lambda: pickle.loads(pickled)),
        "saved file": (
            lambda: skmrr.save(detector, path),
            lambda: skmrr.load(path, classifier=detector.classifier),
        ),
    }
    table = []
    for name, steps in runs.items():
        seconds = [[], []]
        for _ in range(repeats):
            for step, taken in zip(steps, seconds, strict=True):
                start = time.process_time()
                step()
                taken.append(time.process_time() - start)
        size = len(pickled) if name == "pickle" else path.stat().st_size
        out, into = (round(1000 * float(np.median(taken)), 1) for taken in seconds)
        table.append({"way": name, "KiB": round(size / 1024), "write, ms": out, "read, ms": into})
    folder.cleanup()
    return table


def plan(rates):
    """Hours for a hundred million images by the rows that a thread scores in a second."""
    table = []
    for what, rate in rates.items():
        hours = PLANNED / rate / 3600
        row = {"detector": what, "rows per thread and second": round(rate)}
        row |= {"thread hours": round(hours, 1)}
        row |= {f"hours, {n} × {THREADS} threads": round(hours / n / THREADS, 2) for n in MACHINES}
        table.append(row)
    return table


def write(folder, name, table):
    with (folder / f"{name}.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(table[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(table)
    print(f"\n{name}")
    for row in table:
        print("  ", ", ".join(f"{key}: {value}" for key, value in row.items()))


def conditions(args, seconds):
    found = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False
    )
    made = {
        "rows": " ".join(map(str, args.rows)),
        "rounds": args.rounds,
        "rows fitted on": args.fitted,
        "commit": found.stdout.strip(),
        "processor": f"{platform.machine()}, {os.cpu_count()} threads",
        "load before": round(args.load, 1),
        "Python": platform.python_version(),
        "torch": torch.__version__,
        "dask": dask.__version__,
        "processor seconds of all": round(seconds),
    }
    return [{"what": key, "value": value} for key, value in made.items()]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, nargs="+", default=[10**4, 10**5, 10**6])
    parser.add_argument("--members", type=int, nargs="+", default=[1, 2, 4, 8, 16])
    parser.add_argument(
        "--fitted", type=int, default=20_000, help="rows that members are fitted on"
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--output", type=Path, default=Path("results/distributed"))
    args = parser.parse_args()
    args.load = os.getloadavg()[0]
    args.output.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    os.environ.update(KEEP_MEMORY)  # which the workers inherit
    options = {"threads_per_worker": 1, "dashboard_address": None, "silence_logs": 50}
    with (
        tempfile.TemporaryDirectory() as folder,
        distributed.LocalCluster(n_workers=1, **options) as alone,
        distributed.LocalCluster(n_workers=2, **options) as pair,
        distributed.Client(alone) as one,
        distributed.Client(pair) as two,
        tqdm(desc="measuring", unit=" runs") as bar,
    ):
        measured = Measured([one, two], bar)
        path = Path(folder, "rows.npy")
        write_rows(path, max(args.rows))
        of_rows, detector = scoring(one, two, measured, path, args.rows, args.rounds)
        write(args.output, "scoring", of_rows)
        write(args.output, "travelling", travelling(detector))
        of_members = members(measured, args.members, args.rounds)
        write(args.output, "members", of_members)
        of_fits = fitting(one, two, measured, args.fitted, args.rounds)
        write(args.output, "fitting", of_fits)
        seconds = time.process_time() + processor_seconds([one, two])
    rates = {
        f"{row['latent members']} narrow members": row["rows per processor second"]
        for row in of_members
    }
    write(args.output, "plan", plan(rates))
    write(args.output, "conditions", conditions(args, seconds))


if __name__ == "__main__":
    main()
