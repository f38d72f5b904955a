"""Classifiers as people have them: the default ensemble takes each with nothing else given."""

import copy
from collections import namedtuple
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.parametrizations import spectral_norm, weight_norm

from skmrr import LogitsOf, MRREnsemble
from skmrr.nn.fingerprint import fingerprint

N_FIT, N_NEW = 500, 60
IMAGE, SERIES, TABLE, VOLUME, TOKENS = (1, 8, 8), (4, 16), (64,), (1, 4, 4, 4), (8, 8)


Both = namedtuple("Both", ["logits", "aux"])


class InPlaceResNet(nn.Module):
    """Residual blocks of functions, which work in place."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(1, 8, 3, padding=1)
        self.one, self.two = (nn.Conv2d(8, 8, 3, padding=1, bias=False) for _ in range(2))
        self.norm = nn.BatchNorm2d(8)
        self.fc = nn.Linear(8 * 16, 10)

    def forward(self, x):
        x = functional.relu(self.stem(x), inplace=True)
        y = functional.relu(self.norm(self.one(x)), inplace=True)
        x = functional.relu(self.two(y).add_(x), inplace=True)
        return self.fc(functional.avg_pool2d(x, 2).flatten(1))


class DenseNet(nn.Module):
    """Layers that see what all layers before them gave."""

    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList(nn.Conv2d(1 + 4 * k, 4, 3, padding=1) for k in range(3))
        self.classifier = nn.Linear(13 * 16, 10)

    def forward(self, x):
        for layer in self.layers:
            x = torch.cat([x, layer(x).relu()], 1)
        return self.classifier(functional.avg_pool2d(x, 2).flatten(1))


class SqueezeExcitation(nn.Module):
    """Channels weighed by linear layers that are registered after the head."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 16, 3, padding=1)
        self.head = nn.Linear(16 * 16, 10)
        self.squeeze, self.excite = nn.Linear(16, 4), nn.Linear(4, 16)

    def forward(self, x):
        x = functional.max_pool2d(self.conv(x).relu(), 2)
        gate = self.excite(self.squeeze(x.mean((2, 3))).relu()).sigmoid()
        return self.head((x * gate[:, :, None, None]).flatten(1))


class VisionTransformer(nn.Module):
    """Patches and a class token through a transformer."""

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(16, 10)  # registered first
        self.embed = nn.Conv2d(1, 16, 2, stride=2)
        self.token = nn.Parameter(torch.randn(1, 1, 16) * 0.02)
        self.position = nn.Parameter(torch.randn(1, 17, 16) * 0.02)
        layer = nn.TransformerEncoderLayer(16, 2, 32, dropout=0.0, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 1, enable_nested_tensor=False)
        self.norm = nn.LayerNorm(16)

    def forward(self, x):
        patches = self.embed(x).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.token.expand(len(x), -1, -1), patches], 1) + self.position
        return self.head(self.norm(self.encoder(tokens)[:, 0]))


class Normalising(nn.Module):
    """A network behind the mean and deviation of its pixels."""

    def __init__(self, network):
        super().__init__()
        self.register_buffer("mean", torch.tensor(0.3))
        self.network = network

    def forward(self, x):
        return self.network((x - self.mean) / 0.4)


class Recurrent(nn.Module):
    """The last state of an LSTM over a series."""

    def __init__(self):
        super().__init__()
        self.lstm = nn.LSTM(4, 24, batch_first=True)
        self.fc = nn.Linear(24, 10)

    def forward(self, x):
        return self.fc(self.lstm(x.transpose(1, 2))[0][:, -1])


class TokenTransformer(nn.Module):
    """A transformer over rows of features."""

    def __init__(self):
        super().__init__()
        layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 1, enable_nested_tensor=False)
        self.fc = nn.Linear(64, 10)

    def forward(self, x):
        return self.fc(self.encoder(x).flatten(1))


class Auxiliary(nn.Module):
    """A second head, which answers in training mode alone."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU())
        self.fc, self.aux = nn.Linear(32, 10), nn.Linear(32, 10)

    def forward(self, x):
        h = self.body(x)
        return Both(self.fc(h), self.aux(h)) if self.training else self.fc(h)


class Answering(nn.Module):
    """A network whose answer is wrapped."""

    def __init__(self, wrap):
        super().__init__()
        self.network = plain()
        self.wrap = wrap

    def forward(self, x):
        return self.wrap(self.network(x))


@dataclass(frozen=True)
class Animal:
    """A classifier, the shape of its rows, and how its owner has it once it is trained."""

    build: object
    shape: tuple = IMAGE
    where: object = None
    """Where its logits are in its answer."""
    change: object = None
    """What its owner does to it after the training."""
    layer: str | None = None
    """Checkpoint, where the logits are not the output of one linear layer."""
    n_classes: int = 10


def plain(n_outputs=10) -> nn.Sequential:
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, n_outputs))


def convolutional_head():
    layers = nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 10, 1)
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())


def normed(norm):
    return nn.Sequential(nn.Flatten(), norm(nn.Linear(64, 32)), nn.ReLU(), nn.Linear(32, 10))


def convolutions(kind, channels, n_positions):
    layers = kind(channels, 8, 3, padding=1), nn.ReLU(), nn.Flatten()
    return nn.Sequential(*layers, nn.Linear(8 * n_positions, 10))


def as_tuple(logits: Tensor):
    return logits, logits.sum()


def as_dict(logits: Tensor):
    return {"loss": None, "logits": logits}


def as_output(logits: Tensor):
    return SimpleNamespace(logits=logits, hidden_states=None)


def with_softmax(network):
    return LogitsOf(nn.Sequential(network, nn.Softmax(1)), probabilities=True)


ZOO = {
    "in-place resnet": Animal(InPlaceResNet),
    "densenet": Animal(DenseNet),
    "squeeze-excitation": Animal(SqueezeExcitation),
    "vision transformer": Animal(VisionTransformer),
    "1x1 convolution as head": Animal(convolutional_head, layer="1"),
    "normalising wrapper": Animal(lambda: Normalising(plain())),
    "convolutions on series": Animal(lambda: convolutions(nn.Conv1d, 4, 16), SERIES),
    "lstm on series": Animal(Recurrent, SERIES),
    "images without channels": Animal(plain, IMAGE[1:]),
    "tabular": Animal(lambda: plain()[1:], TABLE),
    "volumes": Animal(lambda: convolutions(nn.Conv3d, 1, 64), VOLUME),
    "transformer on token features": Animal(TokenTransformer, TOKENS),
    "auxiliary head": Animal(Auxiliary),
    "tuple": Animal(lambda: Answering(as_tuple), where=0),
    "dict": Animal(lambda: Answering(as_dict), where="logits"),
    "output object": Animal(lambda: Answering(as_output), where="logits"),
    "one logit": Animal(lambda: LogitsOf(plain(1)), n_classes=2),
    "bfloat16": Animal(plain, change=nn.Module.bfloat16),
    "float16": Animal(plain, change=nn.Module.half),
    "float64": Animal(plain, change=nn.Module.double),
    "compiled": Animal(plain, change=lambda net: torch.compile(net, backend="eager")),
    "data parallel": Animal(plain, change=nn.DataParallel),
    "frozen": Animal(plain, change=lambda net: net.requires_grad_(False)),
    "in training mode": Animal(InPlaceResNet, change=nn.Module.train),
    "softmax at the end": Animal(plain, change=with_softmax),
    "spectral norm": Animal(lambda: normed(spectral_norm)),
    "weight norm": Animal(lambda: normed(weight_norm)),
    "more outputs than classes": Animal(lambda: plain(1000)),
}


def trained(animal: Animal, X, y) -> nn.Module:
    """The classifier after a few steps."""
    torch.manual_seed(0)
    network = animal.build().eval()
    if animal.where is not None:
        network = LogitsOf(network, animal.where)
    optimizer = torch.optim.Adam(network.parameters(), 1e-2)
    x, classes = torch.as_tensor(X), torch.as_tensor(y)
    for _ in range(150):
        optimizer.zero_grad()
        functional.cross_entropy(network(x), classes).backward()
        optimizer.step()
    return network if animal.change is None else animal.change(network)


def fgsm(victim, X, y) -> np.ndarray:
    """Rows that one step along the signs of the gradient takes to another class."""
    x = torch.as_tensor(X).requires_grad_(True)
    network = copy.deepcopy(getattr(victim, "_orig_mod", victim)).eval()
    kind = next(network.parameters()).dtype
    loss = functional.cross_entropy(network(x.to(kind) + 0), torch.as_tensor(y))
    (gradient,) = torch.autograd.grad(loss, x)
    with torch.no_grad():
        moved = (x + 0.1 * gradient.sign()).clamp(0, 1)
        before, after = (network(rows.to(kind) + 0).argmax(1).numpy() for rows in (x, moved))
    return moved[torch.as_tensor((before == y) & (after != y))].numpy()


@pytest.fixture(scope="module")
def rows(digits):
    X, y = digits
    return X[: N_FIT + 100 + N_NEW], y[: N_FIT + 100 + N_NEW]


@pytest.mark.parametrize("name", ZOO)
def test_the_default_ensemble_takes_it(rows, name):
    animal = ZOO[name]
    X, y = rows[0].reshape(-1, *animal.shape), rows[1] % animal.n_classes
    victim = trained(animal, X[:N_FIT], y[:N_FIT])
    mode, before = victim.training, fingerprint(victim)
    new = slice(N_FIT + 100, None)
    given = X.copy()

    ensemble = MRREnsemble(
        victim,
        layer=animal.layer,
        clip_values=(0, 1),
        security_parameter=0.05,
        random_state=0,
    ).fit(X[: N_FIT + 100], y[: N_FIT + 100])
    risk = ensemble.risk(X[new])
    assert np.isfinite(risk).all()
    assert (risk > 0.95).mean() < 0.25  # of sixty clean rows
    fooling = fgsm(victim, X[new], y[new])
    assert len(fooling) >= 4
    higher = ensemble.risk(fooling)[:, None] > risk
    assert higher.mean() > 0.55

    np.testing.assert_array_equal(X, given)
    assert (victim.training, fingerprint(victim)) == (mode, before)
    np.testing.assert_array_equal(copy.deepcopy(ensemble).risk(X[new]), risk)
    with ThreadPoolExecutor(4) as pool:
        parts = pool.map(ensemble.risk, [X[new][k : k + 15] for k in range(0, N_NEW, 15)])
    np.testing.assert_allclose(np.concatenate(list(parts)), risk, atol=5e-3)
