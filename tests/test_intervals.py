"""Bounds over balls, and the detector that is read from them."""

import copy

import numpy as np
import pytest
import torch
from sklearn.base import clone
from torch import nn

from skmrr import CertifiedDefender, LatentDefender, replicate
from skmrr.attacks import adaptive_suite
from skmrr.evaluation import certified_success_rate, evaluate_adaptive
from skmrr.nn.intervals import CertifiedStatistic, IntervalMap, ball
from skmrr.nn.tapped import NOTHING


class Branching(nn.Module):
    """Shapes, sums and scales as they stand in a forward method."""

    def __init__(self):
        super().__init__()
        self.register_buffer("mean", torch.tensor(0.4))
        self.conv = nn.Conv2d(1, 4, 3, padding=1)
        self.head = nn.Linear(4, 3)

    def forward(self, x):
        x = (x - self.mean) / 0.5 * -2.0
        x = torch.relu(self.conv(x)) + 0.5 - x
        return self.head(x.mean((2, 3)).flatten(1))


NETWORKS = {
    "plain": lambda: nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 3)),
    "convolutions": lambda: nn.Sequential(
        nn.Conv2d(1, 4, 3, stride=2, padding=1),
        nn.LeakyReLU(),
        nn.Conv2d(4, 4, 3, groups=2),
        nn.Tanh(),
        nn.Flatten(),
        nn.Linear(16, 3, bias=False),
    ),
    "pools": lambda: nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.MaxPool2d(2), nn.AvgPool2d(3), nn.Flatten(), nn.Linear(4, 3)
    ),
    "branches": Branching,
}


@pytest.fixture(params=NETWORKS)
def interval_map(request):
    latent_map = IntervalMap(NETWORKS[request.param](), torch.Generator().manual_seed(0)).eval()
    with torch.no_grad():  # of a size at which bounds matter
        for part in latent_map.parameters():
            part.mul_(3).add_(0.01)
    return latent_map


@pytest.fixture
def images():
    return torch.rand(6, 1, 8, 8, generator=torch.Generator().manual_seed(0))


def test_no_point_of_the_ball_escapes(interval_map, images):
    columns = torch.arange(6) % 3
    leads = interval_map.highest_leads(interval_map.bounds(*ball(images, 0.1, (0, 1))), columns)
    generator = torch.Generator().manual_seed(1)
    for _ in range(200):
        signs = torch.randint(0, 2, images.shape, generator=generator) * 2 - 1
        points = (images + 0.1 * signs).clamp(0, 1)
        logits = interval_map.features_and_logits(points)[1]
        assert (logits - logits.gather(1, columns[:, None]) <= leads + 1e-4).all()


def test_a_ball_of_no_size_is_the_point(interval_map, images):
    columns = torch.arange(6) % 3
    leads = interval_map.highest_leads(interval_map.bounds(images, images), columns)
    logits = interval_map.features_and_logits(images)[1]
    expected = logits - logits.gather(1, columns[:, None])
    torch.testing.assert_close(leads, expected, rtol=1e-4, atol=1e-5)


def test_larger_balls_have_wider_bounds(interval_map, images):
    statistics = [
        CertifiedStatistic(interval_map, r, (0, 1))(images, NOTHING) for r in (0.0, 0.05, 0.2)
    ]
    assert (statistics[0] <= statistics[1] + 1e-6).all()
    assert (statistics[1] <= statistics[2] + 1e-6).all()


def test_one_column_is_that_of_all(interval_map, images):
    statistic = CertifiedStatistic(interval_map, 0.05, (0, 1))
    columns = torch.tensor([2, 0, 1, 1, 0, 2])
    own = statistic(images, NOTHING).gather(1, columns[:, None])[:, 0]
    torch.testing.assert_close(statistic.at(images, columns, NOTHING), own)


def test_bounds_of_one_layer_are_exact():
    latent_map = IntervalMap(nn.Sequential(nn.Linear(2, 2)))
    latent_map.head.weight.data = torch.tensor([[1.0, 2.0], [-3.0, 0.5]])
    latent_map.head.bias.data = torch.tensor([0.0, 0.25])
    low, high = torch.tensor([[0.0, 0.0]]), torch.tensor([[1.0, 1.0]])
    leads = latent_map.highest_leads(latent_map.bounds(low, high), torch.tensor([0]))
    torch.testing.assert_close(leads, torch.tensor([[0.0, 0.25]]))  # (−4, −1.5)·x + .25 at 0


def test_unknown_layers_are_named():
    with pytest.raises(TypeError, match="linear layer"):
        IntervalMap(nn.Sequential(nn.Linear(4, 3), nn.ReLU()))
    latent_map = IntervalMap(nn.Sequential(nn.Linear(4, 4), nn.Softmax(1), nn.Linear(4, 2)))
    with pytest.raises(TypeError, match=r"'1', a Softmax; use .*ReLU"):
        latent_map.initialise(torch.rand(2, 4), torch.tensor([0, 1]), 2)


def template(**params):
    network = nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
    settings = {
        "exploration_radius": 0.15,
        "certified_radius": 0.05,
        "clip_values": (0, 1),
        "max_epochs": 25,
        "learning_rate": 5e-3,
        "random_state": 0,
    }
    return CertifiedDefender(network, **{**settings, **params})


@pytest.fixture(scope="module")
def certified(net, digits):
    X, y = digits
    return template(classifier=net, security_parameter=0.05).fit(X[:1400], y[:1400])


@pytest.fixture(scope="module")
def fresh(digits):
    return digits[0][1400:], digits[1][1400:]


def test_learns_what_is_right_and_bounded(certified, fresh):
    X, y = fresh
    x, columns = torch.as_tensor(X), torch.as_tensor(y)
    for radius, share in ((0.0, 0.85), (0.1, 0.6)):
        statistic = CertifiedStatistic(certified.statistic_.latent_map, radius, (0, 1))
        assert (statistic.at(x, columns, NOTHING) < 0).double().mean() > share


def test_no_attack_beats_the_bound(certified, fresh):
    """The one test that a defence by hidden gradients could not pass by accident."""
    X, y = fresh
    bound = certified_success_rate(certified, X[:100], y[:100], eps=[0.1, 0.2, 0.5, 1.0])
    measured = evaluate_adaptive(
        certified, X[:100], y[:100], eps=[0.1, 0.2, 0.5, 1.0], attacks=few_attacks()
    ).success
    table = bound.merge(measured, on=["eps", "security_parameter"], suffixes=("_bound", ""))
    assert (table["success_rate"] <= table["success_rate_bound"]).all()
    at = table[table["security_parameter"] == 0.05].set_index("eps")
    assert at.loc[0.1, "success_rate_bound"] < 0.5
    assert at.loc[1.0, "success_rate"] == 1.0


def few_attacks():
    suite = adaptive_suite(steps=20)
    return {name: suite[name] for name in ("Lagrangian, from guides", "selective, random start")}


def test_the_bound_grows_with_the_ball_and_the_threshold(certified, fresh):
    bound = certified_success_rate(
        certified, *fresh, eps=[0.01, 0.05, 0.1, 0.3], security_parameters=(0.01, 0.05, 0.5)
    ).pivot(index="eps", columns="security_parameter", values="success_rate")
    assert (bound.diff().iloc[1:] >= 0).all().all()
    assert (bound.diff(axis=1).iloc[:, 1:] <= 0).all().all()


def test_bound_is_refused_to_others(net, digits, fresh):
    X, y = digits
    defender = LatentDefender(
        replicate(net), classifier=net, realign=False, clip_values=(0, 1), random_state=0
    ).fit(X[:1400], y[:1400])
    with pytest.raises(TypeError, match="evaluate_adaptive"):
        certified_success_rate(defender, *fresh, eps=[0.1])


def test_the_template_stays_as_it_is_and_the_seed_decides(digits):
    X, y = digits
    defender = template(max_epochs=1)
    before = copy.deepcopy(defender.module.state_dict())
    scores = [clone(defender).fit(X[:500], y[:500]).score_samples(X[500:600]) for _ in range(2)]
    np.testing.assert_array_equal(*scores)
    for name, value in defender.module.state_dict().items():
        assert torch.equal(value, before[name])


def test_auto_radius_is_half_the_exploration(digits):
    X, y = digits
    fitted = template(max_epochs=1, certified_radius="auto").fit(X[:500], y[:500])
    assert fitted.statistic_.radius == pytest.approx(0.075)


def test_the_mean_of_maps_has_the_mean_of_their_bounds(images):
    maps = [
        IntervalMap(NETWORKS[name](), torch.Generator().manual_seed(k))
        for k, name in enumerate(("plain", "convolutions", "pools"))
    ]
    average = IntervalMap.average(maps)
    box = ball(images, 0.1, (0, 1))
    columns = torch.arange(6) % 3
    expected = sum(part.highest_leads(part.bounds(*box), columns) for part in maps) / 3
    torch.testing.assert_close(average.highest_leads(average.bounds(*box), columns), expected)
    logits = sum(part.features_and_logits(images)[1] for part in maps) / 3
    torch.testing.assert_close(average.features_and_logits(images)[1], logits)


def test_trained_maps_are_read_without_training(certified, digits, net, fresh):
    X, y = digits
    other = clone(certified).set_params(random_state=1).fit(X[:1400], y[:1400])
    maps = [defender.statistic_.latent_map for defender in (certified, other)]
    both = CertifiedDefender(
        IntervalMap.average(maps), classifier=net,
        certified_radius=0.05, clip_values=(0, 1), random_state=0,
    ).fit(X[:1400], y[:1400])  # fmt: skip
    x, columns = torch.as_tensor(fresh[0]), torch.as_tensor(fresh[1])
    leads = [
        latent_map.highest_leads(latent_map.bounds(*ball(x, 0.1, (0, 1))), columns)
        for latent_map in (*maps, both.statistic_.latent_map)
    ]
    torch.testing.assert_close(leads[2], (leads[0] + leads[1]) / 2, rtol=1e-4, atol=1e-4)
    bound = certified_success_rate(both, *fresh, eps=[0.1], security_parameters=[0.05])
    assert 0 < bound["success_rate"].iloc[0] < 0.5


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"module": None}, "needs module"),
        ({"exploration_radius": 0.0}, "exploration_radius"),
        ({"exploration_radius": None}, "give exploration_radius"),
        ({"n_iter_no_change": 5}, "n_iter_no_change=5 has no effect"),
        ({"validation_fraction": 0.2}, "validation_fraction=0.2 has no effect"),
        ({"module": IntervalMap(nn.Sequential(nn.Flatten(), nn.Linear(64, 10)))}, "as it is"),
    ],
)
def test_what_it_needs_is_asked_for(digits, params, message):
    X, y = digits
    with pytest.raises(ValueError, match=message):
        template().set_params(**params).fit(X[:500], y[:500])


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("exploration_radius", 0.1),
        ("max_epochs", 3),
        ("learning_rate", 0.1),
        ("early_stopping", True),
        ("validation_fraction", 0.2),
        ("n_iter_no_change", 5),
        ("training_batch_size", 32),
        ("warm_start", True),
    ],
)
def test_a_trained_map_refuses_what_would_train_it(digits, name, value):
    X, y = digits
    trained = IntervalMap(nn.Sequential(nn.Flatten(), nn.Linear(64, 10)))
    defender = CertifiedDefender(trained, certified_radius=0.1, **{name: value})
    with pytest.raises(ValueError, match=f"^{name}={value} has no effect"):
        defender.fit(X[:500], y[:500])


def test_a_trained_map_needs_a_number_for_its_ball(digits):
    trained = IntervalMap(nn.Sequential(nn.Flatten(), nn.Linear(64, 10)))
    with pytest.raises(ValueError, match="certified_radius must be a number"):
        CertifiedDefender(trained).fit(digits[0][:500], digits[1][:500])


def test_a_replica_is_refused(net, digits):
    X, y = digits
    with pytest.raises(ValueError, match="got Replica"):
        template().set_params(module=replicate(net)).fit(X[:500], y[:500])
