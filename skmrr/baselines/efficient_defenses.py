"""Efficient Defenses: a copy of the classifier hardened by Gaussian noise and bounded ReLUs."""

import warnings
from dataclasses import KW_ONLY, dataclass
from numbers import Integral, Real
from typing import ClassVar, Literal

import numpy as np
import torch
from jaxtyping import Float
from sklearn.utils.validation import check_is_fitted
from torch import Tensor, nn
from torch.nn import functional

from skmrr._sklearn import Interval, StrOptions
from skmrr.base import StatisticDetector
from skmrr.baselines._training import (
    second_classifier,
    train_network,
    value_range,
    with_background,
)
from skmrr.nn.layers import replace_layer
from skmrr.nn.learnt_classes import LearntClasses
from skmrr.nn.placement import as_input, draw_seed, seeded
from skmrr.nn.statistic import Statistic, against_best_other
from skmrr.nn.tapped import Pass, Tapped

NOISE_SHARE = 0.3  # of the range of X
BOUND = 1.0  # of a ReLU trained from scratch
BOUND_QUANTILE = 0.99  # of a trained ReLU's positive activations
MAX_BOUND_ROWS = 256  # training rows that the quantile is taken on
MAX_BOUND_VALUES = 1_000_000  # activations


@dataclass(eq=False, repr=False)
class EfficientDefensesDetector(StatisticDetector):
    """Efficient Defenses: a hardened copy of the classifier, and whether it agrees.

    The copy is trained on clean rows with Gaussian noise, fresh in each batch, and its ReLUs are
    bounded, so that no small change grows without limit from layer to layer. A row is odd where
    the copy prefers another class than the classifier. `hardened_classifier` is the copy alone,
    the defence as published, which replaces the classifier and flags nothing.

    Parameters and attributes that are not listed here are those of `BaseDetector`.

    Parameters
    ----------
    module : nn.Module, optional
        Template of the copy, rows of X → logits, copied once per fit and never changed. By default
        `classifier`, and without one a network with one hidden layer.
    bound : "auto", float or None, default="auto"
        Bound t of each ``nn.ReLU``, which becomes min(max(x, 0), t). ``"auto"`` is 1 from scratch;
        with weights that are trained already, for each ReLU the 0.99 quantile of its positive
        activations on clean rows, as these may be of any size. None leaves the ReLUs as they are.
    noise_scale : "auto" or float, default="auto"
        Standard deviation σ of the noise, in the units of X; ``"auto"`` is 0.3 of the range of X,
        for digits. Take less for natural images, such as 0.05 of the range.
    from_scratch : bool, default=False
        Whether the copy forgets its weights first, layer by layer by ``reset_parameters``.
    max_epochs : int, default=10
        Passes over the training rows.
    learning_rate : float, default=1e-3
        Peak of Adam's, which falls along a cosine.
    clip_values : tuple of float, optional
        Declared range of X, e.g. ``(0, 1)``; other values raise an error. Noisy rows stay in it.
    training_batch_size : int, default=64
        Most rows per training step.

    Attributes
    ----------
    noise_scale_ : float
        In use.
    bounds_ : dict of str to float
        Bound in use of each ReLU, by its dotted name in the copy.
    history_ : dict of str to list of float
        ``loss``: mean cross-entropy of each epoch, on noisy rows.

    Warns
    -----
    UserWarning
        If there is a `bound`, but the network has no ``nn.ReLU`` to put it in: a network that
        calls ``torch.relu`` or the like is hardened by noise alone.

    Notes
    -----
    The published defence flags nothing. As a detector its verdict is whether copy and classifier
    disagree; the statistic is the soft form of that, by how much the copy prefers another class
    to the classifier's decision: max_{j≠ŷ} z_j − z_ŷ of the copy's logits z.

    Other deviations. The copy starts from the classifier's weights, which takes few epochs, where
    the paper trains from scratch (``from_scratch=True``), and it is trained on noisy rows alone:
    the expectation of the paper over the noise.

    Without `classifier` and `module`, a single class leaves nothing to tell apart. The network
    then tells noisy clean rows from rows drawn uniformly from the range of the training rows, and
    the statistic is by how much it takes a row for the latter.

    References
    ----------
    V. Zantedeschi, M.-I. Nicolae, A. Rawat, "Efficient Defenses Against Adversarial Attacks",
    AISec 2017.

    Examples
    --------
    >>> import numpy as np
    >>> from skmrr.baselines import EfficientDefensesDetector
    >>> from skmrr.datasets import load_digits_images
    >>> X, y = load_digits_images()
    >>> detector = EfficientDefensesDetector(max_epochs=5, clip_values=(0, 1), random_state=0)
    >>> detector = detector.fit(X[:1500], y[:1500])
    >>> wrong = (y[1500:] + 1) % 10  # what a fooled classifier might say
    >>> risk, risk_of_wrong = (detector.risk(X[1500:], labels=c) for c in (y[1500:], wrong))
    >>> bool(risk_of_wrong.mean() > 0.95 > risk.mean())
    True
    """

    _: KW_ONLY
    module: nn.Module | None = None
    bound: float | Literal["auto"] | None = "auto"
    noise_scale: float | Literal["auto"] = "auto"
    from_scratch: bool = False
    max_epochs: int = 10
    learning_rate: float = 1e-3
    training_batch_size: int = 64

    _parameter_constraints: ClassVar[dict] = {
        **StatisticDetector._parameter_constraints,
        "module": [nn.Module, None],
        "bound": [StrOptions({"auto"}), Interval(Real, 0, None, closed="neither"), None],
        "noise_scale": [StrOptions({"auto"}), Interval(Real, 0, None, closed="left")],
        "from_scratch": ["boolean"],
        "max_epochs": [Interval(Integral, 1, None, closed="left")],
        "learning_rate": [Interval(Real, 0, None, closed="neither")],
        "training_batch_size": [Interval(Integral, 1, None, closed="left")],
    }

    def hardened_classifier(self) -> nn.Module:
        """Hardened copy alone, which replaces the classifier in the defence as published.

        Returns
        -------
        nn.Module
            Rows → logits, numbered as those of `module` or `classifier`; of the default network
            in the order of ``classes_``. It shares the weights of the detector.
        """
        check_is_fitted(self, "evidence_")
        return self.statistic_.network

    def _fit_statistic(self, rows, columns, train, random_state):
        template = self.classifier if self.module is None else self.module
        # A copy of the classifier starts with all that it knows.
        is_taught = template is not None and not self.from_scratch
        device = self._device()
        learnt = LearntClasses(columns, train, len(self.classes_))
        low, high = value_range(rows, train, self.clip_values, self.batch_size_)
        self.noise_scale_ = (
            NOISE_SHARE * (high - low) if self.noise_scale == "auto" else self.noise_scale
        )
        with seeded(draw_seed(random_state), device):
            network = second_classifier(
                template,
                "classifier" if self.module is None else "module",
                rows,
                train,
                (low, high),
                self.classes_,
                device,
                from_scratch=self.from_scratch,
            )
            self._bound(network, rows, train, is_trained=is_taught)
            if template is not None:
                columns = self.classes_[columns]
            is_alone = template is None and len(self.classes_) == 1
            background = (low, high) if is_alone else None
            self._train(network, rows, torch.as_tensor(columns), train, background)
        classes = np.arange(len(self.classes_)) if template is None else self.classes_
        statistic = HardenedStatistic(network, torch.as_tensor(classes, device=device))
        return statistic if is_taught else learnt.confine(statistic).to(device)

    def _bound(self, network, rows, train, *, is_trained) -> None:
        """Bound the network's ReLUs."""
        self.bounds_ = {}
        if self.bound is not None:
            bound = BOUND if self.bound == "auto" else self.bound
            x = as_input(rows.take(train[:MAX_BOUND_ROWS]), network)
            measured_on = x if self.bound == "auto" and is_trained else None
            self.bounds_ = bound_relus(network, bound, measured_on)
            if not self.bounds_:
                warnings.warn(
                    "The network has no nn.ReLU module to bound, so that it is hardened by noise "
                    "alone; use nn.ReLU modules, or set bound=None to accept that.",
                    stacklevel=6,
                )

    def _train(self, network, rows, labels, train, background) -> None:
        def loss_of(x, indices):
            y = labels[torch.as_tensor(indices)].to(x.device)
            x = x + self.noise_scale_ * torch.randn_like(x)
            if self.clip_values is not None:
                x = x.clamp(*self.clip_values)
            if background is not None:
                x, y = with_background(x, y, background)
            return functional.cross_entropy(network(x), y)

        train_network(self, loss_of, network, rows, train, desc="harden")


class BoundedReLU(nn.Module):
    """ReLU with a bound: min(max(x, 0), t).

    Parameters
    ----------
    bound : float
        The bound t.
    """

    def __init__(self, bound: float):
        super().__init__()
        self.bound = bound

    def forward(self, x: Tensor) -> Tensor:
        """Return the activations."""
        return x.clamp(0.0, self.bound)  # both floats, as ONNX wants them

    def extra_repr(self) -> str:
        """Bound, for the printed network."""
        return f"bound={self.bound:g}"


class HardenedStatistic(Statistic):
    """By how much the hardened network prefers another class.

    Parameters
    ----------
    network : nn.Module
        Rows → logits.
    classes : Tensor of shape (classes,)
        The network's number of each class.
    """

    classes: Tensor

    def __init__(self, network: nn.Module, classes: Tensor):
        super().__init__()
        self.network = network
        self.register_buffer("classes", classes)

    def forward(self, x: Tensor, passed: Pass) -> Float[Tensor, "batch classes"]:
        """Return max_{j≠c} z_j − z_c under each class c, high = odd."""
        return against_best_other(self.network(x).double())[:, self.classes]


def bound_relus(network: nn.Module, bound: float, x: Tensor | None) -> dict[str, float]:
    """Replace each ``nn.ReLU`` inside a network by a bounded one; return the bounds by name.

    Parameters
    ----------
    network : nn.Module
        Changed in place.
    bound : float
        The bound of each.
    x : Tensor of shape (batch, …), optional
        Rows on which each bound is measured instead, a quantile of the positive activations.
    """
    relus = {
        name: part
        for name, part in network.named_modules(remove_duplicate=False)
        if isinstance(part, nn.ReLU) and name
    }
    once = {part: name for name, part in reversed(relus.items())}  # each by its first name
    measured = {} if x is None or not relus else _activation_quantiles(network, [*once.values()], x)
    bounds = {name: measured.get(once[part], bound) for name, part in relus.items()}
    for name, value in bounds.items():
        replace_layer(network, name, BoundedReLU(value))
    return bounds


@torch.no_grad()
def _activation_quantiles(network: nn.Module, names: list[str], x: Tensor) -> dict[str, float]:
    """Quantile of the positive activations of each ReLU that has any."""
    quantiles = {}
    for name, output in Tapped(network, names)(x).outputs.items():
        positive = output[output > 0]
        if len(positive):
            some = positive[:: -(-len(positive) // MAX_BOUND_VALUES)]
            quantiles[name] = float(some.double().quantile(BOUND_QUANTILE))
    return quantiles
