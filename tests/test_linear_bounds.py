"""Bounds by lines that are followed back to the input."""

import pytest
import torch
from torch import nn
from torch.nn import functional

from skmrr.nn.interval_rules import FUNCTION_RULES, METHOD_RULES, MODULE_RULES, Interval, _ends
from skmrr.nn.intervals import CertifiedStatistic, IntervalMap, ball
from skmrr.nn.linear_bounds import LAYERS, LinearBounds
from skmrr.nn.relaxations import RELAXATIONS
from skmrr.nn.tapped import NOTHING

RADIUS = 0.1


class Branching(nn.Module):
    """Functions and methods, a shortcut, and an entry that is used twice."""

    def __init__(self):
        super().__init__()
        self.register_buffer("mean", torch.tensor(0.4))
        self.first, self.second = nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.head = nn.Linear(24, 3)

    def forward(self, x):
        x = torch.relu(self.first((x - self.mean) / 0.5 * -2.0))
        x = functional.relu(self.second(x)) + 0.5 * x - 1.0
        x = functional.max_pool2d(x.relu(), 4)
        return self.head(torch.cat([x.flatten(1), x.mean((2, 3)), x.mean((2, 3))], 1))


def sequential(*parts):
    return lambda: nn.Sequential(*parts)


NETWORKS = {
    "affine": sequential(nn.Flatten(), nn.Linear(64, 8), nn.Linear(8, 3)),
    "deep": lambda: nn.Sequential(
        *(nn.Flatten(), nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(inplace=True)),
        *(nn.Dropout(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 3)),
    ),
    "convolutions": lambda: nn.Sequential(
        *(nn.Conv2d(1, 4, 3, stride=2, padding=1), nn.LeakyReLU(0.2)),
        *(nn.Conv2d(4, 4, 3, groups=2), nn.ReLU(), nn.Flatten(), nn.Linear(16, 3, bias=False)),
    ),
    "curves": lambda: nn.Sequential(
        *(nn.Flatten(), nn.Linear(64, 8), nn.Tanh(), nn.Linear(8, 8), nn.Sigmoid()),
        *(nn.Linear(8, 8), nn.LeakyReLU(1.5), nn.Linear(8, 3)),
    ),
    "pools": lambda: nn.Sequential(
        *(nn.Conv2d(1, 4, 3), nn.MaxPool2d(3, stride=2, padding=1, dilation=1), nn.Conv2d(4, 4, 2)),
        *(nn.MaxPool2d(2, stride=1, ceil_mode=True), nn.AvgPool2d(1), nn.Flatten()),
        nn.Linear(4, 3),
    ),
    "branches": Branching,
}


@pytest.fixture(params=NETWORKS)
def network(request):
    latent_map = IntervalMap(NETWORKS[request.param](), torch.Generator().manual_seed(0)).eval()
    with torch.no_grad():  # of a size at which bounds matter
        for part in latent_map.parameters():
            part.mul_(3).add_(0.01)
    return latent_map.requires_grad_(False)


@pytest.fixture
def images():
    return torch.rand(6, 1, 8, 8, generator=torch.Generator().manual_seed(0))


ROWS = torch.arange(6).repeat_interleave(3)


def leads_of(latent_map):
    """Weights of each difference of two logits, for each of six rows."""
    weight = latent_map.head.weight
    return (weight - weight.roll(1, 0)).repeat(6, 1)


def by_intervals(latent_map, box, weight):
    inside = Interval(*(part[ROWS] for part in latent_map.bounds(*box)))
    return (weight * inside.centre - weight.abs() * inside.radius).sum(1)


def lowest_found(latent_map, box, weight):
    """Least value at random corners, and where a descent from random points leads to."""
    low, high = (end[ROWS] for end in box)
    generator = torch.Generator().manual_seed(1)
    best = torch.full((len(ROWS),), torch.inf)
    for restart in range(6):
        share = torch.rand(low.shape, generator=generator)
        points = low + (high - low) * (share.round() if restart % 2 else share)
        for _ in range(40):
            points.requires_grad_()
            with torch.enable_grad():
                value = (weight * latent_map.body(points.clone()).flatten(1)).sum(1)
                (slope,) = torch.autograd.grad(value.sum(), points)
            best = torch.minimum(best, value.detach())
            points = points.detach() - 0.2 * (high - low) * slope.sign()
            points = torch.minimum(torch.maximum(points, low), high)
    return best


@pytest.mark.parametrize("n_steps", [0, 10])
def test_no_point_of_the_box_is_below(network, images, n_steps):
    box, weight = ball(images, RADIUS, (0, 1)), leads_of(network)
    lowest = LinearBounds(network.body, *box).lowest(ROWS, weight, n_steps)
    assert (lowest <= lowest_found(network, box, weight) + 1e-4).all()


def test_never_looser_than_intervals_nor_by_turning_slopes(network, images):
    box, weight = ball(images, RADIUS, (0, 1)), leads_of(network)
    bounds = LinearBounds(network.body, *box)
    lowest, turned = bounds.lowest(ROWS, weight), bounds.lowest(ROWS, weight, 10)
    assert (lowest >= by_intervals(network, box, weight) - 1e-4).all()
    assert (turned >= lowest - 1e-5).all()


def test_networks_that_bend_are_bounded_more_tightly(network, images):
    box, weight = ball(images, RADIUS, (0, 1)), leads_of(network)
    lowest = LinearBounds(network.body, *box).lowest(ROWS, weight, 10)
    found = lowest_found(network, box, weight)
    slack = (found - lowest).mean() / (found - by_intervals(network, box, weight)).mean()
    assert slack < 0.75


def test_affine_networks_are_bounded_exactly(images):
    latent_map = IntervalMap(NETWORKS["affine"](), torch.Generator().manual_seed(0)).eval()
    low, high = ball(images, RADIUS, (0, 1))
    weight = leads_of(latent_map)
    lowest = LinearBounds(latent_map.body, low, high).lowest(ROWS, weight)
    slope = weight @ latent_map.body.get_submodule("1").weight  # pairs 64
    worst = torch.where(slope > 0, low.flatten(1)[ROWS], high.flatten(1)[ROWS])
    exact = (weight * latent_map.body(worst.view(-1, 1, 8, 8))).sum(1)
    torch.testing.assert_close(lowest, exact, rtol=1e-4, atol=1e-5)


def test_a_box_of_no_size_is_the_point(network, images):
    weight = leads_of(network)
    lowest = LinearBounds(network.body, images, images).lowest(ROWS, weight, 2)
    value = (weight * network.body(images).flatten(1)[ROWS]).sum(1)
    torch.testing.assert_close(lowest, value, rtol=1e-4, atol=1e-4)


def test_pairs_do_not_depend_on_those_beside_them(network, images, monkeypatch):
    weight, box = leads_of(network)[:6], [end[:2] for end in ball(images, RADIUS, (0, 1))]
    together = LinearBounds(network.body, *box).lowest(ROWS[:6], weight, 3)
    monkeypatch.setattr("skmrr.nn.linear_bounds.MAX_VALUES", 10_000)
    apart = LinearBounds(network.body, *box).lowest(ROWS[:6], weight, 3)
    torch.testing.assert_close(apart, together, rtol=1e-4, atol=1e-4)


def test_each_layer_that_bends_has_lines():
    """A layer without them would count as affine."""
    bent = {kind for kind, rule in MODULE_RULES.items() if rule is _ends}
    assert bent <= set(RELAXATIONS)
    one_sided = Interval(torch.zeros(1, 1, 4, 4), torch.ones(1, 1, 4, 4))
    for rules in (FUNCTION_RULES, METHOD_RULES):
        for target, rule in rules.items():
            size = (2,) if target is functional.max_pool2d else ()
            try:
                out = rule(target, one_sided, *size)
            except (TypeError, AttributeError):
                continue  # of two operands
            if (out.centre != 0).any():  # what is affine and keeps 0 keeps what is even
                assert target in LAYERS


@pytest.mark.parametrize("eps", [0.02, 0.05, 0.12])
def test_least_statistic_is_below_that_of_every_point_nearby(network, images, eps):
    statistic = CertifiedStatistic(network, 0.05, (0, 1))
    least = statistic.least(images, eps)
    pairs = torch.stack([ROWS, torch.arange(3).repeat(6)], dim=1)
    by_lines = statistic.least_by_lines(images, eps, pairs) if eps > 0.05 else None
    generator = torch.Generator().manual_seed(2)
    for _ in range(100):
        signs = torch.randint(0, 2, images.shape, generator=generator) * 2 - 1
        found = statistic((images + eps * signs).clamp(0, 1), NOTHING)
        assert (least <= found + 1e-4).all()
        if by_lines is not None:
            assert (by_lines.view(6, 3) <= found + 1e-4).all()


def test_agrees_with_auto_lirpa(images):
    lirpa = pytest.importorskip("auto_LiRPA", exc_type=ImportError)
    perturbations = pytest.importorskip("auto_LiRPA.perturbations", exc_type=ImportError)
    torch.manual_seed(0)
    dense = (nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU())
    strided = (nn.Conv2d(1, 4, 3, stride=2, padding=1), nn.ReLU(), nn.Conv2d(4, 4, 3, padding=1))
    networks = (
        nn.Sequential(*dense, nn.Linear(32, 3, bias=False)),
        nn.Sequential(*strided, nn.ReLU(), nn.Flatten(), nn.Linear(64, 3, bias=False)),
    )
    for network in networks:
        latent_map = IntervalMap(network.eval(), keep_weights=True).eval().requires_grad_(False)
        low, high = ball(images, RADIUS, None)
        lead = torch.eye(3) - torch.eye(3).roll(1, 0)
        norm = perturbations.PerturbationLpNorm(norm=float("inf"), x_L=low, x_U=high)
        bounded = lirpa.BoundedModule(network, torch.empty_like(images))
        theirs, _ = bounded.compute_bounds(
            x=(lirpa.BoundedTensor(images, norm),), C=lead.expand(6, 3, 3), method="backward"
        )
        weight = leads_of(latent_map)
        ours = LinearBounds(latent_map.body, low, high).lowest(ROWS, weight)
        spread = theirs.flatten() - by_intervals(latent_map, (low, high), weight)
        # Slopes are chosen by boxes: narrower ones, as ours, may choose the worse slope.
        assert (ours >= theirs.flatten() - 0.02 * spread.mean()).all()
