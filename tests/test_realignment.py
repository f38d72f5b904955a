import pytest
import torch
from torch import nn

from skmrr import LatentDefender, replicate
from skmrr.nn.exploration import BallExplorer
from skmrr.nn.realignment import RealignmentLoss
from skmrr.nn.replica import LatentMap, class_means


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(0)
    features = nn.functional.normalize(torch.randn(7, 4, generator=generator))
    centres = torch.randn(3, 4, generator=generator)
    logits = torch.randn(7, 3, generator=generator)
    return features, logits, torch.tensor([0, 1, 2, 0, 1, 2, 2]), centres


def test_paper_loss_term_by_term(batch):
    features, logits, classes, centres = batch
    loss = RealignmentLoss(centres, torch.arange(len(centres)), 0.01, "paper")(
        features, logits, classes
    )
    expected = nn.functional.cross_entropy(logits, classes)
    spread = sum((centre.norm() - 1) ** 2 for centre in centres)
    for phi, y in zip(features, classes, strict=True):
        own = (centres[y] - phi).square().sum()
        others = sum((centres[i] - phi).square().sum() for i in range(3) if i != y)
        expected = expected + 0.01 * (own - others) / len(features)
    torch.testing.assert_close(loss, expected + 0.01 * spread)


def test_program_loss_term_by_term(batch):
    features, logits, classes, centres = batch
    loss = RealignmentLoss(centres, torch.arange(len(centres)), 0.5, "program")(
        features, logits, classes
    )
    expected = nn.functional.cross_entropy(logits, classes)
    expected = expected + 0.5 * sum((1 - c @ c).abs() for c in centres)
    for phi, y in zip(features, classes, strict=True):
        d, i = min(((centres[i] - phi).norm(), i) for i in range(3) if i != y)
        cosine = nn.functional.cosine_similarity(phi, centres[i], dim=0)
        term = 0.5 * (centres[y] - phi).square().sum() + cosine * d - d
        expected = expected + 0.5 * term / len(features)
    torch.testing.assert_close(loss, expected)


def test_many_classes_do_not_drown_the_cross_entropy():
    torch.manual_seed(0)
    features = nn.functional.normalize(torch.randn(50, 8))

    def pull(n_classes):
        centres = nn.functional.normalize(torch.randn(n_classes, 8))
        classes, phi = torch.arange(50) % n_classes, features.clone().requires_grad_(True)
        loss = RealignmentLoss(centres, torch.arange(n_classes), 0.01, "paper")
        loss(phi, torch.zeros(50, n_classes), classes).backward()
        return float(phi.grad.norm(dim=1).mean())

    assert pull(1000) < 2 * pull(10)


def test_soft_targets_cluster_by_their_largest_class(batch):
    features, logits, classes, centres = batch
    loss = RealignmentLoss(centres[:2], torch.tensor([0, 2]), 0.01, "paper")
    has_centre = classes != 1
    soft = nn.functional.one_hot(classes, 3).float()
    hard = nn.functional.cross_entropy(logits, classes)
    alone = loss(features[has_centre], torch.zeros(5, 3), classes[has_centre])
    clustering = alone - nn.functional.cross_entropy(torch.zeros(5, 3), classes[has_centre])
    torch.testing.assert_close(loss(features, logits, soft), hard + clustering)


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
            return float(
                RealignmentLoss(means, torch.arange(len(means)), 1.0, clustering)(
                    features, no_logits, y
                )
            )

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


class Start(LatentMap):
    """A map whose logits are two of the three values of a row."""

    def features_and_logits(self, x):
        return x, 5 * x[:, :2]

    def initialise(self, x, classes, n_classes):
        pass


def transfer(radius, transfer_radius, n=200):
    """Rows of one class, and the points that an explorer has a map trained on."""
    torch.manual_seed(0)
    x, classes, seen = torch.rand(n, 3), torch.zeros(n, dtype=torch.int64), []

    def loss_of(points, labels):
        seen.append(points.detach().clone())
        return points[:, 2].sum()

    former = Start().eval() if transfer_radius else None
    explorer = BallExplorer(
        radius, 2, None, n, (3,), former=former, transfer_radius=transfer_radius
    )
    explorer.loss(loss_of, Start(), x, classes, torch.arange(n), 1.0)
    return x, seen[-1][n:]


def test_where_the_former_self_is_worst():
    """Its loss of class 0 rises with the second value, and falls with the first."""
    x, points = transfer(0.0, 0.4)
    change = points - x
    assert change.abs().max() <= 0.4 + 1e-6
    assert (change[:, 0] < 0.01).all()
    assert (change[:, 1] > -0.01).all()
    sizes = change[:, :2].abs().amax(1)
    assert sizes.mean() == pytest.approx(0.2, rel=0.15)  # drawn uniformly


def test_map_and_former_self_share_the_rows():
    x, points = transfer(0.1, 0.4)
    own, former = (points - x).split(100)
    assert own.abs().max() <= 0.1 + 1e-6
    assert (own[:, 2] > 0).all()  # where the map itself has its loss
    assert former[:, :2].abs().amax(1).mean() == pytest.approx(0.2, rel=0.2)


def test_transfer_learns_what_deceives_the_classifier(net, digits):
    """Points that a copy of the classifier is deceived by deceive the map less."""
    X, y = digits
    shared = {"classifier": net, "max_epochs": 15, "clip_values": (0, 1), "random_state": 0}
    x, labels = torch.as_tensor(X[1400:]), torch.as_tensor(y[1400:])
    x.requires_grad_(True)
    (gradient,) = torch.autograd.grad(nn.functional.cross_entropy(net(x), labels), x)
    moved = (x + 0.2 * gradient.sign()).detach().clamp(0, 1)
    right = {}
    for radius in (0.0, "auto"):
        defender = LatentDefender(
            replicate(net), transfer_radius=radius, learning_rate=3e-3, **shared
        )
        defender.fit(X[:1400], y[:1400])
        logits = defender.statistic_.latent_map.features_and_logits(moved)[1]
        right[radius] = float((logits.argmax(1) == labels).double().mean())
    assert right["auto"] > right[0.0] + 0.2
    assert 0.05 < defender.transfer_radius_ < 0.8
    assert defender.exploration_radius_ == 0
