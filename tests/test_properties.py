"""What every detector promises, over one table of all of them."""

import copy
import pickle
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.base import clone
from torch import nn

from skmrr import LatentDefender, MRREnsemble
from skmrr.nn.fingerprint import fingerprint

from .table import CASES

pytestmark = [
    pytest.mark.filterwarnings("ignore:The autoencoder misses"),
]


def state_of(network):
    """Mode, hooks, gradients and values of a network."""
    parts = [
        (name, part.training, len(part._forward_hooks), len(part._forward_pre_hooks))
        for name, part in network.named_modules()
    ]
    gradients = [(part.requires_grad, part.grad) for part in network.parameters()]
    return parts, gradients, fingerprint(network)


@pytest.fixture(scope="module")
def victim(net):
    """Classifier of its own, in training mode as its owner has left it."""
    return copy.deepcopy(net).train()


@pytest.fixture(scope="module", params=CASES, ids=lambda case: case.name)
def fitted(request, victim, digits):
    """(case, fitted detector, its scores of `rows`), and a victim that fit has left alone."""
    X, y = digits
    before, rows = state_of(victim), X[:1000].copy()
    detector = request.param.build(victim).fit(rows, y[:1000])
    assert state_of(victim) == before
    np.testing.assert_array_equal(rows, X[:1000])
    return request.param, detector, detector.score_samples(X[1000:1060])


@pytest.fixture(scope="module")
def rows(digits):
    """Sixty clean images that no detector has seen."""
    return digits[0][1000:1060]


def test_scores_are_log_survivals(fitted, rows):
    _, detector, scores = fitted
    assert scores.dtype == np.float64
    assert np.isfinite(scores).all()
    assert (scores <= 0).all()
    np.testing.assert_array_equal(detector.risk(rows), 0.0 - np.expm1(scores))
    np.testing.assert_array_equal(detector.predict(rows) == 1, scores >= detector.offset_)


def test_batch_size_and_order_change_nothing(fitted, rows):
    _, detector, scores = fitted
    small = copy.copy(detector).set_params(batch_size=7)
    np.testing.assert_allclose(small.score_samples(rows), scores, atol=1e-5)
    order = np.random.default_rng(0).permutation(len(rows))
    np.testing.assert_allclose(detector.score_samples(rows[order]), scores[order], atol=1e-5)


def test_threads_get_what_one_gets(fitted, rows, victim):
    _, detector, _ = fitted
    requests = [rows[i : i + 1 + i % 3] for i in range(40)]
    alone = [detector.score_samples(request) for request in requests]
    before, interval = state_of(victim), sys.getswitchinterval()
    n_threads = torch.get_num_threads()
    sys.setswitchinterval(1e-5)
    try:
        with ThreadPoolExecutor(8) as pool:
            together = list(pool.map(detector.score_samples, requests))
    finally:
        sys.setswitchinterval(interval)
    for one, other in zip(alone, together, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-9)
    assert state_of(victim) == before
    assert torch.get_num_threads() == n_threads


def test_scoring_leaves_no_trace(fitted, rows, victim):
    _, detector, scores = fitted
    before, given = state_of(victim), rows.copy()
    modes = [part.training for part in detector.module_.modules()]
    with pytest.raises(ValueError, match="shape"):
        detector.score_samples(np.zeros((2, 3, 3)))
    np.testing.assert_array_equal(detector.score_samples(given), scores)
    np.testing.assert_array_equal(given, rows)
    assert state_of(victim) == before
    assert [part.training for part in detector.module_.modules()] == modes
    assert not any(modes)


def test_module_agrees_with_estimator(fitted, rows, digits):
    _, detector, scores = fitted
    labels = digits[1][1000:1060]
    x = torch.as_tensor(rows)
    with torch.no_grad():
        asked = detector.module_(x)
        given = detector.module_(x, torch.as_tensor(labels))
    np.testing.assert_allclose(asked.numpy(), scores, atol=1e-9)
    np.testing.assert_allclose(
        given.numpy(), detector.score_samples(rows, labels=labels), atol=1e-9
    )


def test_all_classes_at_once_are_each_by_itself(fitted, rows):
    _, detector, _ = fitted
    with torch.no_grad():
        together = detector.module_.under_each(torch.as_tensor(rows)).numpy()
    for c in range(10):
        alone = detector.score_samples(rows, labels=np.full(len(rows), c))
        np.testing.assert_allclose(together[:, c], alone, atol=1e-9)


def test_gradients_reach_the_rows(fitted, rows):
    case, detector, _ = fitted
    x = torch.as_tensor(rows[:20]).requires_grad_(True)
    labels = torch.zeros(20, dtype=torch.int64)  # mostly wrong, so that scores are in the tail
    (gradient,) = torch.autograd.grad(detector.module_(x, labels).sum(), x)
    assert gradient.isfinite().all()
    if case.has_gradient and case.name != "margin":
        assert (gradient.flatten(1).abs().amax(1) > 0).double().mean() > 0.5


def test_pickle_clone_and_copies(fitted, rows):
    _, detector, scores = fitted
    np.testing.assert_array_equal(copy.copy(detector).score_samples(rows), scores)
    again = pickle.loads(pickle.dumps(detector))
    np.testing.assert_allclose(again.score_samples(rows), scores, atol=1e-9)
    bare = clone(detector)
    assert not hasattr(bare, "evidence_")
    assert bare.classifier is detector.classifier


def test_unknown_class_is_dont_know_alone(fitted, rows, digits):
    _, detector, _ = fitted
    labels = digits[1][1000:1060].copy()
    known = detector.score_samples(rows, labels=labels)
    labels[3] = 77
    scores = detector.score_samples(rows, labels=labels)
    assert np.isfinite(scores[3])
    assert detector.risk(rows, labels=labels)[3] == 1
    assert detector.classify(rows, labels=labels)[3] == -1
    np.testing.assert_allclose(np.delete(scores, 3), np.delete(known, 3), atol=1e-9)


def test_export_with_any_batch(fitted, rows):
    case, detector, scores = fitted
    if not case.exports:
        pytest.skip("not all its parts are torch's")
    x, labels = torch.as_tensor(rows), torch.as_tensor(detector.classify(rows).clip(0))
    batch = {0: torch.export.Dim("batch", min=2)}
    for args, shapes in (((x[:8],), (batch,)), ((x[:8], labels[:8]), (batch, batch))):
        program = torch.export.export(detector.module_, args, dynamic_shapes=shapes).module()
        with torch.no_grad():
            exported = program(*((x,) if len(args) == 1 else (x, labels)))
        expected = scores
        if len(args) == 2:
            expected = detector.score_samples(rows, labels=labels.numpy())
        np.testing.assert_allclose(exported.numpy(), expected, atol=1e-5)


COMPILE = """
import sys, warnings
import numpy as np, torch
sys.path.insert(0, sys.argv[1])
from table import CASES
from skmrr.datasets import load_digits_images
torch.set_num_threads(1), torch.manual_seed(0), warnings.simplefilter("ignore")
X, y = load_digits_images()
net = torch.nn.Sequential(
    torch.nn.Conv2d(1, 8, 3, padding=1), torch.nn.ReLU(), torch.nn.MaxPool2d(2),
    torch.nn.Flatten(), torch.nn.Linear(128, 32), torch.nn.ReLU(), torch.nn.Linear(32, 10),
)
for case in CASES:
    if case.compiles and case.name in sys.argv[2:]:
        detector = case.build(net).fit(X[:800], y[:800])
        compiled = torch.compile(detector.module_, fullgraph=True, backend="eager")
        with torch.no_grad():
            found = compiled(torch.as_tensor(X[800:840])).numpy()
        np.testing.assert_allclose(found, detector.score_samples(X[800:840]), atol=1e-5)
        torch._dynamo.reset()
        print(case.name)
"""


COMPILED = [case.name for case in CASES if case.compiles]


@pytest.mark.parametrize(
    "names",
    [["default ensemble"], pytest.param(COMPILED, marks=pytest.mark.slow)],
    ids=["default", "all"],
)
def test_compiles_into_one_graph(names):
    """By itself, as the checks of shapes that this suite switches on are no graph."""
    command = [sys.executable, "-c", COMPILE, str(Path(__file__).parent), *names]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr[-2000:]
    assert run.stdout.splitlines() == names


def test_works_in_place_on_its_own_rows_alone(digits):
    """A classifier that works in place on its input sees rows of its own."""

    class InPlace(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.ReLU(inplace=True))
            self.head = nn.Linear(16, 10)

        def forward(self, x):
            return self.head(self.body(x.sub_(0.5).mul_(2)))

    X, y = digits
    rows = X[1000:1100].copy()
    ensemble = MRREnsemble(
        InPlace(),
        estimator=LatentDefender(max_epochs=1),
        clip_values=(0, 1),
        random_state=0,
        security_parameter=0.05,
    )
    with pytest.warns(UserWarning, match="for what y says"):
        ensemble.fit(X[:1000].copy(), y[:1000])
    first = ensemble.risk(rows)
    np.testing.assert_array_equal(rows, X[1000:1100])
    np.testing.assert_array_equal(ensemble.risk(rows), first)
