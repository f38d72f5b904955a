"""Exported files: verdicts are the detector's, without skmrr and without torch."""

import json
import os
import shutil
import subprocess
import sys
import warnings

import numpy as np
import pytest
import torch
from sklearn.exceptions import NotFittedError
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import nn

import skmrr
from skmrr import (
    FixedThresholdDetector,
    LatentDefender,
    LogitsOf,
    MarginDetector,
    MRREnsemble,
    NoiseDefender,
)
from skmrr.nn import exported_files

from .table import CASES

# The others are slow tests; that torch.export takes all of them, `test_properties` tests.
QUICK = {"ensemble of all", "sparse noise", "default ensemble", "dictionary", "lid"}
COARSE = {"clip_values": (0, 1), "random_state": 0, "security_parameter": 0.05}


def needs_onnx():
    for name in exported_files.ONNX_PACKAGES:
        pytest.importorskip(name)
    if torch.__version__ < (2, 6):
        pytest.skip("torch < 2.6 translates no program")


@pytest.fixture(params=[".pt2", ".onnx"])
def suffix(request):
    if request.param == ".onnx":
        needs_onnx()
    return request.param


@pytest.fixture(scope="module")
def ensemble(net, digits):
    """An ensemble with a class that nothing was learnt of."""
    X, y = (part[:1000] for part in digits)
    members = [("replica", LatentDefender(skmrr.replicate(net), max_epochs=1), 1)]
    members += [("margin", MarginDetector(), 1)]
    members += [("density", LatentDefender(max_epochs=1, statistic="likelihood"), 0.5)]
    return MRREnsemble(net, defenders=members, **COARSE).fit(X[y != 3], y[y != 3])


@pytest.fixture(scope="module")
def margin(net, digits):
    """A detector that is exported quickly."""
    return MarginDetector(net, **COARSE).fit(*(part[:1000] for part in digits))


@pytest.fixture(scope="module")
def rows(digits):
    """Clean rows, and noise."""
    noise = np.random.default_rng(0).random((40, 1, 8, 8), dtype=np.float32)
    return np.concatenate([digits[0][1000:].astype(np.float32), noise])


@pytest.fixture(scope="module")
def exported(ensemble, rows, net, tmp_path_factory):
    """``exported(suffix)``: a file of the ensemble, written once; nothing else has changed."""
    folder = tmp_path_factory.mktemp("exported")

    def export(suffix):
        path = folder / f"a{suffix}"
        if not path.exists():
            before = ensemble.score_samples(rows)
            wants = [part.requires_grad for part in net.parameters()]
            skmrr.export(ensemble, path, rows)
            assert [part.requires_grad for part in net.parameters()] == wants
            np.testing.assert_array_equal(ensemble.score_samples(rows), before)
        assert {other.suffix for other in folder.iterdir()} <= {".pt2", ".onnx"}
        return path

    return export


def opened(path):
    return exported_files.format_of(path).read(path)


def assert_same(found, detector, X, tolerance=3e-4):
    np.testing.assert_array_equal(found["label"], detector.classify(X))
    np.testing.assert_array_equal(found["flagged"], detector.predict(X) == -1)
    np.testing.assert_allclose(found["risk"], detector.risk(X), atol=tolerance)
    assert found["in_range"].all()


@pytest.mark.parametrize(
    ("case", "suffix"),
    [
        pytest.param(
            case,
            suffix,
            marks=[pytest.mark.slow] * (case.name not in QUICK),
            id=f"{case.name} {suffix}",
        )
        for case in CASES
        for suffix in (".pt2", ".onnx")
    ],
)
def test_every_detector_exports_or_says_why_not(case, suffix, net, digits, tmp_path):
    if suffix == ".onnx":
        needs_onnx()
    X, y = digits
    detector = case.build(net).fit(X[:1000], y[:1000])
    path = tmp_path / f"detector{suffix}"
    if not case.exports:
        with pytest.raises(TypeError, match="cannot be exported: (the pursuit|its search)"):
            skmrr.export(detector, path)
        assert not list(tmp_path.iterdir())
        return
    agreement = skmrr.export(detector, path, X[1000:])
    assert agreement.n_rows == len(X) - 1000
    assert 0 < agreement.n_flagged < agreement.n_rows / 2
    assert agreement.n_at_threshold == 0


def test_answers_any_batch_at_any_threshold(suffix, exported, ensemble, rows):
    judge = opened(exported(suffix))
    assert_same(judge(rows, 0.05), ensemble, rows)
    for n in (0, 1, 2, 65):
        found = judge(rows[:n], 0.05)
        np.testing.assert_array_equal(found["label"], ensemble.classify(rows)[:n])
        assert found["member_risks"].shape == (n, 3)
    pytest.importorskip("pandas")
    np.testing.assert_allclose(
        judge(rows, 0.05)["member_risks"], ensemble.member_risks(rows), atol=3e-4
    )
    for rate in (0.01, 0.3):
        score = ensemble.score_samples(rows)
        np.testing.assert_array_equal(judge(rows, rate)["flagged"], score < np.log(rate))
    for rate in (np.nan, -1.0, 0.0, 1.0, 7.0):  # no rates: nothing is let through
        assert judge(rows, rate)["flagged"].all()


def test_unseen_class_and_unreadable_rows(suffix, exported, rows, net):
    judge = opened(exported(suffix))
    with torch.no_grad():
        is_unseen = net(torch.as_tensor(rows)).argmax(1).numpy() == 3
    found = judge(rows, 0.05)
    assert is_unseen.sum() > 20
    assert (found["label"][is_unseen] == -1).all()
    assert (found["risk"][is_unseen] == 1).all()
    spoilt = rows.copy()
    for k, value in enumerate((np.nan, np.inf, -np.inf, -0.01, 1.01)):
        spoilt[k, 0, 3, 3] = value
    spoilt[5, 0, 3, 3] = 1 + 5e-7  # rounding is no error
    again = judge(spoilt, 0.05)
    assert list(again["in_range"][:6]) == [False] * 5 + [True]
    for name, value in (("label", -1), ("risk", 1), ("flagged", True), ("member_risks", 1)):
        assert (again[name][:5] == value).all()
        np.testing.assert_allclose(again[name][6:], found[name][6:], atol=1e-6)


def test_without_classifier_in_double_precision(suffix, digits, tmp_path):
    X, y = digits[0].reshape(-1, 64).astype(np.float64), digits[1]
    defender = LatentDefender(max_epochs=1, random_state=0, security_parameter=0.05)
    defender.fit(X[:1000], y[:1000])
    path = tmp_path / f"defender{suffix}"
    agreement = skmrr.export(defender, path, X[1000:])
    assert agreement.tolerance == 1e-6
    assert agreement.risk_difference < 1e-9
    judge = opened(path)
    assert_same(judge(X[1000:], 0.05), defender, X[1000:], 1e-9)
    beyond = X[1000:1003].copy()
    beyond[1, 2] = np.inf
    assert list(judge(beyond, 0.05)["in_range"]) == [True, False, True]


class InPlace(nn.Module):
    """Works in place on its input, by functions, and answers with a dict."""

    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, x):
        return {"logits": self.net(nn.functional.relu_(x.mul_(2).div_(2)))}


def test_classifier_of_any_kind(suffix, net, digits, rows, tmp_path):
    X, y = digits
    classifier = LogitsOf(InPlace(net), "logits")
    detector = MarginDetector(classifier, **COARSE).fit(X[:1000], y[:1000])
    path = tmp_path / f"margin{suffix}"
    skmrr.export(detector, path)
    assert_same(opened(path)(rows, 0.05), detector, rows)


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_old_file_stays_after_a_failure(error, margin, tmp_path, monkeypatch):
    path = tmp_path / "a.pt2"
    path.write_text("old")

    def fail(path):
        raise error

    broken = exported_files.FORMATS[".pt2"]._replace(read=fail)
    monkeypatch.setitem(exported_files.FORMATS, ".pt2", broken)
    with pytest.raises(error):
        skmrr.export(margin, path)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_refuses_a_file_that_judges_otherwise(margin, rows, tmp_path, monkeypatch):
    genuine = exported_files.FORMATS[".pt2"]

    def read(path):
        judge = genuine.read(path)

        def lenient(x, security_parameter):
            return judge(x, security_parameter / 10)

        return lenient

    monkeypatch.setitem(exported_files.FORMATS, ".pt2", genuine._replace(read=read))
    with pytest.raises(RuntimeError, match="another verdict"):
        skmrr.export(margin, tmp_path / "a.pt2", rows)
    assert not list(tmp_path.iterdir())


def test_refuses_a_classifier_that_mixes_rows(net, digits, tmp_path):
    class Centred(nn.Module):
        def forward(self, x):
            return net(x - x.mean(0) / 2)

    X, y = digits
    detector = MarginDetector(Centred(), **COARSE)
    with pytest.warns(UserWarning, match="for what y says"):
        detector.fit(X[:1000], (y[:1000] + 5) % 10)
    with pytest.raises(RuntimeError, match="not kept"):
        skmrr.export(detector, tmp_path / "a.pt2", X[1000:])


def test_refusals_name_the_cure(net, digits, tmp_path):
    X, y = digits[0].reshape(-1, 64)[:1000], digits[1][:1000]
    detector = NoiseDefender(input_shape=(1, 8, 8), **COARSE).fit(X, y)
    with pytest.raises(ValueError, match="must end in one of .pt2, .onnx"):
        skmrr.export(detector, tmp_path / "a.pth")
    with pytest.raises(FileNotFoundError):
        skmrr.export(detector, tmp_path / "nowhere" / "a.pt2")
    with pytest.raises(TypeError, match="give the estimator_"):
        skmrr.export(FixedThresholdDetector(detector), tmp_path / "a.pt2")
    with pytest.raises(NotFittedError):
        skmrr.export(LatentDefender(), tmp_path / "a.pt2")
    with pytest.raises(ValueError, match="spans"):
        skmrr.export(detector, tmp_path / "a.pt2", 255 * X)
    scaled = make_pipeline(StandardScaler(), LatentDefender(max_epochs=1))
    piped = MRREnsemble(defenders=[("a", scaled, 1)], security_parameter=0.05).fit(X, y)
    with pytest.raises(TypeError, match="knows arrays only"):
        skmrr.export(piped, tmp_path / "a.pt2")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecated, but people have such networks
        scripted = torch.jit.trace(net, torch.zeros(2, 1, 8, 8))
        margin = MarginDetector(scripted, input_shape=(1, 8, 8), **COARSE).fit(X, y)
    with pytest.raises(TypeError, match="scripted or traced"):
        skmrr.export(margin, tmp_path / "a.pt2")

    class DependsOnValues(nn.Module):
        def forward(self, x):
            return net(x) if x.sum() > 0 else net(-x)

    moody = MarginDetector(DependsOnValues(), input_shape=(1, 8, 8), **COARSE).fit(X, y)
    with pytest.raises(TypeError, match="cannot make one graph"):
        skmrr.export(moody, tmp_path / "a.pt2")
    assert not list(tmp_path.iterdir())


ALONE = """
import sys
sys.modules.update(dict.fromkeys(sys.argv[1].split(",")))  # of which no import finds any
import numpy as np
x = np.load("x.npy")
"""
BY_TORCH = """
import torch
answer = torch.export.load("a.pt2").module()(
    torch.as_tensor(x), torch.tensor(0.05, dtype=torch.float64)
)
assert not answer["risk"].requires_grad
np.savez("answer.npz", **{name: part.numpy() for name, part in answer.items()})
"""
BY_ONNX = """
import onnxruntime
session = onnxruntime.InferenceSession("a.onnx")
answer = session.run(None, {"x": x, "security_parameter": np.array(0.05)})
names = [output.name for output in session.get_outputs()]
print(session.get_modelmeta().custom_metadata_map["skmrr"])
np.savez("answer.npz", **dict(zip(names, answer)))
"""


@pytest.mark.parametrize(
    ("suffix", "program", "blocked"),
    [
        (".pt2", BY_TORCH, "skmrr,sklearn,scipy,joblib"),
        (".onnx", BY_ONNX, "skmrr,sklearn,scipy,torch"),
    ],
)
def test_file_needs_nothing_of_ours(suffix, program, blocked, exported, ensemble, rows, tmp_path):
    if suffix == ".onnx":
        needs_onnx()
    shutil.copy(exported(suffix), tmp_path)
    np.save(tmp_path / "x.npy", rows)
    run = subprocess.run(
        [sys.executable, "-c", ALONE + program, blocked],
        cwd=tmp_path,
        env={k: v for k, v in os.environ.items() if k != "PYTHONPATH"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr[-2000:]
    with np.load(tmp_path / "answer.npz") as answer:
        assert_same(answer, ensemble, rows)
    if suffix == ".onnx":
        notes = json.loads(run.stdout)
        assert notes["members"] == ["replica", "margin", "density"]
        assert notes["security_parameter"] == 0.05


@pytest.mark.slow
def test_ten_thousand_rows(suffix, ensemble, digits, tmp_path):
    """Clean rows under noise of all strengths."""
    rng = np.random.default_rng(0)
    clean = digits[0][rng.integers(1000, 1797, 10_000)].astype(np.float32)
    noise = rng.normal(0, rng.random((10_000, 1, 1, 1)) / 3, clean.shape)
    X = (clean + noise).clip(0, 1).astype(np.float32)
    agreement = skmrr.export(ensemble, tmp_path / f"a{suffix}", X)
    assert agreement.n_rows == 10_000
    assert 500 < agreement.n_flagged < 9500
    assert agreement.n_at_threshold == 0
