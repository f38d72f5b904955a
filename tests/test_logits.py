"""Answers that are no logits are refused with the cure, and the cure works."""

import copy
import pickle
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from skmrr import LatentDefender, LogitsOf, MarginDetector, MRREnsemble
from skmrr.baselines import EnergyDetector, MahalanobisDetector

from .table import SHARED


class Answering(nn.Module):
    """A network whose logits are wrapped into something."""

    def __init__(self, network, wrap):
        super().__init__()
        self.network, self.wrap = network, wrap

    def forward(self, x):
        return self.wrap(self.network(x))


def pair(z):
    return z, None


def mapping(z):
    return {"loss": None, "logits": z}


def output(z):
    return SimpleNamespace(logits=z)


def first_of(answer):
    return answer[0]


def as_they_are(z):
    return z


REFUSED = {
    "tuple": (pair, TypeError, r"returns a tuple; .*LogitsOf\(classifier, …\)"),
    "dict": (mapping, TypeError, "returns a dict with keys loss, logits"),
    "object": (output, TypeError, "returns a SimpleNamespace"),
    "one logit": (lambda z: z[:, :1], ValueError, r"shape \(2, 1\).*makes two logits of one"),
    "one number": (lambda z: z[:, 0], ValueError, "makes two logits of one"),
    "decisions": (lambda z: z.argmax(1), ValueError, "two rows, one number each"),
    "one-hot": (lambda z: (z > z.mean()).long(), ValueError, "which are no logits"),
    "probabilities": (lambda z: z.softmax(1), ValueError, "probabilities=True"),
    "maps": (lambda z: z[:, :, None], ValueError, r"shape \(2, 10, 1\)"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_logits_is_refused_before_any_work(net, digits, name, monkeypatch):
    wrap, kind, message = REFUSED[name]
    monkeypatch.setattr(LatentDefender, "_fit_statistic", None)
    monkeypatch.setattr(MarginDetector, "_fit_statistic", None)
    for detector in (MarginDetector(Answering(net, wrap)), MRREnsemble(Answering(net, wrap))):
        with pytest.raises(kind, match=message):
            detector.fit(*digits)


@pytest.mark.parametrize(
    ("wrap", "where"),
    [(pair, 0), (mapping, "logits"), (output, "logits"), (pair, first_of), (as_they_are, None)],
)
def test_says_where_the_logits_are(net, digits, wrap, where):
    X, y = digits[0][:400], digits[1][:400]
    detector = MarginDetector(LogitsOf(Answering(net, wrap), where), **SHARED).fit(X, y)
    plain = MarginDetector(net, **SHARED).fit(X, y)
    np.testing.assert_array_equal(detector.risk(X), plain.risk(X))
    again = pickle.loads(pickle.dumps(detector))
    np.testing.assert_array_equal(again.risk(X), plain.risk(X))


def test_one_logit_becomes_two(net, digits):
    X = digits[0][:400]
    binary = nn.Sequential(copy.deepcopy(net), nn.Linear(10, 1))
    x = torch.as_tensor(X)
    for network in (binary, nn.Sequential(binary, nn.Flatten(0))):
        logits = LogitsOf(network)(x)
        assert logits.shape == (400, 2)
        torch.testing.assert_close(logits[:, 1] - logits[:, 0], binary(x)[:, 0])
    chances = LogitsOf(nn.Sequential(binary, nn.Sigmoid()), probabilities=True)(x)
    torch.testing.assert_close(chances.softmax(1)[:, 1], binary(x)[:, 0].sigmoid())
    decided = (binary(x)[:, 0] > 0).numpy()
    detector = MarginDetector(LogitsOf(binary), **SHARED).fit(X, decided.astype(int))
    trusted = detector.predict(X) == 1
    np.testing.assert_array_equal(detector.classify(X)[trusted], decided[trusted])
    assert (detector.classify(X)[~trusted] == -1).all()


def test_probabilities_become_logits(net, digits):
    X, y = digits[0][:400], digits[1][:400]
    softmax = nn.Sequential(net, nn.Softmax(1))
    detector = MRREnsemble(
        LogitsOf(softmax, probabilities=True), estimator=LatentDefender(max_epochs=1), **SHARED
    ).fit(X, y)
    assert np.isfinite(detector.score_samples(X)).all()
    sure = copy.deepcopy(net)
    with torch.no_grad():
        sure[6].weight *= 1000  # of which the softmax is exactly 0 and 1
    logits = LogitsOf(nn.Sequential(sure, nn.Softmax(1)), probabilities=True)(torch.as_tensor(X))
    assert logits.isfinite().all()


def test_energy_of_normalised_logits_is_refused(net, digits):
    with pytest.raises(ValueError, match="log-probabilities"):
        EnergyDetector(nn.Sequential(net, nn.LogSoftmax(1))).fit(*digits)
    MarginDetector(nn.Sequential(net, nn.LogSoftmax(1))).fit(*digits)


def exported(network, x):
    batch = torch.export.Dim("batch", min=2)
    return torch.export.export(network, (x,), dynamic_shapes=({0: batch},)).module()


# Networks that can be asked, but neither looked into nor trained
HIDDEN = {
    "scripted": lambda network, x: torch.jit.script(network),
    "traced": torch.jit.trace,
    "exported": exported,
    "quantised": lambda network, x: torch.ao.quantization.quantize_dynamic(network, {nn.Linear}),
}


@pytest.mark.filterwarnings("ignore")  # torch calls some of these outdated
@pytest.mark.parametrize("kind", HIDDEN)
def test_a_network_without_layers_is_asked_or_refused_with_the_cure(net, digits, kind):
    X, y = digits[0][:400], digits[1][:400]
    hidden = HIDDEN[kind](copy.deepcopy(net), torch.as_tensor(X[:4]))
    risk = MarginDetector(hidden, **SHARED).fit(X, y).risk(X)
    # eight bits of a weight move a logit a little
    atol = 0.2 if kind == "quantised" else 1e-5
    np.testing.assert_allclose(risk, MarginDetector(net, **SHARED).fit(X, y).risk(X), atol=atol)
    for detector in (MRREnsemble(hidden, **SHARED), MahalanobisDetector(hidden, **SHARED)):
        with pytest.raises(ValueError, match="give the one that it was made from"):
            detector.fit(X, y)
    if kind in ("scripted", "traced"):
        with pytest.raises(TypeError, match="give the network that it was made from"):
            MahalanobisDetector(hidden, layer="4", **SHARED).fit(X, y)


def test_several_inputs_need_a_module_around_them(net, digits):
    class Masked(nn.Module):
        def forward(self, x, mask):
            return net(x * mask)

    with pytest.raises(ValueError, match="several inputs needs a module around it"):
        MarginDetector(Masked()).fit(*digits)
