"""Rivals that score a row by the classifier's logits, its features, or a squeezed version."""

import numpy as np
import pytest
import torch
from scipy import ndimage
from scipy.special import logsumexp, softmax
from scipy.stats import spearmanr
from sklearn.base import clone
from sklearn.covariance import EmpiricalCovariance
from sklearn.model_selection import LeaveOneOut, cross_val_score
from sklearn.neighbors import KernelDensity, NearestNeighbors
from sklearn.pipeline import make_pipeline
from torch import nn

from skmrr import FeatureExtractor
from skmrr.baselines import (
    EnergyDetector,
    FeatureSqueezingDetector,
    KernelDensityDetector,
    LIDDetector,
    MahalanobisDetector,
    MaxSoftmaxDetector,
    NearestNeighborsDetector,
)
from skmrr.baselines._feature_detector import LayerMean
from skmrr.baselines._neighbours import Bank
from skmrr.baselines._squeezers import BitDepth, MedianFilter, NonLocalMeans
from skmrr.baselines.kernel_density import CANDIDATES
from skmrr.baselines.lid import LIDStatistic
from skmrr.nn.tapped import Tapped

params = {"security_parameter": 0.05, "random_state": 0}

DETECTORS = [
    EnergyDetector(**params),
    FeatureSqueezingDetector(**params),
    FeatureSqueezingDetector(non_local_means=(3, 3, 20), clip_values=(0, 1), **params),
    KernelDensityDetector(**params),
    LIDDetector(**params),
    LIDDetector(layer=["1", "5"], max_rows=200, **params),
    MahalanobisDetector(**params),
    MahalanobisDetector(layer=["0", "5"], statistic="class", **params),
    MaxSoftmaxDetector(**params),
    NearestNeighborsDetector(n_neighbors=10, **params),
]
each_detector = pytest.mark.parametrize("detector", DETECTORS, ids=repr)
NEED_FEATURES = (KernelDensityDetector, LIDDetector, MahalanobisDetector, NearestNeighborsDetector)


def named(*kinds):
    """Detectors of these kinds, as they are by default."""
    return pytest.mark.parametrize("kind", kinds, ids=lambda kind: kind.__name__)


@pytest.fixture(scope="module")
def fitted(digits, net):
    """``fitted(detector)``: a clone that defends `net`, fitted once."""
    X, y = digits
    done = {}

    def fit(detector):
        if repr(detector) not in done:
            defending = clone(detector).set_params(classifier=net)
            done[repr(detector)] = defending.fit(X[1000:1500], y[1000:1500])
        return done[repr(detector)]

    return fit


@pytest.fixture(scope="module")
def blobs():
    """(X, y): 300 features of three classes in six dimensions, spread unevenly."""
    rng = np.random.default_rng(0)
    y = rng.integers(0, 3, 300)
    scale = np.geomspace(0.1, 3, 6)
    return rng.normal(0, 1, (300, 6)) * scale + 4 * np.eye(3, 6)[y], y


def statistic_of(detector, X, y=None):
    """Statistic of each row, by the class at its label if given."""
    labels = None if y is None else torch.as_tensor(y)
    with torch.no_grad():
        return detector.evidence_(torch.as_tensor(X), labels).values[:, 0].numpy()


def logits_of(net, X):
    with torch.no_grad():
        return net(torch.as_tensor(X)).double().numpy()


@each_detector
def test_one_pass_of_the_classifier_says_class_and_oddness(detector, digits, net, fitted):
    X = digits[0][1500:1600]
    detector = fitted(detector)
    n_squeezers = len(getattr(detector.statistic_, "squeezers", ()))
    labels = net(torch.as_tensor(X)).argmax(1)
    expected = detector.score_samples(X, labels=labels)
    network = detector.defended_classifier(security_parameter=0.1)
    calls, handles = [], []
    for part in (*detector.module_.modules(), *network.modules()):
        if isinstance(part, Tapped):
            handles.append(part.register_forward_hook(lambda *_: calls.append(1)))
    try:
        scores = detector.score_samples(X)
        assert len(calls) == 1 + n_squeezers
        logits, alarm = network.judge(torch.as_tensor(X))
        assert len(calls) == 2 * (1 + n_squeezers)
    finally:
        for handle in handles:
            handle.remove()
    np.testing.assert_array_equal(scores, expected)
    torch.testing.assert_close(logits, net(torch.as_tensor(X)))
    np.testing.assert_allclose(alarm.detach(), np.log(0.1) - expected)
    others = (labels + 1) % 10
    _, alarm = network.judge(torch.as_tensor(X), others)
    expected = detector.score_samples(X, labels=others)
    np.testing.assert_allclose(alarm.detach(), np.log(0.1) - expected)


# What they compute


def test_max_softmax_is_the_log_odds_against_the_top_class(digits, net, fitted):
    X = digits[0][1500:]
    odds = np.exp(statistic_of(fitted(MaxSoftmaxDetector(**params)), X, digits[1][1500:]))
    top = softmax(logits_of(net, X), axis=1).max(1)
    np.testing.assert_allclose(1 / (1 + odds), top)


def test_max_softmax_does_not_saturate():
    logits = np.outer(np.arange(1.0, 101), [30, 0, -1])  # softmax is 1 to the last digit
    detector = MaxSoftmaxDetector(**params).fit(logits)
    assert (np.diff(statistic_of(detector, logits)) < 0).all()


@pytest.mark.parametrize("temperature", [1.0, 5.0])
def test_energy_is_that_of_scipy(digits, net, temperature):
    X, y = digits
    detector = EnergyDetector(net, temperature=temperature, **params).fit(X[1000:1500])
    expected = -temperature * logsumexp(logits_of(net, X[1500:]) / temperature, axis=1)
    np.testing.assert_allclose(statistic_of(detector, X[1500:], y[1500:]), expected)


def test_mahalanobis_is_that_of_scikit_learn(blobs):
    X, y = blobs
    detector = MahalanobisDetector(calibration_fraction=0).fit(X, y)
    means = np.stack([X[y == c].mean(0) for c in range(3)])
    tied = EmpiricalCovariance(assume_centered=True).fit(X - means[y])
    expected = np.stack([tied.mahalanobis(X - mean) for mean in means], axis=1)
    np.testing.assert_allclose(statistic_of(detector, X), expected.min(1))
    np.testing.assert_allclose(statistic_of(detector, X, 2 - y), expected.min(1))
    detector.set_params(statistic="class").fit(X, y)
    np.testing.assert_allclose(statistic_of(detector, X, y), expected[np.arange(300), y])
    assert (detector.calibrate(X).classify(X) == expected.argmin(1)).mean() > 0.9


def test_mahalanobis_leaves_out_what_never_varies(blobs):
    X, y = blobs
    wider = np.hstack([X, np.zeros((300, 1)), X[:, :1]])  # a silent feature, and an echo
    usual = MahalanobisDetector(**params).fit(X, y)
    np.testing.assert_allclose(
        statistic_of(MahalanobisDetector(**params).fit(wider, y), wider),
        statistic_of(usual, X),
        rtol=1e-6,
    )


def test_mahalanobis_does_not_mind_where_the_origin_is(blobs):
    X, y = blobs
    usual = MahalanobisDetector(**params).fit(X, y)
    far = MahalanobisDetector(**params).fit(X + 1e5, y)
    np.testing.assert_allclose(statistic_of(far, X + 1e5), statistic_of(usual, X), rtol=1e-6)


def test_layers_weigh_the_same(digits, net, fitted):
    X = digits[0][1500:]
    detector = fitted(LIDDetector(layer=["1", "5"], max_rows=200, **params))
    statistic, x = detector.statistic_, torch.as_tensor(X)
    with torch.no_grad():
        parts = statistic.log_dimensions(statistic.features(x, detector.evidence_.ask(x)))
    assert parts.shape == (len(X), 2)
    standardised = (parts - statistic.layer_mean.mean) / statistic.layer_mean.std
    np.testing.assert_allclose(statistic_of(detector, X), standardised.mean(1))
    assert standardised.mean(0).abs().max() < 0.5  # new rows are much like those of the bank
    clean = torch.as_tensor(np.random.default_rng(0).normal(3, [1, 5, 0], (50, 3)))
    torch.testing.assert_close(LayerMean(clean)(clean).mean(), torch.zeros((), dtype=clean.dtype))
    torch.testing.assert_close(LayerMean(clean[:, :1])(clean[:, :1]), clean[:, 0])


def test_kernel_density_is_that_of_scikit_learn(blobs):
    X, y = blobs
    detector = KernelDensityDetector(bandwidth=0.7, calibration_fraction=0).fit(X, y)
    expected = np.stack(
        [KernelDensity(bandwidth=0.7).fit(X[y == c]).score_samples(X) for c in range(3)], axis=1
    )
    np.testing.assert_allclose(statistic_of(detector, X), -expected.max(1))
    np.testing.assert_allclose(statistic_of(detector, X, y), -expected[np.arange(300), y])
    few = KernelDensityDetector(max_rows=20, **params).fit(X, y)
    assert len(few.statistic_.bank.rows) == 60


def test_bandwidth_is_the_likeliest(blobs):
    X = blobs[0][blobs[1] == 0][:20]
    chosen = KernelDensityDetector(calibration_fraction=0).fit(X).bandwidth_
    size = np.sqrt(np.square(X[:, None] - X).sum(2).mean())
    likelihoods = [
        cross_val_score(KernelDensity(bandwidth=h), X, cv=LeaveOneOut()).sum()
        for h in size * CANDIDATES
    ]
    np.testing.assert_allclose(chosen, size * CANDIDATES[np.argmax(likelihoods)])


def test_lid_is_the_papers_estimate(blobs):
    bank, new = blobs[0][:200], blobs[0][200:]
    detector = LIDDetector(n_neighbors=7, calibration_fraction=0).fit(bank)
    distances = np.sort(np.linalg.norm(new[:, None] - bank, axis=2), axis=1)[:, :7]
    expected = -1 / np.mean(np.log(distances / distances[:, -1:]), axis=1)
    np.testing.assert_allclose(np.exp(statistic_of(detector, new)), expected)


def test_lid_standardises_by_rows_of_all_classes(net, digits, monkeypatch):
    seen = []
    monkeypatch.setattr(LIDStatistic, "standardise", lambda self, parts: seen.extend(parts))
    X, y = digits
    X = X[:1000][np.argsort(y[:1000])]
    LIDDetector(net, layer=["1", "5"], calibration_fraction=0).fit(X, np.sort(y[:1000]))
    last = FeatureExtractor(net, "5").fit_transform(X[-200:])
    assert (torch.cdist(seen[1], torch.as_tensor(last).double()) < 1e-2).any()


def test_lid_tells_the_dimension(rng):
    for dim in (2, 6):
        X = rng.normal(0, 1, (3000, dim)) @ rng.normal(0, 1, (dim, 12))
        detector = LIDDetector(n_neighbors=50, max_rows=2500, **params).fit(X[:2900])
        estimate = np.exp(statistic_of(detector, X[2900:])).mean()
        np.testing.assert_allclose(estimate, dim, rtol=0.2)


def test_nearest_neighbours_are_those_of_scikit_learn(blobs):
    bank, new = (part / np.linalg.norm(part, axis=1)[:, None] for part in np.split(blobs[0], 2))
    detector = NearestNeighborsDetector(n_neighbors=5, calibration_fraction=0)
    detector.fit(blobs[0][:150])  # not of norm 1
    distances, _ = NearestNeighbors(n_neighbors=5).fit(bank).kneighbors(new)
    np.testing.assert_allclose(statistic_of(detector, 3 * new), distances[:, -1])


def test_a_bank_is_searched_in_parts(rng, monkeypatch):
    bank = Bank(torch.as_tensor(rng.normal(0, 1, (100, 4))))
    features = torch.as_tensor(rng.normal(0, 1, (30, 4)))
    positions = bank.search(features, 6)
    distances = bank.distances(features, positions)
    monkeypatch.setattr("skmrr.baselines._neighbours.ROWS_AT_ONCE", 7)
    monkeypatch.setattr("skmrr.baselines._neighbours.VALUES_AT_ONCE", 50)
    torch.testing.assert_close(bank.search(features, 6), positions)
    torch.testing.assert_close(bank.distances(features, positions), distances)
    assert (distances.diff(dim=1) >= 0).all()


def test_feature_squeezing_is_the_largest_l1_distance(digits, net, fitted):
    X, y = digits[0][1500:], digits[1][1500:]
    detector = FeatureSqueezingDetector(net, bit_depth=1, clip_values=(0, 1), **params)
    detector.fit(digits[0][1000:1500])
    squeezed = [np.rint(X), ndimage.median_filter(X, (1, 1, 2, 2), mode="nearest")]
    clean, *coarse = (softmax(logits_of(net, part), axis=1) for part in (X, *squeezed))
    expected = np.max([np.abs(clean - part).sum(1) for part in coarse], axis=0)
    np.testing.assert_allclose(np.exp(statistic_of(detector, X, y)), expected, rtol=1e-4)


@pytest.mark.parametrize("size", [2, 3])
def test_median_filter_is_that_of_scipy(rng, size):
    x = rng.random((4, 3, 7, 6))
    expected = ndimage.median_filter(x, (1, 1, size, size), mode="nearest")
    np.testing.assert_array_equal(MedianFilter(size)(torch.as_tensor(x)).numpy(), expected)


def test_bits_divide_the_range():
    x = torch.linspace(-2, 4, 601, dtype=torch.float64).requires_grad_(True)
    exact, straight = (BitDepth(3, -2.0, 4.0, through)(x) for through in (False, True))
    np.testing.assert_allclose(exact.detach().unique(), np.linspace(-2, 4, 8), atol=1e-12)
    torch.testing.assert_close(exact, straight)
    torch.testing.assert_close(torch.autograd.grad(straight.sum(), x)[0], torch.ones_like(x))


def test_non_local_means_is_the_weighted_mean(rng):
    x = rng.random((2, 3, 6, 5))
    wide = np.pad(x, [(0, 0), (0, 0), (2, 2), (2, 2)], mode="edge")
    total, weights = np.zeros_like(x), np.zeros_like(x[:, :1])
    for down, right in np.ndindex(5, 5):
        other = wide[:, :, down : down + 6, right : right + 5]
        squares = np.square(x - other).mean(1, keepdims=True)
        difference = ndimage.uniform_filter(squares, (1, 1, 3, 3), mode="nearest")
        weight = np.exp(-difference / 0.3**2)
        total, weights = total + weight * other, weights + weight
    smoothed = NonLocalMeans(5, 3, 0.3)(torch.as_tensor(x))
    np.testing.assert_allclose(smoothed, total / weights)


# What holds for all


@each_detector
def test_detects_the_obviously_odd(detector, digits, fitted, rng):
    X = digits[0][1500:]
    detector = fitted(detector)
    assert np.mean(detector.predict(X) == -1) < 0.12
    if isinstance(detector, NEED_FEATURES):  # the networks' own outputs know less of noise
        odd = rng.uniform(0, 1, (200, 1, 8, 8)).astype(np.float32)
        assert np.mean(detector.predict(odd) == -1) > 0.3
        assert np.median(detector.risk(odd)) > np.median(detector.risk(X))


@each_detector
def test_gradients_reach_the_input(detector, digits, fitted, rng):
    X, y = digits
    evidence = fitted(detector).evidence_
    x = torch.as_tensor(X[1500:1540] * 0.9 + 0.05 * rng.random((40, 1, 8, 8)), dtype=torch.float32)
    x.requires_grad_(True)
    statistic = evidence(x, torch.as_tensor(y[1500:1540])).values
    (gradient,) = torch.autograd.grad(statistic.sum(), x)
    assert gradient.isfinite().all()
    assert (gradient.abs().amax((1, 2, 3)) > 0).all()


@each_detector
def test_gradients_pass_the_defended_classifier(detector, digits, fitted):
    defended = fitted(detector).defended_classifier()
    x = torch.as_tensor(digits[0][1500:1520] * 0.8 + 0.1).requires_grad_(True)
    (gradient,) = torch.autograd.grad(defended(x)[:, -1].sum(), x)
    assert gradient.isfinite().all()
    assert (gradient.abs().amax((1, 2, 3)) > 0).all()


@each_detector
def test_gradients_are_finite_at_rows_of_the_bank(detector, digits, fitted):
    x = torch.as_tensor(digits[0][1000:1500]).requires_grad_(True)
    detector = fitted(detector)
    statistic = detector.statistic_(x, detector.evidence_.ask(x))
    assert torch.autograd.grad(statistic.sum(), x)[0].isfinite().all()
    assert statistic.isfinite().all()


@each_detector
def test_the_module_agrees_at_every_class(detector, digits, fitted):
    detector = fitted(detector)
    x = torch.as_tensor(digits[0][1500:1530])
    with torch.no_grad():
        everywhere = detector.statistic_(x, detector.evidence_.ask(x))
        for c in (0, 9):
            at_class = detector.evidence_(x, torch.full((30,), c)).values[:, 0]
            torch.testing.assert_close(at_class, everywhere[:, c])


@named(*NEED_FEATURES)
def test_the_default_layer_is_that_before_the_last_linear(kind, digits, net, fitted):
    X, y = digits
    scores = fitted(kind(**params)).score_samples(X[1500:])
    named_layer = kind(net, layer="5", **params).fit(X[1000:1500], y[1000:1500])
    np.testing.assert_allclose(named_layer.score_samples(X[1500:]), scores, rtol=1e-3)


@named(EnergyDetector, MaxSoftmaxDetector, MahalanobisDetector, KernelDensityDetector)
def test_works_at_the_end_of_a_pipeline(kind, digits, net):
    X, y = digits
    is_logits = kind in (EnergyDetector, MaxSoftmaxDetector)
    features = FeatureExtractor(net, layer="6" if is_logits else "5")
    pipeline = make_pipeline(features, kind(**params)).fit(X[1000:1500], y[1000:1500])
    direct = kind(net, **params).fit(X[1000:1500], y[1000:1500])
    labels = logits_of(net, X[1500:]).argmax(1)
    statistic = statistic_of(pipeline[-1], features.transform(X[1500:]), labels)
    np.testing.assert_allclose(statistic, statistic_of(direct, X[1500:], labels), rtol=1e-3)
    guessed = pipeline[-1].classify(features.transform(X[1500:]))
    assert np.mean(guessed[guessed >= 0] == labels[guessed >= 0]) > 0.95


def test_pooling_averages_over_positions(digits, net):
    X, y = digits
    for pooling, width in (("mean", 8), ("flatten", 512)):
        detector = MahalanobisDetector(net, layer="0", pooling=pooling, **params)
        detector.fit(X[1000:1100], y[1000:1100])
        assert len(detector.statistic_.gaussians[0].centre) == width


def test_flat_rows_are_not_smoothed(rng):
    X = rng.random((100, 5))
    detector = FeatureSqueezingDetector(**params).fit(X)
    assert [type(s) for s in detector.statistic_.squeezers] == [BitDepth]
    assert detector.clip_values_[0] < 0.01 < 0.99 < detector.clip_values_[1]


@pytest.mark.filterwarnings("ignore:X spans")
def test_rows_that_do_not_vary_are_no_trouble():
    X = np.full((100, 3), 0.5)
    for detector in DETECTORS:
        detector = clone(detector)
        if hasattr(detector, "layer"):
            detector.set_params(layer=None)
        assert np.isfinite(detector.fit(X).score_samples(X + 1e-3)).all()


@named(*NEED_FEATURES)
def test_unknown_layers_are_refused(kind, digits, net):
    X, y = digits
    with pytest.raises(ValueError, match="its layers are: 0, 1"):
        kind(net, layer="fc9", **params).fit(X, y)
    with pytest.raises(ValueError, match="give classifier="):
        kind(layer="5", **params).fit(X, y)
    with pytest.raises(ValueError, match="name the checkpoint"):
        kind(nn.Flatten(), **params).fit(X, y, labels=y)


@named(LIDDetector, NearestNeighborsDetector)
def test_too_few_rows_for_the_neighbours_are_refused(kind, blobs):
    with pytest.raises(ValueError, match="lower n_neighbors"):
        kind(n_neighbors=240, **params).fit(blobs[0])
    with pytest.raises(ValueError, match="max_rows=30"):
        kind(n_neighbors=40, max_rows=30, **params).fit(blobs[0])


def test_parameters_that_make_no_sense_are_refused(blobs, digits):
    X, y = blobs
    with pytest.raises(ValueError, match="No squeezer is left"):
        FeatureSqueezingDetector(bit_depth=None, **params).fit(X)
    for wrong in ((2, 3, 4), (3, 3), (3, 3, 0), "abc"):
        with pytest.raises(ValueError, match="non_local_means"):
            FeatureSqueezingDetector(non_local_means=wrong, **params).fit(digits[0][:100])
    with pytest.raises(ValueError, match="1 feature"):
        MaxSoftmaxDetector(**params).fit(X[:, :1])
    with pytest.raises(ValueError, match="names no layer"):
        MahalanobisDetector(nn.Linear(6, 3), layer=[], **params).fit(X, y, labels=y)


def test_agrees_with_pytorch_ood(digits, net):
    detectors = pytest.importorskip("pytorch_ood.detector")
    X, y = (torch.as_tensor(part) for part in digits)
    with torch.no_grad():
        features, logits = net[:6](X), net(X)
    clean, new = slice(0, 1000), slice(1000, None)
    rivals = {
        EnergyDetector: detectors.EnergyBased.score(logits[new]),
        NearestNeighborsDetector: detectors.KNN(None, k=50)
        .fit_features(features[clean], y[clean])
        .predict_features(features[new]),
        MahalanobisDetector: detectors.Mahalanobis(None)
        .fit_features(features[clean], y[clean])
        .predict_features(features[new]),
    }
    for kind, expected in rivals.items():
        detector = kind(net, calibration_fraction=0).fit(X[clean], y[clean])
        ours = statistic_of(detector, X[new], y[new])
        assert spearmanr(ours, expected).statistic > 0.999
