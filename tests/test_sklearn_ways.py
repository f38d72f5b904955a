"""What scikit-learn does with estimators beside its own checks."""

import copy
import subprocess
import sys

import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.frozen import FrozenEstimator
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import nn
from torch.nn.utils.parametrizations import spectral_norm

from skmrr import FixedThresholdDetector, LatentDefender, MarginDetector, MRREnsemble

from .table import SHARED


def adversarial_and_clean(digits):
    """Flat digits and, marked -1, noise."""
    X, y = digits[0][:600].reshape(600, -1), digits[1][:600]
    noise = np.random.default_rng(0).random((100, 64), dtype=np.float32)
    return np.concatenate([X, noise]), np.r_[y, np.full(100, -1)]


def test_fit_predict_heeds_y(digits):
    X, y = adversarial_and_clean(digits)
    detector = LatentDefender(
        statistic="likelihood", max_epochs=1, random_state=0, security_parameter=0.05
    )
    verdicts = clone(detector).fit_predict(X, y)
    np.testing.assert_array_equal(verdicts, clone(detector).fit(X, y).predict(X))
    assert (verdicts[-100:] == -1).mean() > 0.9
    decided = np.where(y < 0, 0, y)
    labelled = clone(detector).fit_predict(X, y, labels=decided)
    expected = clone(detector).fit(X, y, labels=decided).predict(X, labels=decided)
    np.testing.assert_array_equal(labelled, expected)


@pytest.mark.parametrize("is_frozen", [True, False])
def test_labels_reach_the_detector_at_the_end_of_a_pipeline(digits, is_frozen):
    X, y = digits[0][:600].reshape(600, -1), digits[1][:600]
    pipeline = make_pipeline(StandardScaler(), LatentDefender(max_epochs=1, random_state=0))
    pipeline.fit(X, y)
    fixed = FixedThresholdDetector(FrozenEstimator(pipeline) if is_frozen else pipeline).fit(X, y)
    wrong = (y + 1) % 10
    expected = pipeline[-1].risk(pipeline[:-1].transform(X), labels=wrong)
    np.testing.assert_allclose(fixed.risk(X, labels=wrong), expected)
    assert fixed.risk(X, labels=wrong).mean() > fixed.risk(X, labels=y).mean() + 0.3


NOTEBOOK = """
import warnings
import numpy as np, torch
from sklearn.model_selection import cross_val_score
from torch import nn
from skmrr import LatentDefender, MRREnsemble
from skmrr.datasets import load_digits_images

warnings.simplefilter("ignore")
torch.set_num_threads(1), torch.manual_seed(0)

class Mine(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.ReLU())
        self.head = nn.Linear(16, 10)
        self.scale = lambda x: 2 * x

    def forward(self, x):
        return self.head(self.body(self.scale(x)))

X, y = load_digits_images()
X, y = X[:400], y[:400]
template = LatentDefender(max_epochs=1)
params = dict(estimator=template, clip_values=(0, 1), security_parameter=0.1, random_state=0)
ensemble = MRREnsemble(Mine(), **params)
one = ensemble.fit(X, y).risk(X)
two = MRREnsemble(ensemble.classifier, n_jobs=2, **params).fit(X, y).risk(X)
np.testing.assert_allclose(one, two, atol=1e-6)
score = lambda detector, X, y: detector.risk(X).mean()
scores = [cross_val_score(ensemble, X, y, cv=2, n_jobs=n, scoring=score) for n in (1, 2)]
np.testing.assert_allclose(*scores, atol=1e-6)
print("same")
"""


def test_classes_of_a_script_go_into_other_processes(tmp_path):
    script = tmp_path / "notebook.py"
    script.write_text(NOTEBOOK, encoding="utf-8")
    run = subprocess.run([sys.executable, script], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr[-2000:]
    assert run.stdout == "same\n"


class WithFunction(nn.Module):
    """A network with a function among its attributes, which pickle does not know."""

    def __init__(self):
        super().__init__()
        self.flat = lambda x: x.flatten(1)
        self.fc = nn.Linear(64, 10)

    def forward(self, x):
        return self.fc(self.flat(x))


@pytest.mark.parametrize(
    "network",
    [
        WithFunction(),
        nn.Sequential(nn.Flatten(), spectral_norm(nn.Linear(64, 16)), nn.Linear(16, 10)),
    ],
)
def test_a_detector_copies_deeply_as_its_network_does(digits, network):
    X, y = digits[0][:300], digits[1][:300]
    params = {"estimator": LatentDefender(max_epochs=1), **SHARED}
    for detector in (MarginDetector(network, **SHARED), MRREnsemble(network, **params)):
        with pytest.warns(UserWarning, match="for what y says"):
            detector.fit(X, y)
        copied = copy.deepcopy(detector)
        np.testing.assert_array_equal(copied.risk(X), detector.risk(X))
        assert copied.classifier is not detector.classifier
        before = detector.risk(X)
        with torch.no_grad():
            for parameter in copied.classifier.parameters():
                parameter.zero_()
        np.testing.assert_array_equal(detector.risk(X), before)
