"""scikit-learn's callbacks are told of the parts of a fit."""

import pytest

callback = pytest.importorskip("sklearn.callback", reason="scikit-learn has no callbacks yet")

from sklearn.model_selection import GridSearchCV  # noqa: E402
from sklearn.pipeline import make_pipeline  # noqa: E402

from skmrr import LatentDefender, MarginDetector, MRREnsemble, replicate  # noqa: E402

from .table import CASES  # noqa: E402


class Recorder:
    """Notes what it is told, and may end the epochs."""

    max_propagation_depth = None

    def __init__(self, last_epoch=None):
        self.last_epoch = last_epoch
        self.begun, self.ended, self.is_set_up = [], [], 0

    def setup(self, estimator, context):
        self.is_set_up += 1

    def teardown(self, estimator, context):
        self.is_set_up -= 1

    def on_fit_task_begin(self, estimator, context):
        self.begun.append((type(estimator).__name__, context.task_name, context.task_id))

    def on_fit_task_end(self, estimator, context):
        self.ended.append((type(estimator).__name__, context.task_name, context.task_id))
        return context.task_name == "epoch" and context.task_id == self.last_epoch


def recorded(detector, X, y, **params):
    recorder = Recorder(**params)
    assert detector.set_callbacks(recorder) is detector
    detector.fit(X, y)
    assert recorder.is_set_up == 0
    assert sorted(recorder.begun) == sorted(recorder.ended)
    return recorder


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_every_detector_begins_and_ends_its_fit(case, net, digits):
    X, y = digits
    detector = case.build(net)
    recorder = recorded(detector, X[:1200], y[:1200])
    assert (type(detector).__name__, "fit", 0) in recorder.ended


def test_each_epoch_is_a_part(net, digits):
    X, y = digits
    defender = LatentDefender(replicate(net), max_epochs=3, random_state=0)
    recorder = recorded(defender, X, y)
    epochs = [("LatentDefender", "epoch", k) for k in range(3)]
    assert recorder.ended == [*epochs, ("LatentDefender", "fit", 0)]
    again = LatentDefender(replicate(net), max_epochs=3, random_state=0).fit(X, y)
    assert (again.score_samples(X) == defender.score_samples(X)).all()


def test_a_callback_may_end_the_training(net, digits):
    X, y = digits
    defender = LatentDefender(replicate(net), max_epochs=5, random_state=0)
    recorded(defender, X, y, last_epoch=1)
    assert len(defender.history_["loss"]) == 2


@pytest.mark.parametrize("chain", [None, 0.1])
def test_members_epochs_are_parts_of_the_ensembles_fit(net, digits, chain):
    X, y = digits
    latent = LatentDefender(replicate(net), max_epochs=2)
    members = [("latent", latent, 1.0), ("margin", MarginDetector(), 1.0)]
    ensemble = MRREnsemble(net, defenders=members, chain=chain, random_state=0)
    recorder = recorded(ensemble, X, y)
    assert ("LatentDefender", "epoch", 1) in recorder.ended
    assert ("MRREnsemble", "fit", 0) in recorder.ended
    for name, member in ensemble.named_defenders_.items():
        left = [key for key in vars(member) if "callback" in key]
        assert left == [], name


def test_an_error_ends_no_task_but_tears_down(net, digits):
    X, y = digits
    recorder = Recorder()
    ensemble = MRREnsemble(net, clip_values=(0, 0.5)).set_callbacks(recorder)
    with pytest.raises(ValueError, match="clip_values"):
        ensemble.fit(X, y)
    assert recorder.is_set_up == 0
    assert recorder.ended == []
    assert not hasattr(ensemble, "_callback_fit_ctx")


def test_pipelines_and_searches_hand_their_callbacks_on(net, digits):
    X, y = digits
    defender = LatentDefender(replicate(net), max_epochs=2, random_state=0)
    pipeline = make_pipeline("passthrough", defender)
    assert ("LatentDefender", "epoch", 1) in recorded(pipeline, X, y).ended
    defender.set_params(calibration_fraction=0.5)
    search = GridSearchCV(defender, {"gamma": [0.0, 0.01]}, cv=2, error_score="raise")
    search.set_params(scoring=lambda detector, X, y: detector.score_samples(X).mean())
    assert search.fit(X, y).best_score_ < 0
