"""MagNet: rows that an autoencoder of clean rows cannot rebuild, or rebuilds as another class."""

import math
import warnings
from dataclasses import KW_ONLY, dataclass
from numbers import Integral, Real
from typing import ClassVar, Literal

import numpy as np
import torch
from jaxtyping import Float
from sklearn.exceptions import ConvergenceWarning
from sklearn.model_selection import train_test_split
from sklearn.utils.validation import check_is_fitted
from torch import Tensor, nn
from torch.nn import functional

from skmrr._sklearn import Interval, Options, StrOptions
from skmrr.base import StatisticDetector
from skmrr.baselines import _default_networks
from skmrr.baselines._training import (
    check_rebuilds,
    map_rows,
    train_network,
    value_range,
)
from skmrr.calibration import ConformalSurvival
from skmrr.nn.defended import DefendedClassifier
from skmrr.nn.placement import as_input, draw_seed, seeded
from skmrr.nn.rows import Rows
from skmrr.nn.statistic import ClassFreeStatistic
from skmrr.nn.tapped import NOTHING, Pass, Tapped, trainable_copy

TEMPERATURES = (10.0, 40.0)  # of the paper
NOISE_SHARE = 0.1  # of the range of X; the paper's noise on MNIST
COLLAPSED = 0.9  # share of the variance of rows that is left unexplained


@dataclass(eq=False, repr=False)
class MagNetDetector(StatisticDetector):
    """MagNet: detection by what an autoencoder makes of a row, and its reformer.

    An autoencoder learns to rebuild clean rows alone. A row far from them is rebuilt badly; one
    near them, but on the wrong side of the classifier's boundary, is rebuilt as another class.
    `defended_classifier` with ``reform=True`` is MagNet in full: the answer is the class of the
    rebuilt row, unless the row is flagged.

    Parameters and attributes that are not listed here are those of `BaseDetector`.

    Parameters
    ----------
    classifier : nn.Module, optional
        The victim, rows of X → logits. Without it only the error of reconstruction is judged.
    statistic : {"combined", "reconstruction", "divergence"}, default="combined"
        ``reconstruction``: mean over the values of a row of ``abs(x − AE(x)) ** norm``.
        ``divergence``: Jensen–Shannon divergence of softmax(f(x)/T) and softmax(f(AE(x))/T) at
        T = 10 and T = 40, f being the classifier's logits. ``combined``: all three.
    autoencoder : nn.Module, optional
        Template, rows of X → rows of X, copied once per fit and never changed; its weights are
        where the training starts. By default a fresh network: for images the paper's for MNIST,
        else one hidden layer half as wide as a row.
    norm : {1, 2}, default=1
        Power p of the error of reconstruction.
    noise_scale : "auto" or float, default="auto"
        Standard deviation, in the units of X, of the Gaussian noise on the rows that the
        autoencoder is trained on; ``"auto"`` is a tenth of the range of X, as in the paper on
        MNIST. The paper takes 0.025 of the range on CIFAR-10.
    validation_fraction : float, default=0.1
        Share of the training rows kept from the autoencoder, to make several statistics
        comparable.
    max_epochs : int, default=30
        Passes over the training rows.
    learning_rate : float, default=0.03
        Peak of Adam's, which falls along a cosine.
    clip_values : tuple of float, optional
        Declared range of X, e.g. ``(0, 1)``; other values raise an error. By default the range of
        the training rows. Rebuilt rows stay in it.
    training_batch_size : int, default=128
        Most rows per training step.

    Attributes
    ----------
    noise_scale_ : float
        In use.
    history_ : dict of str to list of float
        ``loss``: mean squared error of each epoch, in squared units of the range of X.

    Notes
    -----
    The paper gives each statistic a threshold of its own and flags a row that passes any. Here a
    row has one risk: each statistic becomes −log p on rows kept from the autoencoder, p being its
    rank p-value with an exponential tail beyond the last rank, and the largest counts. That is
    flagging by any, with thresholds of equal false-alarm rates; the calibration on top makes
    `security_parameter` the rate of them all together, where the paper adds up the rates.

    Other deviations. One autoencoder serves detection and reforming; for MNIST the authors train a
    second one without pooling, and detect by the two errors, squared and absolute, without any
    divergence. It has three channels for each channel of an image, as the paper's for MNIST,
    which may be few for colour images: give a larger one. The learning rate is larger than the
    paper's 0.001 and falls, so that fewer than its 100 epochs do.

    An autoencoder may collapse into one that answers every row with nearly the same. `fit` gives a
    `ConvergenceWarning` if it explains less than a tenth of the variance of the training rows.

    References
    ----------
    D. Meng, H. Chen, "MagNet: a Two-Pronged Defense against Adversarial Examples", CCS 2017.

    Examples
    --------
    >>> import numpy as np
    >>> from skmrr.baselines import MagNetDetector
    >>> from skmrr.datasets import load_digits_images
    >>> X, y = load_digits_images()
    >>> magnet = MagNetDetector(
    ...     max_epochs=4, training_batch_size=16, clip_values=(0, 1), random_state=0
    ... ).fit(X[:1400], y[:1400])
    >>> noisy = np.clip(X[1500:] + np.random.default_rng(0).normal(0, 0.4, X[1500:].shape), 0, 1)
    >>> bool(magnet.risk(noisy).mean() > magnet.risk(X[1500:]).mean())
    True
    """

    _: KW_ONLY
    statistic: str = "combined"
    autoencoder: nn.Module | None = None
    norm: int = 1
    noise_scale: float | Literal["auto"] = "auto"
    validation_fraction: float = 0.1
    max_epochs: int = 30
    learning_rate: float = 0.03
    training_batch_size: int = 128

    _parameter_constraints: ClassVar[dict] = {
        **StatisticDetector._parameter_constraints,
        "statistic": [StrOptions({"combined", "reconstruction", "divergence"})],
        "autoencoder": [nn.Module, None],
        "norm": [Options(Integral, {1, 2})],
        "noise_scale": [StrOptions({"auto"}), Interval(Real, 0, None, closed="left")],
        "validation_fraction": [Interval(Real, 0, 1, closed="neither")],
        "max_epochs": [Interval(Integral, 1, None, closed="left")],
        "learning_rate": [Interval(Real, 0, None, closed="neither")],
        "training_batch_size": [Interval(Integral, 1, None, closed="left")],
    }

    def reform(self, X):
        """Rebuild each row by the autoencoder.

        Parameters
        ----------
        X : array-like, Tensor, Dataset or DataLoader of shape (n_samples, …)
            Rows of the shape and scale seen in `fit`.

        Returns
        -------
        reformed : ndarray of shape (n_samples, …)
            In the shape and range of X.
        """
        check_is_fitted(self, "evidence_")
        return map_rows(self, self.statistic_.reformer, X)

    def reformed_classifier(self) -> nn.Module:
        """Classifier of reformed rows as a torch module, the second half of the defence.

        Returns
        -------
        nn.Module
            Rows → the classifier's logits at the reformed row. It shares the networks.

        Raises
        ------
        ValueError
            If the detector has no classifier.
        """
        check_is_fitted(self, "evidence_")
        classifier = self.evidence_.classifier
        if classifier is None:
            raise ValueError("There is no classifier to show reformed rows: give classifier=….")
        reformer = self.statistic_.reformer
        return _default_networks.RebuildingClassifier(reformer, classifier).eval()

    def defended_classifier(
        self, *, security_parameter=None, reform=False, **params
    ) -> DefendedClassifier:
        """Classifier and this detector as one torch module, to be attacked.

        Parameters
        ----------
        security_parameter : float, optional
            False-alarm rate of the threshold; by default that of the detector.
        reform : bool, default=False
            Whether the classifier is shown the reformed row; the detector always sees the row.
        **params : dict
            Other parameters of `skmrr.nn.DefendedClassifier`.

        Returns
        -------
        skmrr.nn.DefendedClassifier
            Rows → the classifier's logits and one more, "flagged". It shares the networks.

        Raises
        ------
        ValueError
            If the detector has no classifier.
        """
        if reform:
            params["classifier"] = self.reformed_classifier()
        return super().defended_classifier(security_parameter=security_parameter, **params)

    def _fit_statistic(self, rows, columns, train, random_state):
        if self.statistic == "divergence" and self.classifier is None:
            raise ValueError("statistic='divergence' compares logits: give classifier=….")
        device = self._device()
        low, high = value_range(rows, train, self.clip_values, self.batch_size_)
        self.noise_scale_ = (
            NOISE_SHARE * (high - low) if self.noise_scale == "auto" else self.noise_scale
        )
        classifier = None if self.statistic == "reconstruction" else self._tapped()
        n_statistics = (self.statistic != "divergence") + 2 * (classifier is not None)
        held_out = train
        if n_statistics > 1 and len(train) > 1:
            train, held_out = train_test_split(
                train, test_size=self.validation_fraction, random_state=random_state
            )
        with seeded(draw_seed(random_state), device):
            network = self._train(rows, train, low, high, device)
        statistic = MagNetStatistic(
            _default_networks.InRange(network, low, high),
            classifier,
            n_classes=len(self.classes_),
            norm=self.norm if self.statistic != "divergence" else None,
        )
        if n_statistics > 1:
            statistic.survival = self._survival(statistic, rows, held_out)
        return statistic

    def _train(self, rows, train, low, high, device) -> nn.Module:
        if self.autoencoder is None:
            network = _default_networks.autoencoder(rows.shape, low, high)
        else:
            network = trainable_copy(self.autoencoder)
        network.to(device).requires_grad_(True)
        first = as_input(rows.take(train[:1]), network)
        check_rebuilds(network, first, "autoencoder")

        def loss_of(x, indices):
            noisy = (x + self.noise_scale_ * torch.randn_like(x)).clamp(low, high)
            return functional.mse_loss(network(noisy), x) / (high - low) ** 2

        losses = train_network(self, loss_of, network, rows, train, desc="autoencoder")
        _warn_if_collapsed(losses[-1] * (high - low) ** 2, rows, train, self.batch_size_)
        return network

    @torch.no_grad()
    def _survival(self, statistic, rows, held_out) -> ConformalSurvival:
        """Of each statistic on clean rows that the autoencoder was not trained on."""
        classifier = statistic.classifier
        parts = []
        for _, batch in rows.batches(self.batch_size_, held_out):
            passed = NOTHING if classifier is None else classifier(batch)
            parts.append(statistic.statistics(as_input(batch, statistic), passed).cpu())
        values = torch.cat(parts).numpy()
        one_class = np.zeros(len(values), dtype=np.int64)
        return ConformalSurvival.fit(values, one_class, 1).to(self._device())


def _warn_if_collapsed(error: float, rows: Rows, train: np.ndarray, batch_size: int) -> None:
    """Give a warning if the rows' own mean is about as near them as what is rebuilt.

    `error` is the mean squared error of what is rebuilt, in squared units of the rows.
    """
    total, squares = torch.zeros(()), 0.0
    for _, batch in rows.batches(batch_size, train):
        total = total + batch.double().sum(0)
        squares += float(batch.double().square().sum())
    mean = total / len(train)
    variance = squares / (len(train) * mean.numel()) - float(mean.square().mean())
    if error > COLLAPSED * variance:
        warnings.warn(
            f"The autoencoder misses clean rows by {error:.3g} on average (squared), their mean "
            f"misses them by {variance:.3g}: it has learnt next to nothing. Raise max_epochs, "
            "change learning_rate or training_batch_size, or give another autoencoder.",
            ConvergenceWarning,
            stacklevel=2,
        )


class MagNetStatistic(ClassFreeStatistic):
    """What MagNet's detectors say of a row, whatever its class.

    Parameters
    ----------
    reformer : nn.Module
        Rows → rebuilt rows.
    classifier : Tapped or None
        Rows → logits, run on rebuilt rows; with it the divergences are among the statistics.
    n_classes : int
        Number of classes.
    norm : int or None
        Power of the error of reconstruction, which is left out with None.
    """

    def __init__(self, reformer: nn.Module, classifier: Tapped | None, n_classes: int, norm):
        super().__init__(n_classes)
        self.reformer = reformer
        self.classifier = classifier
        self.reads_logits = classifier is not None
        self.norm = norm
        self.survival: ConformalSurvival | None = None

    def level(self, x: Tensor, passed: Pass) -> Float[Tensor, " batch"]:
        """Return the statistic itself, or the largest −log p of several."""
        statistics = self.statistics(x, passed)
        if self.survival is None:
            return statistics[:, 0]
        of_one_class = torch.zeros(x.shape[0], dtype=torch.int64, device=statistics.device)
        return -self.survival(statistics, of_one_class).amin(1)

    def statistics(self, x: Tensor, passed: Pass) -> Float[Tensor, "batch statistics"]:
        """Error of reconstruction, and divergence at each temperature."""
        rebuilt = self.reformer(x)
        parts = []
        if self.norm is not None:
            parts.append((x - rebuilt).double().flatten(1).abs().pow(self.norm).mean(1))
        if self.classifier is not None:
            assert passed.logits is not None
            own, of_rebuilt = passed.logits.double(), self.classifier(rebuilt).logits.double()
            parts += [jensen_shannon(own / t, of_rebuilt / t) for t in TEMPERATURES]
        return torch.stack(parts, dim=1)


def jensen_shannon(
    logits: Float[Tensor, "batch classes"], others: Float[Tensor, "batch classes"]
) -> Float[Tensor, " batch"]:
    """Jensen–Shannon divergence, in nats, of the softmax of logits and of others."""
    log_p, log_q = logits.log_softmax(1), others.log_softmax(1)
    log_m = torch.logaddexp(log_p, log_q) - math.log(2)
    parts = [(log.exp() * (log - log_m)).sum(1) for log in (log_p, log_q)]
    return (parts[0] + parts[1]) / 2
