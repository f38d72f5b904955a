import pytest
import torch
from torch import nn

from skmrr import LatentDefender, replicate
from skmrr.nn.exploration import BallExplorer
from skmrr.nn.realignment import RealignmentLoss
from skmrr.nn.replica import class_means


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(0)
    features = nn.functional.normalize(torch.randn(7, 4, generator=generator))
    centres = torch.randn(3, 4, generator=generator)
    logits = torch.randn(7, 3, generator=generator)
    return features, logits, torch.tensor([0, 1, 2, 0, 1, 2, 2]), centres


def test_paper_loss_term_by_term(batch):
    features, logits, classes, centres = batch
    loss = RealignmentLoss(centres, gamma=0.01, clustering="paper")(features, logits, classes)
    expected = nn.functional.cross_entropy(logits, classes)
    spread = sum((centre.norm() - 1) ** 2 for centre in centres)
    for phi, y in zip(features, classes, strict=True):
        own = (centres[y] - phi).square().sum()
        others = sum((centres[i] - phi).square().sum() for i in range(3) if i != y)
        expected = expected + 0.01 * (own - others) / len(features)
    torch.testing.assert_close(loss, expected + 0.01 * spread)


def test_program_loss_term_by_term(batch):
    features, logits, classes, centres = batch
    loss = RealignmentLoss(centres, gamma=0.5, clustering="program")(features, logits, classes)
    expected = nn.functional.cross_entropy(logits, classes)
    expected = expected + 0.5 * sum((1 - c @ c).abs() for c in centres)
    for phi, y in zip(features, classes, strict=True):
        d, i = min(((centres[i] - phi).norm(), i) for i in range(3) if i != y)
        cosine = nn.functional.cosine_similarity(phi, centres[i], dim=0)
        term = 0.5 * (centres[y] - phi).square().sum() + cosine * d - d
        expected = expected + 0.5 * term / len(features)
    torch.testing.assert_close(loss, expected)


@pytest.mark.parametrize("clustering", ["paper", "program"])
def test_realignment_lowers_its_clustering_loss(net, digits, clustering):
    X, y = (torch.as_tensor(part[:900]) for part in digits)
    no_logits = torch.zeros(900, 10)  # leaves the clustering term and a constant

    def clustering_loss(gamma):
        defender = LatentDefender(
            replicate(net),
            gamma=gamma,
            clustering=clustering,
            max_epochs=10,
            learning_rate=3e-3,
            random_state=0,
        ).fit(X, y)
        with torch.no_grad():
            features = defender.statistic_.latent_map(X)
            means = nn.functional.normalize(class_means(features, y, 10))
            return float(RealignmentLoss(means, 1.0, clustering)(features, no_logits, y))

    assert clustering_loss(gamma=1.0) < clustering_loss(gamma=0.0)


@pytest.mark.parametrize("steps", [1, 2, 5])
def test_worst_points_stay_in_the_ball_and_raise_the_loss(steps):
    torch.manual_seed(0)
    x, target = torch.rand(100, 1, 6, 6), torch.rand(1, 6, 6)

    def loss(points):
        return (points - target).square().sum()

    points = BallExplorer(0.2, steps, (0.0, 1.0), 100, (1, 6, 6)).worst_points(x, loss)
    assert points.min() >= 0
    assert points.max() <= 1
    assert torch.all((points - x).abs() <= 0.2 + 1e-6)
    assert loss(points) > loss(x)


def test_ball_grows_with_the_training():
    torch.manual_seed(0)
    x = torch.zeros(1000, 5)
    for progress, largest in ((0.0, 0.0), (0.1, 0.25), (0.4, 1.0), (1.0, 1.0)):
        sizes = (
            BallExplorer(1.0, 2, None, 1000, (5,))
            .worst_points(x, torch.sum, progress)
            .abs()
            .amax(1)
        )
        assert sizes.max() == pytest.approx(largest, rel=0.01)
        assert sizes.mean() == pytest.approx(largest / 2, rel=0.1)  # drawn uniformly


def test_search_goes_on_from_the_last_point():
    x, last = torch.zeros(4, 3), torch.full((4, 3), 1e-3)
    points = BallExplorer(1.0, 1, None, 4, (3,)).worst_points(
        x, lambda points: 0 * points.sum(), last=last
    )
    torch.testing.assert_close(points, last)
