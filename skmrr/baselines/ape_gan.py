"""APE-GAN: rows whose class changes once a generator has taken adversarial noise out of them."""

from dataclasses import KW_ONLY, dataclass
from numbers import Integral, Real
from typing import ClassVar, Literal

import torch
from jaxtyping import Float
from sklearn.utils.validation import check_is_fitted
from torch import Tensor, nn
from torch.nn import functional

from skmrr._sklearn import Interval, StrOptions
from skmrr.base import StatisticDetector
from skmrr.baselines import _default_networks
from skmrr.baselines._training import (
    check_rebuilds,
    descend,
    map_rows,
    train_epochs,
    value_range,
)
from skmrr.nn.placement import as_input, draw_seed, seeded
from skmrr.nn.statistic import ClassFreeStatistic, Statistic, against_best_other
from skmrr.nn.tapped import Pass, Tapped, trainable_copy

EPS_SHARE = 0.3  # of the range of X; the paper's attack on MNIST
BETAS = (0.5, 0.999)  # of Adam, as in the paper


@dataclass(eq=False, repr=False)
class APEGANDetector(StatisticDetector):
    """APE-GAN: a generator purifies rows, and the classifier is asked again.

    The generator is trained to turn adversarial rows back into the clean ones, with a discriminator
    against it that tells purified rows from clean ones. A row that the classifier gives another
    class once it is purified is odd.

    This defence is trained on attacks: fast gradient sign examples of the very classifier. It
    needs the classifier's gradients, and knows in `fit` the kind of attack that it is to stop;
    compare it with defences that do not with that in mind.

    Parameters and attributes that are not listed here are those of `BaseDetector`.

    Parameters
    ----------
    classifier : nn.Module, optional
        The victim, rows of X → logits. Without it the training rows are disturbed by random ±ε,
        and the statistic is ‖G(x) − x‖², the change that purifying makes.
    eps : "auto" or float, default="auto"
        Size ε of the attack in training, in the units of X; ``"auto"`` is 0.3 of the range of X,
        the paper's on MNIST. Take far less for natural images, such as 0.03 of the range.
    generator : nn.Module, optional
        Template, rows of X → rows of X, copied once per fit and never changed; its weights are
        where the training starts. By default a fresh network: two strided convolutions and
        back for images of 8×8 pixels at least, else one hidden layer.
    adversarial_weight : float, default=0.3
        Weight ξ₂ of the discriminator's verdict in the generator's loss, in [0, 1]; that of the
        content is ξ₁ = 1 − ξ₂. The default is the paper's. Less gives purified rows closer to the
        clean ones, above all where rows are few or no images.
    width : int, default=32
        Channels of the first layer of the default networks, and twice as many in the second.
    max_epochs : int, default=8
        Passes over the training rows.
    learning_rate : float, default=1e-3
        Of Adam, for generator and discriminator.
    clip_values : tuple of float, optional
        Declared range of X, e.g. ``(0, 1)``; other values raise an error. By default the range of
        the training rows. Purified and attacked rows stay in it.
    training_batch_size : int, default=64
        Most rows per training step.

    Attributes
    ----------
    eps_ : float
        In use.
    history_ : dict of str to list of float
        ``loss`` of the generator and ``discriminator_loss``, the mean of each epoch.

    Notes
    -----
    The published defence classifies the purified row and flags nothing. As a detector its verdict
    is whether the class changes; the statistic here is the soft form of that, by how much the
    classifier, shown G(x), prefers another class to its decision for x: max_{j≠ŷ} z_j − z_ŷ.

    The generator's loss is ξ₁ MSE(G(x_adv), x) + ξ₂ (−log D(G(x_adv))), the error being taken in
    units of the range of X. The authors' program takes the root of that error, which has more say
    where it is small: there lower `adversarial_weight`. As there, the generator is shown
    adversarial rows alone. The default networks are half as wide as the paper's for MNIST, the
    discriminator has a convolution less and no batch normalisation, and Adam takes larger steps.
    The attacks are computed anew in each epoch, which takes a pass more but no memory.

    References
    ----------
    S. Shen, G. Jin, K. Gao, Y. Zhang, "APE-GAN: Adversarial Perturbation Elimination with GAN",
    arXiv:1707.05474, 2017.

    Examples
    --------
    >>> import numpy as np
    >>> from skmrr.baselines import APEGANDetector
    >>> from skmrr.datasets import load_digits_images
    >>> X, y = load_digits_images()
    >>> apegan = APEGANDetector(
    ...     adversarial_weight=0.05, max_epochs=3, training_batch_size=32, clip_values=(0, 1),
    ...     random_state=0,
    ... ).fit(X[:1500], y[:1500])
    >>> noisy = np.clip(X[1500:] + np.random.default_rng(0).normal(0, 0.3, X[1500:].shape), 0, 1)
    >>> bool(np.square(apegan.purify(noisy) - X[1500:]).mean() < np.square(noisy - X[1500:]).mean())
    True
    """

    _: KW_ONLY
    eps: float | Literal["auto"] = "auto"
    generator: nn.Module | None = None
    adversarial_weight: float = 0.3
    width: int = 32
    max_epochs: int = 8
    learning_rate: float = 1e-3
    training_batch_size: int = 64

    _parameter_constraints: ClassVar[dict] = {
        **StatisticDetector._parameter_constraints,
        "eps": [StrOptions({"auto"}), Interval(Real, 0, None, closed="left")],
        "generator": [nn.Module, None],
        "adversarial_weight": [Interval(Real, 0, 1, closed="both")],
        "width": [Interval(Integral, 1, None, closed="left")],
        "max_epochs": [Interval(Integral, 1, None, closed="left")],
        "learning_rate": [Interval(Real, 0, None, closed="neither")],
        "training_batch_size": [Interval(Integral, 1, None, closed="left")],
    }

    def purify(self, X):
        """Take adversarial noise out of each row by the generator.

        Parameters
        ----------
        X : array-like, Tensor, Dataset or DataLoader of shape (n_samples, …)
            Rows of the shape and scale seen in `fit`.

        Returns
        -------
        purified : ndarray of shape (n_samples, …)
            In the shape and range of X.
        """
        check_is_fitted(self, "evidence_")
        return map_rows(self, self.statistic_.purifier, X)

    def purified_classifier(self) -> nn.Module:
        """Classifier of purified rows as a torch module, the defence as published.

        Returns
        -------
        nn.Module
            Rows → the classifier's logits at the purified row. It shares the networks.

        Raises
        ------
        ValueError
            If the detector has no classifier.
        """
        check_is_fitted(self, "evidence_")
        classifier = self.evidence_.classifier
        if classifier is None:
            raise ValueError("There is no classifier to show purified rows: give classifier=….")
        purifier = self.statistic_.purifier
        return _default_networks.RebuildingClassifier(purifier, classifier).eval()

    def _fit_statistic(self, rows, columns, train, random_state):
        device, classifier = self._device(), self._tapped()
        low, high = value_range(rows, train, self.clip_values, self.batch_size_)
        self.eps_ = EPS_SHARE * (high - low) if self.eps == "auto" else self.eps
        with seeded(draw_seed(random_state), device):
            network = self._train(classifier, rows, columns, train, (low, high))
        purifier = _default_networks.InRange(network, low, high)
        if classifier is None:
            return ChangeStatistic(purifier, len(self.classes_))
        return PurifiedStatistic(purifier, classifier, torch.as_tensor(self.classes_))

    def _train(self, classifier, rows, columns, train, extent) -> nn.Module:
        low, high = extent
        device = self._device()
        if self.generator is None:
            generator = _default_networks.generator(rows.shape, low, high, self.width)
        else:
            generator = trainable_copy(self.generator)
        generator.to(device).requires_grad_(True)
        first = as_input(rows.take(train[:1]), generator)
        check_rebuilds(generator, first, "generator")
        discriminator = _default_networks.discriminator(rows.shape, low, high, self.width)
        pair = Pair(
            generator,
            discriminator.to(first),
            learning_rate=self.learning_rate,
            xi_2=self.adversarial_weight,
            span=high - low,
        )
        discriminator_losses = []

        def step(x, indices):
            labels = torch.as_tensor(self.classes_[columns[indices]], device=device)
            attacked = self._attack(classifier, x, labels).clamp(low, high)
            loss, discriminator_loss = pair.step(x, attacked)
            discriminator_losses.append(float(discriminator_loss))
            return loss

        losses = train_epochs(
            step,
            rows,
            train,
            generator.train(),
            max_epochs=self.max_epochs,
            batch_size=self.training_batch_size,
            desc="generator",
            verbose=self.verbose,
        )
        by_epoch = torch.as_tensor(discriminator_losses).view(self.max_epochs, -1).mean(1)
        self.history_ = {"loss": losses, "discriminator_loss": by_epoch.tolist()}
        return generator.eval().requires_grad_(False)

    def _attack(self, classifier: Tapped | None, x: Tensor, labels: Tensor) -> Tensor:
        """Fast gradient sign examples of the classifier, or rows with random ±ε."""
        if classifier is None:
            return x + self.eps_ * (2 * torch.randint_like(x, 2) - 1)
        x = x.clone().requires_grad_(True)
        loss = functional.cross_entropy(classifier(x).logits, labels, reduction="sum")
        (gradient,) = torch.autograd.grad(loss, x)
        return (x + self.eps_ * gradient.sign()).detach()


class Pair:
    """Generator and discriminator, and how they are trained against each other.

    Parameters
    ----------
    generator, discriminator : nn.Module
        Rows → rows; rows → one logit, high for clean.
    learning_rate : float
        Of Adam, for each.
    xi_2 : float
        Weight of the adversarial loss; that of the content is 1 − ξ₂.
    span : float
        Width of the range of the rows.
    """

    def __init__(self, generator, discriminator, *, learning_rate: float, xi_2: float, span: float):
        self.generator = generator
        self.discriminator = discriminator
        self.xi_2 = xi_2
        self.span = span
        self.of_generator, self.of_discriminator = (
            torch.optim.Adam(network.parameters(), learning_rate, betas=BETAS)
            for network in (generator, discriminator)
        )

    def step(self, clean: Tensor, attacked: Tensor) -> tuple[Tensor, Tensor]:
        """Train both on a batch; return the losses of generator and discriminator."""
        purified = self.generator(attacked)
        verdicts = self.discriminator(torch.cat([clean, purified.detach()]))[:, 0]
        is_clean = torch.arange(len(verdicts), device=clean.device) < len(clean)
        loss = functional.binary_cross_entropy_with_logits(verdicts, is_clean.to(verdicts))
        discriminator_loss = descend(self.of_discriminator, loss)
        content = functional.mse_loss(purified, clean) / self.span**2
        adversarial = functional.softplus(-self.discriminator(purified)).mean()  # −log D
        loss = (1 - self.xi_2) * content + self.xi_2 * adversarial
        return descend(self.of_generator, loss), discriminator_loss


class PurifiedStatistic(Statistic):
    """By how much the classifier, shown the purified row, prefers another class.

    Parameters
    ----------
    purifier : nn.Module
        Rows → rows.
    classifier : Tapped
        Rows → logits, run on purified rows.
    classes : Tensor of shape (classes,)
        The classifier's number of each class.
    """

    classes: Tensor

    def __init__(self, purifier: nn.Module, classifier: Tapped, classes: Tensor):
        super().__init__()
        self.purifier = purifier
        self.classifier = classifier
        self.register_buffer("classes", classes)

    def forward(self, x: Tensor, passed: Pass) -> Float[Tensor, "batch classes"]:
        """Return max_{j≠c} z_j(G(x)) − z_c(G(x)) under each class c, high = odd."""
        logits = self.classifier(self.purifier(x)).logits
        return against_best_other(logits.double())[:, self.classes]


class ChangeStatistic(ClassFreeStatistic):
    """Squared length of what purifying changes, whatever the class.

    Parameters
    ----------
    purifier : nn.Module
        Rows → rows.
    n_classes : int
        Number of classes.
    """

    def __init__(self, purifier: nn.Module, n_classes: int):
        super().__init__(n_classes)
        self.purifier = purifier

    def level(self, x: Tensor, passed: Pass) -> Float[Tensor, " batch"]:
        """Return ‖G(x) − x‖²."""
        return (self.purifier(x) - x).double().flatten(1).square().sum(1)
