"""Every example runs, at a small size, in a fresh process."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[1] / "examples"
PAGES = sorted(EXAMPLES.glob("*/*.py"))
SMALL = {
    "1_quickstart/plot_digits.py": ["--epochs", "2"],
    "1_quickstart/plot_own_model.py": ["--epochs", "2"],
    "1_quickstart/plot_harmless.py": ["--epochs", "2"],
    "2_composition/plot_ensemble.py": ["--epochs", "2"],
    "2_composition/plot_dictionary.py": ["--epochs", "2"],
    "2_composition/plot_grid_search.py": ["--epochs", "1"],
    "3_adaptive/plot_art.py": ["--epochs", "2", "--attacked", "10"],
    "3_adaptive/plot_evasion_cost.py": ["--epochs", "2", "--attacked", "4"],
    "5_service/plot_monitor.py": ["--runs", "1", "--rows", "5000"],
    "5_service/plot_cluster.py": ["--rows", "1000"],
}
SLOW = {
    "1_quickstart/plot_digits.py",  # .ci/run runs it at full size
    "1_quickstart/plot_harmless.py",
    "2_composition/plot_dictionary.py",
    "3_adaptive/plot_evasion_cost.py",
    "5_service/plot_cluster.py",
}
N_LINES = 120  # that an example stays under


def is_script(path):
    """Whether a file does something when run, unlike a module that scripts share."""
    return path.name.startswith("plot_") or 'if __name__ == "__main__":' in path.read_text("utf-8")


def test_every_example_is_listed():
    found = {str(path.relative_to(EXAMPLES)) for path in PAGES if is_script(path)}
    assert found == set(SMALL)


def test_examples_are_short():
    lengths = {path.name: len(path.read_text("utf-8").splitlines()) for path in PAGES}
    assert {name: n for name, n in lengths.items() if n >= N_LINES} == {}


@pytest.mark.parametrize(
    "example",
    [pytest.param(e, marks=pytest.mark.slow if e in SLOW else ()) for e in SMALL],
)
def test_example_runs(example, tmp_path):
    result = subprocess.run(
        [sys.executable, EXAMPLES / example, *SMALL[example], "--output", tmp_path],
        capture_output=True,
        text=True,
        env={**os.environ, "MPLBACKEND": "agg"},
        check=False,
    )
    assert result.returncode == 0, result.stderr
    assert list(tmp_path.glob("*.png"))


@pytest.mark.slow
def test_the_service_answers():
    for name in ("onnx", "onnxscript", "onnxruntime", "starlette", "httpx2"):
        pytest.importorskip(name)
    script = EXAMPLES / "5_service" / "serve.py"
    result = subprocess.run([sys.executable, script], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    alike, digit, noise, bright, refused = result.stdout.splitlines()
    assert "200 rows judged alike" in alike
    assert "'label': 0" in digit
    assert "'flagged': True" in noise
    assert "'in_range': False" in bright
    assert refused.startswith("no image 400")
