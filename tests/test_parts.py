"""Verdicts by parts: a folder of Parquet files, which a run that was cut off goes on with."""

import json
import os
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

import skmrr
from skmrr.cli import app
from skmrr.cli.classifiers import load_classifier
from skmrr.cli.data import open_data
from skmrr.cli.settings import Settings

parquet = pytest.importorskip("pyarrow.parquet")

NET = """
import time
from pathlib import Path
from torch import nn


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.out = nn.Linear(64, 10)

    def forward(self, x):
        if Path(__file__).with_name("slow").exists() and len(x) > 2:
            time.sleep(0.5)
        return self.out(x.flatten(1))
"""
WORDS = ("--format", "parquet", "--partition", 100, "--output", "parts")


@pytest.fixture
def home(tmp_path, digits):
    X, y = digits
    (tmp_path / "net_of_parts.py").write_text(NET)
    settings = Settings(tmp_path, factory="net_of_parts:Net", weights="w.pt", clip_values=[0, 1])
    (tmp_path / "skmrr.toml").write_text(settings.toml())
    torch.manual_seed(0)
    torch.save({"out.weight": torch.randn(10, 64), "out.bias": torch.zeros(10)}, tmp_path / "w.pt")
    detector = skmrr.MarginDetector(
        load_classifier(settings), security_parameter=0.05, random_state=0, clip_values=(0, 1)
    ).fit(X[:1000])
    skmrr.save(detector, tmp_path / "detector.safetensors")
    np.save(tmp_path / "rows.npy", X[1000:1450].copy())
    return tmp_path


@pytest.fixture
def run(home, monkeypatch):
    monkeypatch.chdir(home)

    def run(*words, code=0):
        outcome = CliRunner().invoke(app, ["score", *map(str, words)])
        assert outcome.exit_code == code, f"{outcome.stderr}{outcome.exception!r}"
        return outcome.stdout, outcome.stderr

    return run


def written(home):
    return parquet.read_table(home / "parts").to_pylist()


def expected(run):
    return [json.loads(line) for line in run("rows.npy", "--format", "jsonl")[0].splitlines()]


def is_the_same(home, run):
    found = written(home)
    assert [row["file"] for row in found] == [f"rows.npy[{k}]" for k in range(450)]
    for row, other in zip(found, expected(run), strict=True):
        assert row["risk"] == row["risk_MarginDetector"]
        np.testing.assert_allclose(row["risk"], other["risk"], atol=1e-5)
        assert all(row[key] == other[key] for key in ("file", "label", "flagged", "alarm"))


def test_parts_hold_what_lines_hold(home, run):
    _, stderr = run("rows.npy", *WORDS)
    names = sorted(file.name for file in (home / "parts").iterdir())
    assert names == ["_parts.json", *(f"part-{k:08d}.parquet" for k in range(5))]
    assert "450 rows" in stderr
    is_the_same(home, run)


def test_parts_that_are_there_are_not_scored_again(home, run, monkeypatch):
    _, first = run("rows.npy", *WORDS)
    before = {file.name: file.stat().st_mtime_ns for file in (home / "parts").iterdir()}
    (home / "parts" / "part-00000002.parquet").unlink()
    scored = []
    judge = skmrr.MarginDetector._judge
    monkeypatch.setattr(
        skmrr.MarginDetector, "_judge", lambda self, *rows: scored.append(1) or judge(self, *rows)
    )
    _, second = run("rows.npy", *WORDS)
    assert first == second
    after = {file.name: file.stat().st_mtime_ns for file in (home / "parts").iterdir()}
    assert [name for name in after if after[name] != before[name]] == ["part-00000002.parquet"]
    assert len(scored) <= 2  # the part's, and the trial of loading
    is_the_same(home, run)


@pytest.mark.parametrize(
    "words",
    [
        ("rows.npy", *WORDS[:3], 50, *WORDS[4:]),
        ("rows.npy", *WORDS, "--security-parameter", 0.2),
        ("others.npy", *WORDS),
    ],
)
def test_parts_of_another_run_are_refused(home, run, words):
    np.save(home / "others.npy", np.load(home / "rows.npy")[:300])
    run("rows.npy", *WORDS)
    assert "parts of another run" in run(*words, code=2)[1]


@pytest.mark.parametrize(
    ("words", "cure"),
    [
        (("--partition", 10), "together"),
        (("--format", "parquet"), "together"),
        (("--scheduler", "tcp://nowhere:1"), "together"),
        ((*WORDS, "--monitor", "state.json"), "--monitor"),
        ((*WORDS, "--workers", 2), "--workers"),
    ],
)
def test_what_does_not_go_together_is_refused(run, words, cure):
    assert cure in run("rows.npy", *words, code=2)[1]


def test_rows_that_cannot_be_read(home, run):
    X = np.load(home / "rows.npy")
    X[[120, 333]] = np.nan
    np.save(home / "rows.npy", X)
    assert "rows.npy[120]" in run("rows.npy", *WORDS, code=3)[1]
    assert len(written(home)) == 100  # the part before it stays
    for _ in range(2):
        (home / "parts" / "_parts.json").unlink(missing_ok=True)
        for file in (home / "parts").glob("*.parquet"):
            file.unlink()
        _, stderr = run("rows.npy", *WORDS, "--on-error", "skip")
    assert "2 not readable" in stderr
    assert "rows.npy[333]" in stderr
    assert len(written(home)) == 448
    assert "2 not readable" in run("rows.npy", *WORDS, "--on-error", "skip")[1]


def test_flagged_rows_of_parts_count_for_scripts(run):
    for _ in range(2):
        run("rows.npy", *WORDS, "--fail-on-flagged", code=4)


def test_arrays_travel_by_their_names(home):
    import pickle

    settings = Settings(home, factory="net_of_parts:Net", clip_values=[0, 1])
    data = open_data(home / "rows.npy", settings)
    sent = pickle.dumps(data.at(range(10, 20)))
    assert len(sent) < 2000
    assert torch.equal(pickle.loads(sent)[3], data[13])


# On a cluster


@pytest.fixture
def scheduler(home):
    """Address and process of a scheduler with two workers, a process of their own each."""
    pytest.importorskip("distributed")
    program = [sys.executable, "-m", "distributed.cli.dask_scheduler"]
    words = ("--port", "0", "--no-dashboard", "--scheduler-file", home / "scheduler.json")
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    started = [subprocess.Popen([*program, *words], **quiet)]
    worker = [sys.executable, "-m", "distributed.cli.dask_worker"]
    words = ("--nthreads", "1", "--no-nanny", "--no-dashboard", "--death-timeout", "60")
    for _ in range(2):
        line = [*worker, *words, "--scheduler-file", home / "scheduler.json"]
        started.append(subprocess.Popen(line, **quiet))
    try:
        until = time.monotonic() + 60
        while not (home / "scheduler.json").exists() and time.monotonic() < until:
            time.sleep(0.1)
        yield json.loads((home / "scheduler.json").read_text())["address"], started
    finally:
        for process in started:
            process.kill()
            process.wait()


def kill_when_written(process, folder, n):
    """Kill a process once so many parts are there."""

    def wait():
        while len(list(folder.glob("part-*"))) < n:
            time.sleep(0.02)
        os.kill(process.pid, signal.SIGKILL)

    thread = threading.Thread(target=wait, daemon=True)
    thread.start()


@pytest.mark.slow
def test_a_worker_that_is_killed_costs_no_part(home, run, scheduler):
    address, (_, victim, _) = scheduler
    (home / "slow").touch()
    words = (*WORDS[:3], 30, *WORDS[4:])
    kill_when_written(victim, home / "parts", 3)
    run("rows.npy", *words, "--scheduler", address)
    assert victim.poll() is not None or victim.wait(5)
    assert len(list((home / "parts").glob("part-*"))) == 15
    is_the_same(home, run)


@pytest.mark.slow
def test_a_scheduler_that_is_gone_leaves_the_parts(home, run, scheduler, monkeypatch):
    import dask

    address, (victim, *_) = scheduler
    (home / "slow").touch()
    words = (*WORDS[:3], 10, *WORDS[4:])
    kill_when_written(victim, home / "parts", 3)
    with dask.config.set({"distributed.comm.timeouts.connect": "3s"}):
        _, stderr = run("rows.npy", *words, "--scheduler", address, code=2)
    assert "is gone" in stderr
    n_written = len(list((home / "parts").glob("part-*")))
    assert 3 <= n_written < 45
    (home / "slow").unlink()
    run("rows.npy", *words)
    is_the_same(home, run)


@pytest.mark.slow
def test_a_bad_row_on_a_cluster_is_named(home, run, scheduler):
    X = np.load(home / "rows.npy")
    X[120] = np.nan
    np.save(home / "rows.npy", X)
    assert "rows.npy[120]" in run("rows.npy", *WORDS, "--scheduler", scheduler[0], code=3)[1]
