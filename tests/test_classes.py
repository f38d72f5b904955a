"""Classes are the classifier's outputs: clean rows need not be of all of them."""

import warnings

import numpy as np
import pytest
import torch
from torch import nn

from skmrr import (
    CertifiedDefender,
    ConformalSurvival,
    InputDictionaryDefender,
    LatentDefender,
    MarginDetector,
    MRREnsemble,
    replicate,
)
from skmrr.baselines import KernelDensityDetector, MahalanobisDetector
from skmrr.nn.conditioning import LocalScale

from .table import BRIEF, CASES, SHARED, SMALL_DICTIONARY, plain_network

SEEN = [0, 2, 3, 5, 8]
pytestmark = pytest.mark.filterwarnings(
    "ignore:The autoencoder misses", "ignore:.* of the calibration rows are of classes"
)
# Who has learnt nothing of a class without rows, and who needs none.
LEARNERS = {
    *("latent contrast", "latent likelihood", "certified", "dictionary", "dictionary, relabel"),
    *("ensemble of all", "default ensemble", "mahalanobis", "kernel density"),
    *("pid", "pid, robust"),
}


@pytest.fixture(scope="module")
def some(digits):
    """Images of five of the ten classes, and images of all ten."""
    X, y = digits
    is_seen = np.isin(y, SEEN)
    return X[is_seen], y[is_seen], X[-200:], y[-200:]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_fits_on_any_subset_of_the_classes(case, net, some):
    X, y, new, classes = some
    detector = case.build(net).fit(X[:700], y[:700])
    np.testing.assert_array_equal(detector.classes_, np.arange(10))
    risk = detector.risk(new, labels=classes)
    assert np.isfinite(risk).all()
    is_seen = np.isin(classes, SEEN)
    assert (risk[is_seen] > 0.95).mean() < 0.25
    if case.name in LEARNERS:
        assert (risk[~is_seen] == 1).all()
        assert (detector.classify(new, labels=classes)[~is_seen] == -1).all()
    else:
        assert risk[~is_seen].min() < 1
    alone = detector.risk(new[is_seen], labels=classes[is_seen])
    np.testing.assert_allclose(risk[is_seen], alone, atol=1e-6)


def test_no_row_makes_a_batch_fail(net, some):
    X, y, new, _ = some
    ensemble = MRREnsemble(
        net, estimator=LatentDefender(statistic="likelihood", max_epochs=1), **SHARED
    ).fit(X, y)
    decided = net(torch.as_tensor(new)).argmax(1).numpy()
    is_seen = np.isin(decided, SEEN)
    assert not is_seen.all()
    risk = ensemble.risk(new)
    assert (risk[~is_seen] == 1).all()
    assert risk[is_seen].mean() < 0.7
    logits = ensemble.defended_classifier()(torch.as_tensor(new))
    assert (logits.argmax(1)[torch.as_tensor(~is_seen)] == 10).all()
    assert logits.isfinite().all()


def test_calibrates_on_classes_that_nothing_was_learnt_of(net, some):
    X, y, new, classes = some
    detector = MahalanobisDetector(net, **SHARED).fit(X, y)
    with pytest.warns(UserWarning, match="of the calibration rows are of classes that no training"):
        detector.calibrate(new, labels=classes)
    assert (detector.risk(new, labels=classes)[~np.isin(classes, SEEN)] == 1).all()
    margin = MarginDetector(net, **SHARED).fit(X, y)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        margin.calibrate(new, labels=classes)  # a margin needs no clean row of a class
    with pytest.raises(ValueError, match="All calibration rows are of classes"):
        detector.calibrate(new[:40], labels=np.full(40, 7))


def test_a_class_lost_by_the_split_is_no_error(net, digits):
    X, y = digits
    rows = np.r_[np.arange(400), np.flatnonzero(y == 9)[-1:]]
    rows = rows[(y[rows] != 9) | (rows >= 400)]
    for seed in range(6):
        detector = KernelDensityDetector(
            net, security_parameter=0.1, random_state=seed, calibration_fraction=0.5
        ).fit(X[rows], y[rows])
        assert np.isfinite(detector.score_samples(X[-50:])).all()


def test_numbers_beyond_the_logits_are_refused(net, digits):
    X, y = digits[0][:300], digits[1][:300]
    with pytest.raises(ValueError, match="y holds class 10, but there are 10 logits"):
        MarginDetector(net).fit(X, y + 1)
    with pytest.raises(ValueError, match="labels holds class 10"):
        MarginDetector(net).fit(X, y, labels=y + 1)
    with pytest.raises(ValueError, match="There are 10 classes but the network has 12 logits"):
        LatentDefender(replicate(plain(12)), classifier=net, security_parameter=0.1).fit(X, y)


def test_a_map_numbers_classes_where_there_is_no_classifier(net, some):
    X, y, *_ = some
    for detector in (LatentDefender(replicate(net), **BRIEF), certified()):
        np.testing.assert_array_equal(detector.fit(X, y).classes_, np.arange(10))
    features = X.reshape(len(X), -1)
    np.testing.assert_array_equal(LatentDefender(**BRIEF).fit(features, y).classes_, SEEN)


def test_reconstruction_without_a_dictionary_is_nan(net, some):
    X, y, *_ = some
    defender = InputDictionaryDefender(net, **SMALL_DICTIONARY, **SHARED).fit(X, y)
    assert len(defender.dictionaries_) == len(SEEN)
    rebuilt = defender.reconstruct(X[:2], labels=[8, 9])
    assert np.isfinite(rebuilt[0]).all()
    assert np.isnan(rebuilt[1]).all()


def test_logits_that_are_no_numbers_are_dont_know_alone(some):
    X, y, new, _ = some
    spoilt = new.copy()
    spoilt[4, 0, 0, 0] = 0.987
    network = Breaking().eval()
    for detector in (
        MarginDetector(network, **SHARED),
        MRREnsemble(network, estimator=LatentDefender(max_epochs=1), **SHARED),
        MahalanobisDetector(network, layer="body", **SHARED),
    ):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            detector.fit(X, y)
        scores = detector.score_samples(spoilt)
        assert np.isfinite(scores).all()
        assert detector.risk(spoilt)[4] == 1
        assert detector.classify(spoilt)[4] == -1
        others = np.delete(np.arange(len(new)), 4)
        np.testing.assert_allclose(scores[others], detector.score_samples(new)[others], atol=1e-6)
        with pytest.raises(ValueError, match=r"of 1 calibration rows are not finite \(4\)"):
            detector.calibrate(spoilt)


def test_infinite_statistics_count_among_the_rows():
    values = np.r_[np.arange(80.0), np.full(19, np.inf)][:, None]
    survival = ConformalSurvival.fit(values, np.zeros(99, dtype=int), 1)
    scores = survival(torch.tensor([[78.5], [79.0]]), torch.zeros(2, dtype=int))[:, 0].exp()
    np.testing.assert_allclose(scores, [0.215, 0.21], atol=0.006)  # (1 + 19 + rank) / 100
    assert (scores >= torch.tensor([0.21, 0.21])).all()


def test_local_scale_leaves_out_what_is_infinite():
    generator = np.random.default_rng(0)
    values = generator.normal(size=(400, 2))
    values[:, 1] += values[:, 0]
    spoilt = np.r_[values, np.c_[generator.normal(size=20), np.full(20, np.inf)]]
    clean, with_infinite = LocalScale.fit(values, 0), LocalScale.fit(spoilt, 0)
    assert with_infinite.mean.isfinite().all()
    np.testing.assert_allclose(clean.mean, with_infinite.mean, atol=0.5)


def plain(n_outputs):
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, n_outputs))


def certified():
    return CertifiedDefender(plain_network(), exploration_radius=0.05, **BRIEF)


class Breaking(nn.Module):
    """A classifier whose logits are no numbers where the first pixel is 0.987."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.ReLU())
        self.head = nn.Linear(16, 10)

    def forward(self, x):
        is_broken = (x[:, 0, 0, 0] - 0.987).abs() < 1e-4
        return self.head(self.body(x)).masked_fill(is_broken[:, None], torch.nan)


def test_the_classifier_teaches_classes_that_no_row_shows(net, some):
    X, y, new, _ = some
    decided = net(torch.as_tensor(new)).argmax(1)
    is_unseen = ~np.isin(decided, SEEN)

    def agreement(**params):
        defender = LatentDefender(
            replicate(net), max_epochs=30, learning_rate=3e-3, random_state=0, **params
        ).fit(X[:700], y[:700])
        with torch.no_grad():
            logits = defender.latent_map_.features_and_logits(torch.as_tensor(new))[1]
        return (logits.argmax(1) == decided).numpy()[is_unseen].mean()

    taught = agreement(classifier=net)
    assert taught > 0.8
    assert taught > agreement() + 0.1
    member = LatentDefender(replicate(net), max_epochs=1)
    members = [("latent", member, 1.0)]
    ensemble = MRREnsemble(net, defenders=members, calibration_fraction=0, random_state=0)
    fitted = ensemble.fit(X[:700], y[:700]).named_defenders_["latent"]
    assert "_ensemble_classifier" not in vars(fitted)
