"""A detector that is saved and loaded again is the same; see test_damaged_files.py for others."""

import copy
import json
import pickle
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import joblib
import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.frozen import FrozenEstimator
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import nn
from torch.nn.utils.parametrizations import spectral_norm

import skmrr
from skmrr import (
    CertifiedDefender,
    FeatureExtractor,
    FixedThresholdDetector,
    LatentDefender,
    LogitsOf,
    MarginDetector,
    MRREnsemble,
    StatisticDetector,
    detector_files,
    replicate,
)
from skmrr.detector_files import KEY, digest_of
from skmrr.harmless import Brightness, Change
from skmrr.nn import IntervalMap, Statistic
from skmrr.persistence import register

from .table import BRIEF, CASES, SHARED, plain_network

pytestmark = pytest.mark.filterwarnings("ignore:The autoencoder misses")


class Block(nn.Module):
    """A part of somebody's network: no layer of torch."""

    def __init__(self, width, activation=nn.functional.relu):
        super().__init__()
        self.convolution = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.normalisation = nn.BatchNorm2d(width)
        self.activation = activation

    def forward(self, x):
        return x + self.activation(self.normalisation(self.convolution(x)))


class Residual(nn.Module):
    """Somebody's network, with blocks that differ by a function alone."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(1, 8, 3, padding=1)
        self.blocks = nn.Sequential(Block(8), Block(8, nn.functional.silu), Block(8))
        self.head = nn.Linear(8, 10)

    def forward(self, x):
        return self.head(self.blocks(self.stem(x)).mean((2, 3)))


class Recurrent(nn.Module):
    """Rows of an image one after the other."""

    def __init__(self):
        super().__init__()
        self.cells = nn.LSTM(8, 16, batch_first=True)
        self.head = nn.Linear(16, 10)

    def forward(self, x):
        return self.head(self.cells(x[:, 0])[0][:, -1])


def same(loaded, detector, rows):
    np.testing.assert_array_equal(loaded.score_samples(rows), detector.score_samples(rows))


@pytest.fixture(scope="module", params=CASES, ids=lambda case: case.name)
def fitted(request, net, digits):
    X, y = digits
    return request.param.build(net).fit(X[:400], y[:400])


@pytest.fixture(scope="module")
def rows(digits):
    return digits[0][1000:1060]


@pytest.fixture
def path(tmp_path):
    return tmp_path / "detector.safetensors"


def again(detector, path, **networks):
    skmrr.save(detector, path)
    return skmrr.load(path, **networks)


def test_everything_is_as_before(fitted, net, digits, rows, path):
    loaded = again(fitted, path, classifier=net)
    assert loaded.classifier is net
    same(loaded, fitted, rows)
    np.testing.assert_array_equal(loaded.classify(rows), fitted.classify(rows))
    np.testing.assert_array_equal(loaded.predict(rows), fitted.predict(rows))
    x = torch.as_tensor(rows)
    with torch.no_grad():
        assert torch.equal(loaded.module_(x), fitted.module_(x))
        one, other = (d.defended_classifier() for d in (loaded, fitted))
        assert torch.equal(one(x), other(x))
    if isinstance(fitted, MRREnsemble):
        assert loaded.member_risks(rows).equals(fitted.member_risks(rows))
    before = loaded.score_samples(rows)
    loaded.set_params(security_parameter=0.2)
    np.testing.assert_array_equal(loaded.score_samples(rows), before)
    assert repr(clone(loaded)) == repr(clone(fitted).set_params(security_parameter=0.2))
    same(pickle.loads(pickle.dumps(loaded)), fitted, rows)
    same(again(loaded, path, classifier=net), fitted, rows)
    for detector in (loaded, one := copy.copy(fitted)):
        detector.calibrate(digits[0][800:900])
    same(loaded, one, rows)


def test_hash_is_the_same_before_and_after(fitted, net, rows, path):
    before = joblib.hash(fitted)
    fitted.score_samples(rows)
    assert joblib.hash(fitted) == before
    assert joblib.hash(pickle.loads(pickle.dumps(fitted))) == before
    assert joblib.hash(again(fitted, path, classifier=net)) == before


@pytest.mark.parametrize("build", [case.build for case in CASES[:1]])
def test_refits_as_the_original(build, net, digits, rows, path):
    random_state = np.random.RandomState(3)
    detector = build(net).set_params(random_state=random_state)
    detector.fit(digits[0][:500], digits[1][:500])
    loaded = again(detector, path, classifier=net)
    for each in (detector, loaded):
        each.fit(digits[0][:600], digits[1][:600])
    same(loaded, detector, rows)


def wide_network():
    torch.manual_seed(0)
    return nn.Sequential(
        *(nn.Conv2d(1, 64, 3, padding=1), nn.BatchNorm2d(64), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Flatten(), nn.Linear(1024, 256), nn.ReLU(), nn.Linear(256, 10)),
    ).eval()


def n_bytes(network):
    return sum(t.numel() * t.element_size() for t in [*network.parameters(), *network.buffers()])


@pytest.mark.filterwarnings("ignore:The classifier takes")
def test_each_network_is_stored_once(digits, path):
    network = wide_network()
    ensemble = MRREnsemble(network, estimator=LatentDefender(max_epochs=1), **SHARED)
    ensemble.fit(digits[0][:300], digits[1][:300])
    assert ensemble.evidence_.members.stack is not None  # a copy more, in memory
    skmrr.save(ensemble, path)
    assert path.stat().st_size <= 1.1 * n_bytes(network)
    assert len(pickle.dumps(ensemble)) <= 1.3 * 2 * n_bytes(network)
    margin = MarginDetector(network, **SHARED).fit(digits[0][:300], digits[1][:300])
    skmrr.save(margin, path)
    assert path.stat().st_size < 20_000


def test_pickles_share_as_the_detector_does(digits, net):
    ensemble = CASES[9].build(net).fit(digits[0][:500], digits[1][:500])
    loaded = pickle.loads(pickle.dumps(ensemble))
    own = loaded.classifier[0].weight
    assert loaded.evidence_.classifier.network[0].weight is own
    assert loaded.named_defenders_["margin"].classifier is loaded.classifier
    assert loaded.module_.evidence is loaded.evidence_
    statistics = loaded.evidence_.members.statistics
    assert statistics[0] is loaded.named_defenders_["latent_0"].statistic_
    assert loaded.evidence_.members.stack.replicas[0] is statistics[0].latent_map
    template = loaded.named_defenders_["latent_0"].module
    assert template.network[0].weight is not own  # equal, but to be trained


@pytest.mark.parametrize("kind", ["float64", "bfloat16", "channels_last", "somebody's", "narrow"])
@pytest.mark.filterwarnings("ignore:The classifier takes")
def test_other_classifiers(kind, net, digits, rows, path):
    torch.manual_seed(1)
    network = Residual() if kind in ("somebody's", "narrow") else copy.deepcopy(net)
    if kind in ("float64", "bfloat16"):
        network = network.to(getattr(torch, kind))
    if kind == "channels_last":
        network = network.to(memory_format=torch.channels_last)
    members = None
    if kind == "narrow":
        members = skmrr.default_defenders(
            network, latent=LatentDefender(max_epochs=1), n_latent=2, width=0.5
        )
    template = LatentDefender(max_epochs=1) if members is None else None
    ensemble = MRREnsemble(network, defenders=members, estimator=template, **SHARED)
    ensemble.fit(digits[0][:500], digits[1][:500])
    loaded = again(ensemble, path, classifier=network)
    same(loaded, ensemble, rows)
    pairs = [[*d.module_.parameters(), *d.module_.buffers()] for d in (loaded, ensemble)]
    for one, other in zip(*pairs, strict=True):
        assert (one.dtype, one.stride(), one.requires_grad) == (
            *(other.dtype, other.stride(), other.requires_grad),
        )


@pytest.mark.filterwarnings("ignore:The classifier takes")
@pytest.mark.parametrize(
    "network",
    [Recurrent(), nn.Sequential(nn.Flatten(), spectral_norm(nn.Linear(64, 16)), nn.Linear(16, 10))],
    ids=["recurrent", "spectral norm"],
)
def test_layers_that_are_more_than_numbers(network, digits, rows, path):
    detector = LatentDefender(replicate(network), classifier=network, **BRIEF)
    detector.fit(digits[0][:300], digits[1][:300])
    same(again(detector, path, classifier=network), detector, rows)
    same(pickle.loads(pickle.dumps(detector)), detector, rows)
    assert joblib.hash(detector) == joblib.hash(copy.deepcopy(detector))


def test_nested_and_wrapped(net, digits, rows, path):
    X, y = digits[0][:500], digits[1][:500]
    reader = FeatureExtractor(net, "5", clip_values=(0, 1))
    members = [("piped", make_pipeline(reader, StandardScaler(), LatentDefender(max_epochs=1)), 1)]
    for detector in (
        make_pipeline(reader, StandardScaler(), LatentDefender(**{**BRIEF, "clip_values": None})),
        FixedThresholdDetector(FrozenEstimator(MarginDetector(net, **SHARED).fit(X, y))),
        MRREnsemble(net, defenders=[*members, ("m", MarginDetector(), 1)], **SHARED),
        MarginDetector(nn.DataParallel(net), **SHARED),
    ):
        detector.fit(X, y)
        same(again(detector, path, classifier=net), detector, rows)
    detector = MarginDetector(LogitsOf(net, lambda answer: answer), **SHARED).fit(X, y)
    same(again(detector, path, classifier=detector.classifier), detector, rows)


def test_without_a_classifier(digits, path):
    X, y = digits[0].reshape(-1, 64), digits[1]
    detector = LatentDefender(**BRIEF).fit(X[:500], y[:500])
    same(again(detector, path), detector, X[500:560])
    with pytest.raises(ValueError, match="knows no network"):
        skmrr.load(path, classifier=nn.Linear(2, 2))


def test_interval_maps_of_others(digits, rows, path):
    torch.manual_seed(0)
    maps = [IntervalMap(plain_network()) for _ in range(2)]
    detector = CertifiedDefender(IntervalMap.average(maps), certified_radius=0.02, **SHARED)
    detector.fit(digits[0][:500], digits[1][:500])
    same(again(detector, path), detector, rows)


def test_other_networks_are_asked_for_by_name(net, digits, rows, path):
    torch.manual_seed(0)
    encoder = nn.Sequential(Block(1), nn.Flatten())
    members = [("own", LatentDefender(encoder, max_epochs=1), 1), ("margin", MarginDetector(), 1)]
    ensemble = MRREnsemble(net, defenders=members, **SHARED).fit(digits[0][:500], digits[1][:500])
    skmrr.save(ensemble, path)
    with pytest.raises(ValueError, match=r"give \['classifier=…', \"modules=\{'own__module': …\}"):
        skmrr.load(path)
    loaded = skmrr.load(path, classifier=net, modules={"own__module": encoder})
    same(loaded, ensemble, rows)
    assert loaded.named_defenders_["own"].module is encoder
    with pytest.raises(ValueError, match="own__module is another network"):
        skmrr.load(path, classifier=net, modules={"own__module": net})


def test_harmless_changes(net, digits, rows, path):
    X, y = digits[0][:500], digits[1][:500]
    detector = MarginDetector(net, harmless=[Brightness(1.1)], **SHARED).fit(X, y)
    loaded = again(detector, path, classifier=net)
    same(loaded, detector, rows)
    assert loaded.harmless == [Brightness(1.1)]
    detector = MarginDetector(net, harmless=[lambda x: x], **SHARED).fit(X, y)
    with pytest.raises(TypeError, match="harmless cannot be stored: it is a function"):
        skmrr.save(detector, path)
    same(again(detector.set_params(harmless=None), path, classifier=net), detector, rows)


@register
@dataclass(frozen=True)
class Dim(Change):
    """A harmless change of somebody else."""

    share: float = 0.9

    def apply(self, x, rng):
        return self.share * x


class Distance(Statistic):
    def __init__(self, means):
        super().__init__()
        self.register_buffer("means", means)

    def forward(self, x, passed):
        return torch.cdist(x.double().flatten(1), self.means)


@dataclass(eq=False, repr=False)
class NearestMean(StatisticDetector):
    def _fit_statistic(self, rows, columns, train, random_state):
        x = rows.take(train).double().flatten(1)
        return Distance(torch.stack([x[columns[train] == c].mean(0) for c in range(10)]))


def test_detectors_of_others(net, digits, rows, path):
    detector = NearestMean(net, harmless=[Dim()], **SHARED).fit(digits[0][:500], digits[1][:500])
    register(NearestMean)
    with pytest.raises(TypeError, match="skmrr.persistence.register"):
        skmrr.save(detector, path)
    register(Distance)
    same(again(detector, path, classifier=net), detector, rows)


def test_what_is_no_fitted_detector_is_refused(net, digits, path):
    with pytest.raises(NotFittedError):
        skmrr.save(MarginDetector(net), path)
    with pytest.raises(TypeError, match="takes a detector"):
        skmrr.save(net, path)
    with pytest.raises(TypeError, match="no class"):
        register(print)
    uncalibrated = MarginDetector(net, calibration_fraction=0, clip_values=(0, 1))
    loaded = again(uncalibrated.fit(*digits), path, classifier=net)
    with pytest.raises(NotFittedError, match="calibrate"):
        loaded.predict(digits[0])
    np.testing.assert_array_equal(
        loaded.calibrate(digits[0]).risk(digits[0]),
        uncalibrated.calibrate(digits[0]).risk(digits[0]),
    )
    uncalibrated.set_params(classifier=copy.deepcopy(net).requires_grad_(False))
    skmrr.save(uncalibrated, path)  # of the same weights
    uncalibrated.classifier[0].bias.add_(1)
    with pytest.raises(ValueError, match="fit again, then save"):
        skmrr.save(uncalibrated, path)


def test_interrupted_save_leaves_the_old_file(net, digits, path, monkeypatch):
    detector = MarginDetector(net, **SHARED).fit(digits[0][:300], digits[1][:300])
    skmrr.save(detector, path)
    before = path.read_bytes()

    def interrupted(*args):
        Path(args[1]).write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(detector_files, "save_file", interrupted)
    with pytest.raises(KeyboardInterrupt):
        skmrr.save(detector, path)
    assert path.read_bytes() == before
    assert [found.name for found in path.parent.iterdir()] == [path.name]


def test_another_classifier_is_refused(net, make_net, digits, path):
    detector = MarginDetector(net, **SHARED).fit(digits[0][:300], digits[1][:300])
    skmrr.save(detector, path)
    changed = copy.deepcopy(net)
    changed[2].kernel_size = 1
    for network in (make_net(5), changed, copy.deepcopy(net).double()):
        with pytest.raises(ValueError, match="another network"):
            skmrr.load(path, classifier=network)
    with pytest.raises(TypeError, match="must be an nn.Module"):
        skmrr.load(path, classifier="net")
    skmrr.load(path, classifier=copy.deepcopy(net))


def rewritten(path, change, *, signed=True):
    """Write a file anew with another document, the digest made to fit."""
    with safe_open(path, "pt") as file:
        document = json.loads(file.metadata()[KEY])
        stored = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    document = change(document, stored) or document
    if signed:
        document.pop("digest", None)
        document["digest"] = digest_of(document, stored)
    save_file(stored, path, {KEY: json.dumps(document)})


@pytest.mark.parametrize(("version", "cure"), [(2, "update skmrr"), (0, "fit and save again")])
def test_other_formats_are_refused(net, digits, path, version, cure):
    detector = MarginDetector(net, **SHARED).fit(digits[0][:300], digits[1][:300])
    skmrr.save(detector, path)
    rewritten(path, lambda document, _: {"format": version})
    with pytest.raises(ValueError, match=cure):
        skmrr.load(path, classifier=net)


def test_code_that_has_changed_is_noticed(net, digits, path):
    class Scaled(nn.Module):
        factor = staticmethod(lambda: 1.0)

        def __init__(self):
            super().__init__()
            self.network = copy.deepcopy(net)

        def forward(self, x):
            return self.network(self.factor() * x)

    network = Scaled()
    detector = MarginDetector(network, **SHARED).fit(digits[0][:500], digits[1][:500])
    skmrr.save(detector, path)
    Scaled.factor = staticmethod(lambda: 0.3)
    with pytest.raises(ValueError, match="the classifier's code has changed"):
        skmrr.load(path, classifier=network)


FRESH = """
import sys, warnings
import joblib, numpy as np, torch
import skmrr
sys.path.insert(0, sys.argv[1])
from table import default_ensemble
torch.set_num_threads(1), warnings.simplefilter("ignore")
net = torch.load(f"{sys.argv[2]}/net.pt", weights_only=False)
data = np.load(f"{sys.argv[2]}/data.npz")
loaded = skmrr.load(f"{sys.argv[2]}/detector.safetensors", classifier=net)
fitted = default_ensemble(net).fit(data["X"], data["y"])
np.save(f"{sys.argv[2]}/scores.npy", loaded.score_samples(data["rows"]))
print(joblib.hash(loaded), joblib.hash(fitted))
"""


def test_in_another_process(net, digits, rows, path):
    X, y = digits[0][:500], digits[1][:500]
    detector = CASES[9].build(net).fit(X, y)
    skmrr.save(detector, path)
    torch.save(net, path.with_name("net.pt"))
    np.savez(path.with_name("data.npz"), X=X, y=y, rows=rows)
    command = [sys.executable, "-c", FRESH, str(Path(__file__).parent), str(path.parent)]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr[-2000:]
    scores = np.load(path.with_name("scores.npy"))
    np.testing.assert_array_equal(scores, detector.score_samples(rows))
    assert run.stdout.split() == 2 * [joblib.hash(detector)]


def test_callbacks_are_no_part_of_the_file(net, digits, tmp_path):
    detector = MarginDetector(net, random_state=0).fit(*digits)
    detector._skl_callbacks = [lambda: None]
    skmrr.save(detector, tmp_path / "file")
    again = skmrr.load(tmp_path / "file", classifier=net)
    assert not hasattr(again, "_skl_callbacks")


def test_the_file_may_be_read_by_whom_the_umask_lets(net, digits, tmp_path):
    detector = MarginDetector(net, random_state=0).fit(*digits)
    skmrr.save(detector, tmp_path / "file")
    (tmp_path / "other").touch()
    assert (tmp_path / "file").stat().st_mode == (tmp_path / "other").stat().st_mode
