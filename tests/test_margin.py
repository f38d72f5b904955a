"""The classifier's own margin as a detector."""

import numpy as np
import pytest
import torch
from scipy.stats import rankdata

from skmrr import MarginDetector, MRREnsemble, NoiseDefender
from skmrr.evaluation import false_alarm_interval

params = {"clip_values": (0, 1), "security_parameter": 0.05, "random_state": 0}


@pytest.fixture(scope="module")
def detector(net, digits):
    X, y = digits
    return MarginDetector(net, **params, calibration_fraction=0).fit(X[:1000], y[:1000])


def margins(net, X, labels):
    """How far the best other logit is ahead of that of each row's label."""
    with torch.no_grad():
        logits = net(torch.as_tensor(X)).double().numpy()
    own = logits[np.arange(len(X)), labels]
    logits[np.arange(len(X)), labels] = -np.inf
    return logits.max(1) - own


@pytest.mark.parametrize("shift", [0, 1])
def test_statistic_is_the_lead_of_the_best_other_class(detector, net, digits, shift):
    X = digits[0][1000:1100]
    labels = (net(torch.as_tensor(X)).argmax(1) + shift) % 10
    with torch.no_grad():
        values = detector.evidence_(torch.as_tensor(X), labels).values[:, 0]
    np.testing.assert_allclose(values, margins(net, X, labels.numpy()), rtol=1e-5, atol=1e-5)
    assert bool((values < 0).all()) == (shift == 0)  # behind the decision, ahead of another class


def test_what_the_classifier_is_unsure_of_is_odd(detector, net, digits):
    X = digits[0][1400:]
    detector.calibrate(digits[0][1000:1400])
    labels = net(torch.as_tensor(X)).argmax(1).numpy()
    ranks = rankdata(margins(net, X, labels))
    risk = detector.risk(X)
    for c in range(10):  # each class has its own calibration
        ordered = risk[labels == c][np.argsort(ranks[labels == c])]
        assert (np.diff(ordered) >= -1e-9).all()
    low, high = false_alarm_interval(0.05, len(X), n_calibration=400)
    assert low <= np.mean(detector.predict(X) == -1) <= high


def test_needs_a_classifier(digits):
    X, y = digits
    with pytest.raises(ValueError, match="give classifier="):
        MarginDetector(**params).fit(X, y)
    members = [("noise", NoiseDefender(), 1), ("margin", MarginDetector(), 1)]
    with pytest.raises(ValueError, match="give classifier="):
        MRREnsemble(defenders=members, **params).fit(X, y)


def test_in_an_ensemble_it_takes_the_ensembles_classifier(net, make_net, digits):
    X, y = digits
    ensemble, other = (
        MRREnsemble(net, defenders=[("margin", margin, 1)], **params).fit(X[:1000], y[:1000])
        for margin in (MarginDetector(), MarginDetector(make_net(1)))
    )
    scores = ensemble.score_samples(X[1000:])
    assert ensemble.named_defenders_.margin.classifier is net
    np.testing.assert_array_equal(other.score_samples(X[1000:]), scores)
