"""Detectors in the Adversarial Robustness Toolbox, and its attacks on a defended classifier."""

import copy
from collections.abc import Callable
from contextlib import suppress
from typing import Any, NamedTuple

import joblib
import numpy as np
import torch
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from torch import nn
from tqdm.auto import tqdm

from skmrr.attacks import AttackResult, carlini_l2
from skmrr.attacks.result import verified
from skmrr.base import BaseDetector
from skmrr.ensemble import MRREnsemble
from skmrr.features import FeatureExtractor
from skmrr.latent import LatentDefender
from skmrr.nn.defended import DefendedClassifier
from skmrr.nn.hooks import evaluating, module_device
from skmrr.nn.inference import predict_labels
from skmrr.nn.replica import replicate
from skmrr.nn.rows import Rows

try:
    from art.attacks.evasion import (
        BasicIterativeMethod,
        DeepFool,
        FastGradientMethod,
        SaliencyMapMethod,
    )
    from art.config import ART_NUMPY_DTYPE
    from art.defences.detector.evasion.evasion_detector import EvasionDetector
    from art.defences.preprocessor.preprocessor import PreprocessorPyTorch
    from art.estimators.classification import PyTorchClassifier
except ImportError as error:
    raise ImportError(
        "skmrr.art needs the Adversarial Robustness Toolbox: pip install 'skmrr[art]'"
    ) from error

__all__ = ["Attack", "MRRDetector", "defended_classifier", "paper_attacks", "run_attacks"]


class MRRDetector(EvasionDetector):
    """A detector of this package as an evasion detector of ART.

    The classifier is seen as ART sees it: behind its preprocessing, within its ``clip_values``, on
    its device. It is only asked: neither its weights nor its mode change.

    Parameters
    ----------
    classifier : art.estimators.classification.PyTorchClassifier
        The victim. Its model returns logits.
    detector : BaseDetector, optional
        Template that `fit` clones and gives `classifier`, and a `LatentDefender` without module a
        replica of it; ``layer`` is named as in ``classifier.model``. A fitted one is ready for use
        and needs no `fit`. By default an `MRREnsemble`.

    Attributes
    ----------
    detector_ : BaseDetector or None
        The fitted detector, to set its ``security_parameter`` for one; None before `fit`.

    Raises
    ------
    TypeError
        If `classifier` or `detector` is of another kind.
    ValueError
        If a fitted `detector` asks the bare model of a classifier with preprocessing.

    Examples
    --------
    >>> import torch
    >>> from art.estimators.classification import PyTorchClassifier
    >>> from skmrr import LatentDefender
    >>> from skmrr.art import MRRDetector
    >>> from skmrr.datasets import load_digits_images
    >>> X, y = load_digits_images()
    >>> victim = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10))
    >>> loss = torch.nn.CrossEntropyLoss()
    >>> classifier = PyTorchClassifier(victim, loss, (1, 8, 8), 10, clip_values=(0, 1))
    >>> defence = MRRDetector(classifier, LatentDefender(random_state=0))
    >>> defence.fit(X[:1500], y[:1500], nb_epochs=2)
    >>> report, is_adversarial = defence.detect(X[1500:])
    >>> is_adversarial.shape, sorted(report)
    ((297,), ['risk', 'score', 'threshold'])
    """

    defence_params = ["classifier", "detector"]

    def __init__(self, classifier: PyTorchClassifier, detector: BaseDetector | None = None):
        super().__init__()
        self.classifier = classifier
        self.detector = detector
        self._check_params()
        self.detector_ = self._ready_made()

    def set_params(self, **kwargs) -> None:
        """Replace `classifier` or `detector`, and forget what was fitted for the old one."""
        before = self.get_params()
        super().set_params(**kwargs)
        if any(before[name] is not value for name, value in self.get_params().items()):
            self.detector_ = self._ready_made()

    def fit(self, x, y=None, batch_size: int = 128, nb_epochs: int = 20, **kwargs) -> None:
        """Fit a clone of `detector` on clean rows, as `BaseDetector.fit` does.

        Parameters
        ----------
        x : ndarray of shape (n_samples, …)
            Clean rows, best ones that the classifier was not trained on.
        y : ndarray of shape (n_samples,) or (n_samples, n_classes), optional
            True classes, by index or one-hot; by default the classifier's decisions.
        batch_size : int, default=128
            Rows in a batch, also of training.
        nb_epochs : int, default=20
            Epochs of training, where `detector` is a `LatentDefender` or an ensemble of the default
            ones. The explicit members of an ensemble keep their own.
        **kwargs : dict
            Handed to the fit of `detector`.
        """
        detector = _default_ensemble() if self.detector is None else clone(self.detector)
        params = detector.get_params(deep=False)
        values: dict[str, Any] = {"classifier": as_module(self.classifier), "device": "auto"}
        values["batch_size"] = batch_size
        if self.classifier.clip_values is not None:
            values["clip_values"] = _clip_values(self.classifier)
        if params.get("layer") is not None and values["classifier"] is not self.classifier.model:
            values["layer"] = f"model.{params['layer']}"
        if isinstance(detector, LatentDefender) and detector.module is None:
            values["module"] = replicate(values["classifier"])
        training = {"max_epochs": nb_epochs, "training_batch_size": batch_size}
        if isinstance(detector, MRREnsemble) and detector.defenders is None:
            template = detector.estimator or _default_ensemble().estimator
            values["estimator"] = clone(template).set_params(**training)
        values |= {name: value for name, value in training.items() if name in params}
        detector.set_params(**values)
        self.detector_ = detector.fit(self._rows(x), self._class_index(y), **kwargs)

    def calibrate(self, x) -> None:
        """Set the threshold on clean rows that neither the classifier nor `fit` has seen."""
        detector, rows = self._fitted(), self._rows(x)
        self.detector_ = copy.copy(detector).calibrate(rows, labels=self._decisions(detector, rows))

    def detect(self, x, batch_size: int = 128, **kwargs) -> tuple[dict, np.ndarray]:
        """Judge rows.

        Parameters
        ----------
        x : ndarray of shape (n_samples, …)
            Rows, clean or not.
        batch_size : int, default=128
            Rows per forward pass. The result does not depend on it.
        **kwargs : dict
            Ignored, as ART's own detectors do.

        Returns
        -------
        report : dict
            ``"risk"`` in [0, 1] and ``"score"``, the log-survival, ndarrays of shape (n_samples,);
            ``"threshold"``, the score below which a row is flagged; of an `MRREnsemble`, where
            pandas is installed, ``"member_risks"``, DataFrame of shape (n_samples, n_members).
        is_adversarial : ndarray of bool of shape (n_samples,)
            Where a row is flagged.
        """
        # A copy shares all that is fitted.
        detector = copy.copy(self._fitted()).set_params(batch_size=batch_size)
        rows = self._rows(x)
        labels = self._decisions(detector, rows)
        score = detector.score_samples(rows, labels=labels)
        report = {"risk": 0.0 - np.expm1(score), "score": score, "threshold": detector.offset_}
        if isinstance(detector, MRREnsemble):
            with suppress(ImportError):
                report["member_risks"] = detector.member_risks(rows, labels=labels)
        return report, score < detector.offset_

    def _check_params(self) -> None:
        if not isinstance(self.classifier, PyTorchClassifier):
            raise TypeError(
                f"classifier is a {type(self.classifier).__name__}; wrap the torch model in "
                "art.estimators.classification.PyTorchClassifier."
            )
        if self.detector is None:
            return
        if not isinstance(self.detector, BaseDetector):
            raise TypeError(
                f"detector is a {type(self.detector).__name__}; give a detector of skmrr, such as "
                "MRREnsemble(), or None."
            )
        is_bare = self.detector.classifier is self.classifier.model
        if hasattr(self.detector, "module_") and is_bare:
            if as_module(self.classifier) is self.classifier.model:
                return
            raise ValueError(
                "The detector was fitted to classifier.model without the preprocessing of "
                "classifier; give it unfitted, and call fit."
            )

    def _ready_made(self) -> BaseDetector | None:
        return self.detector if hasattr(self.detector, "module_") else None

    def _fitted(self) -> BaseDetector:
        if self.detector_ is None:
            raise NotFittedError("This MRRDetector is not fitted; call fit(x, y) first.")
        return self.detector_

    def _rows(self, x) -> np.ndarray:
        """Rows in ART's precision, channels first."""
        x = np.asarray(x, dtype=ART_NUMPY_DTYPE)
        is_last = x.ndim > 2 and not self.classifier.channels_first
        return np.moveaxis(x, -1, 1) if is_last else x

    def _class_index(self, y) -> np.ndarray | None:
        if y is None or np.ndim(y) != 2:
            return y
        n_classes = self.classifier.nb_classes
        if np.shape(y)[1] != n_classes:
            raise ValueError(
                f"y has {np.shape(y)[1]} columns, the classifier {n_classes} classes; give class "
                "indices, or one-hot rows with a column for each class."
            )
        return np.argmax(y, axis=1)

    def _decisions(self, detector: BaseDetector, rows) -> np.ndarray | None:
        """Decisions of the classifier, for a ready-made detector that has none to ask."""
        if detector.classifier is not None:
            return None
        return predict_labels(as_module(self.classifier), Rows(rows), detector.batch_size)


def defended_classifier(
    detector: BaseDetector | MRRDetector,
    *,
    security_parameter: float | None = None,
    kappa: float = 1.0,
    labels: int | None = None,
    loss: nn.Module | None = None,
) -> PyTorchClassifier:
    """Victim and detector as one classifier of ART, for attacks that know both.

    Parameters
    ----------
    detector : BaseDetector or MRRDetector
        Fitted, with a classifier.
    security_parameter : float, optional
        False-alarm rate; by default that of `detector`.
    kappa : float, default=1.0
        Scale of the logit "flagged".
    labels : int, optional
        True class of all rows to attack. The classifier then has the victim's C classes, and any
        untargeted attack succeeds exactly where a row is misclassified and not flagged. Without
        it there are C + 1 classes, the last of which is "flagged".
    loss : nn.Module, optional
        Loss that attacks climb, cross-entropy by default.

    Returns
    -------
    PyTorchClassifier
        A copy: attacks leave `detector` and its classifier as they are. It takes rows as ART's
        classifier does, and stays in evaluation mode.

    Raises
    ------
    NotFittedError
        If `detector` is not fitted.
    ValueError
        If it has no classifier or no ``clip_values``, or there is no class `labels`.

    Examples
    --------
    >>> import torch
    >>> from art.attacks.evasion import FastGradientMethod
    >>> from skmrr import NoiseDefender
    >>> from skmrr.art import defended_classifier
    >>> from skmrr.datasets import load_digits_images
    >>> X, y = load_digits_images()
    >>> victim = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10))
    >>> detector = NoiseDefender(classifier=victim, clip_values=(0, 1), random_state=0)
    >>> classifier = defended_classifier(detector.fit(X[:500], y[:500]))
    >>> attack = FastGradientMethod(classifier, eps=0.1)
    >>> classifier.predict(attack.generate(X[:3], y[:3])).shape
    (3, 11)
    """
    channels_last = False
    victim = None
    if isinstance(detector, MRRDetector):
        channels_last = not detector.classifier.channels_first
        victim, detector = as_module(detector.classifier), detector._fitted()
    if not hasattr(detector, "module_"):
        raise NotFittedError(f"This {type(detector).__name__} is not fitted; call fit(X, y) first.")
    victim = victim if detector.classifier is None else detector.classifier
    if victim is None:
        raise ValueError("The detector has no classifier to defend; fit it with classifier=….")
    if detector.clip_values is None:
        raise ValueError(
            "The detector has no clip_values, which attacks have to stay within; "
            "set_params(clip_values=(lowest, highest)) with the range of X."
        )
    sp = detector.security_parameter if security_parameter is None else security_parameter
    shape = detector.input_shape_
    n_classes = _n_logits(victim, shape, detector.clip_values[0])
    defended = DefendedClassifier(victim, detector.module_, sp, kappa=kappa)
    network: nn.Module = defended
    if labels is not None:
        if labels not in range(n_classes):
            raise ValueError(f"labels={labels} must be one class, 0 to {n_classes - 1}.")
        network = defended.label_aware(torch.tensor(int(labels)))
    device = module_device(detector.module_)
    return PyTorchClassifier(
        _Attacked(copy.deepcopy(network), channels_last),
        loss or nn.CrossEntropyLoss(),
        (*shape[1:], shape[0]) if channels_last else shape,
        nb_classes=n_classes + (labels is None),
        channels_first=not channels_last,
        clip_values=tuple(detector.clip_values),
        device_type="cpu" if device.type == "cpu" else "gpu",
    )


class Attack(NamedTuple):
    """An attack of a suite."""

    method: Callable
    """Class of ART's evasion attacks, or `skmrr.attacks.carlini_l2`."""
    params: dict
    """What it is called with, beside the classifier."""


def paper_attacks(
    *,
    fgsm: tuple = (0.05, 0.1, 0.2),
    bim: tuple = (0.05, 0.1, 0.2),
    bim_steps: tuple[float, int] = (8, 20),
    deepfool: float | None = 0.02,
    jsma: tuple = (0.1,),
    carlini: tuple = (0, 10),
    **carlini_params,
) -> dict[str, Attack]:
    """Attacks that Rouhani et al. measure, each at several strengths, as a suite.

    Parameters
    ----------
    fgsm, bim : tuple of float, default=(0.05, 0.1, 0.2)
        Largest change ε of a value, in the units of X: one step, or several, along the signs of
        the gradient.
    bim_steps : (float, int), default=(8, 20)
        Steps of BIM: ε over the length of one, and how many.
    deepfool : float or None, default=0.02
        Share by which DeepFool's least L2 change is prolonged; None leaves DeepFool out.
    jsma : tuple of float, default=(0.1,)
        Largest share γ of the values that the saliency map attack sets to 1. It is slow on rows of
        many values.
    carlini : tuple of float, default=(0, 10)
        Confidence κ, in logits, of the L2 attack by Carlini and Wagner.
    **carlini_params : dict
        More of what `skmrr.attacks.carlini_l2` takes.

    Returns
    -------
    dict of str to Attack
        The first word of a name is FGSM, BIM, DeepFool, JSMA or CW, the second the strength.

    Examples
    --------
    >>> from skmrr.art import paper_attacks
    >>> list(paper_attacks(fgsm=(0.1,), bim=(), jsma=(0.05,), carlini=(0,)))
    ['FGSM 0.1', 'DeepFool', 'JSMA γ=0.05', 'CW κ=0']
    """
    ratio, steps = bim_steps
    quiet = {"verbose": False}
    suite = {f"FGSM {eps:g}": Attack(FastGradientMethod, {"eps": eps}) for eps in fgsm}
    for eps in bim:
        params = {"eps": eps, "eps_step": eps / ratio, "max_iter": steps, **quiet}
        suite[f"BIM {eps:g}"] = Attack(BasicIterativeMethod, params)
    if deepfool is not None:
        suite["DeepFool"] = Attack(DeepFool, {"max_iter": 50, "epsilon": deepfool, **quiet})
    for gamma in jsma:
        params = {"theta": 1.0, "gamma": gamma, **quiet}
        suite[f"JSMA γ={gamma:g}"] = Attack(SaliencyMapMethod, params)
    for kappa in carlini:
        params = {"confidence": float(kappa), **carlini_params}
        suite[f"CW κ={kappa:g}"] = Attack(carlini_l2, params)
    return suite


def run_attacks(
    classifier: PyTorchClassifier,
    attacks: dict[str, Attack],
    x: np.ndarray,
    y: np.ndarray,
    *,
    batch_size: int = 100,
    memory: joblib.Memory | None = None,
    verbose: bool = False,
) -> dict[str, AttackResult]:
    """Run a suite of untargeted attacks.

    Parameters
    ----------
    classifier : PyTorchClassifier
        With ``clip_values``. Of a defended one the view for rows of one class,
        ``defended_classifier(…, labels=c)``: to the other, "flagged" is a class like any.
    attacks : dict of str to Attack
        By name, as `paper_attacks` gives them.
    x : ndarray of shape (n_samples, …)
        Rows, best those that the classifier gets right: the others are adversarial as they are.
    y : ndarray of shape (n_samples,)
        True classes.
    batch_size : int, default=100
        Rows at a time.
    memory : joblib.Memory, optional
        Cache of the results, which depend on the classifier's weights, the attack and the rows.
    verbose : bool, default=False
        Whether to show a progress bar.

    Returns
    -------
    dict of str to AttackResult
        Tensors, by attack. Success means another class than the true one; distortion is the L2
        norm of the change.

    Raises
    ------
    ValueError
        If the classifier has no ``clip_values``.

    Examples
    --------
    >>> import torch
    >>> from art.estimators.classification import PyTorchClassifier
    >>> from skmrr.art import paper_attacks, run_attacks
    >>> from skmrr.datasets import load_digits_images
    >>> X, y = load_digits_images()
    >>> victim = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10))
    >>> loss = torch.nn.CrossEntropyLoss()
    >>> classifier = PyTorchClassifier(victim, loss, (1, 8, 8), 10, clip_values=(0, 1))
    >>> suite = paper_attacks(fgsm=(0.1, 0.3), bim=(), deepfool=None, carlini=())
    >>> results = run_attacks(classifier, suite, X[:5], y[:5])
    >>> results["FGSM 0.3"].adversarial.shape
    torch.Size([5, 1, 8, 8])
    """
    if classifier.clip_values is None:
        raise ValueError("Attacks need PyTorchClassifier(clip_values=(lowest, highest)).")
    x, y = np.asarray(x, dtype=ART_NUMPY_DTYPE), np.asarray(y, dtype=np.int64)
    run: Callable = _run_attack
    # An estimator's hash holds its network's values; torch's own holds addresses.
    key = ""
    if memory is not None:
        run = memory.cache(_run_attack, ignore=["classifier"])
        network = FeatureExtractor(as_module(classifier), "")
        key = joblib.hash((network, _clip_values(classifier), classifier.channels_first))
    bar = tqdm(attacks.items(), "attacks", disable=not verbose)
    return {name: run(classifier, key, *attack, x, y, batch_size) for name, attack in bar}


def _run_attack(classifier, key, method, params, x, y, batch_size) -> AttackResult:
    """Run one attack; `key` stands for the classifier in a cache."""
    network = _channels_as_given(classifier)
    rows, labels = (torch.as_tensor(part, device=classifier.device) for part in (x, y))
    with evaluating(network):
        if method is carlini_l2:
            batches = zip(rows.split(batch_size), labels.split(batch_size), strict=True)
            params = {"clip_values": _clip_values(classifier), **params}
            found = torch.cat([carlini_l2(network, *b, **params).adversarial for b in batches])
        else:
            attack = method(classifier, batch_size=batch_size, **params)
            n_classes, goal = classifier.nb_classes, y
            if method is SaliencyMapMethod:  # always goes for a class: a random other one
                steps = np.random.default_rng(0).integers(1, n_classes, len(y))
                goal = np.eye(n_classes, dtype=ART_NUMPY_DTYPE)[(y + steps) % n_classes]
            found = torch.as_tensor(attack.generate(x, goal), device=classifier.device)
        result = verified(network, rows, found, labels, norm=2.0)
    return AttackResult(result.adversarial.cpu(), result.success.cpu(), result.distortion.cpu())


def as_module(classifier: PyTorchClassifier) -> nn.Module:
    """Classifier of ART as a module, rows with channels first → logits, that gradients pass.

    It is ``classifier.model`` itself where ART adds nothing to it.
    """
    steps = [step for step in classifier.preprocessing_operations if _does_something(step)]
    if not steps and classifier.channels_first:
        return classifier.model
    return _Preprocessed(classifier.model, steps, not classifier.channels_first)


def _channels_as_given(classifier: PyTorchClassifier) -> nn.Module:
    """As `as_module`, for rows as ART holds them."""
    network = as_module(classifier)
    if isinstance(network, _Preprocessed):
        return _Preprocessed(network.model, network.steps)
    return network


def _does_something(step) -> bool:
    """Whether a step of preprocessing changes rows: ART's default one subtracts 0, divides by 1."""
    is_default = type(step).__name__.startswith("StandardisationMeanStd") and (
        np.all(step.mean == 0) and np.all(step.std == 1)
    )
    return step.apply_predict and not is_default


class _Preprocessed(nn.Module):
    """A model behind the preprocessing of ART.

    It holds no classifier of ART, which writes a file whenever it is copied.
    """

    def __init__(self, model: nn.Module, steps: list, channels_last: bool = False):
        super().__init__()
        self.model = model
        self.steps = steps
        self.channels_last = channels_last

    def forward(self, x):
        """Return the logits."""
        if self.channels_last and x.ndim > 2:
            x = x.movedim(1, -1)
        for step in self.steps:
            if isinstance(step, PreprocessorPyTorch):
                x, _ = step.forward(x)
            else:
                x = _NumpyStep.apply(x, step)
        return self.model(x)


class _NumpyStep(torch.autograd.Function):
    """Preprocessing in numpy, with ART's estimate of its gradient."""

    @staticmethod
    def forward(ctx, x, step):
        """Return the rows as the step leaves them."""
        ctx.x, ctx.step = x.detach().cpu().numpy(), step
        return torch.as_tensor(step(ctx.x)[0]).to(x)

    @staticmethod
    def backward(ctx, gradient):
        """Return the gradient before the step."""
        before = ctx.step.estimate_gradient(ctx.x, gradient.cpu().numpy())
        return torch.as_tensor(before).to(gradient), None


class _Attacked(nn.Module):
    """A network that gives gradients to its input alone and stays in evaluation mode."""

    def __init__(self, network: nn.Module, channels_last: bool):
        super().__init__()
        self.network = network.requires_grad_(False)
        self.channels_last = channels_last
        self.eval()

    def forward(self, x):
        """Return the logits."""
        return self.network(x.movedim(-1, 1) if self.channels_last and x.ndim > 2 else x)

    def train(self, mode: bool = True):
        """Stay in evaluation mode, whatever an attack asks for."""
        return super().train(False)


def _default_ensemble() -> MRREnsemble:
    """Make the default detector, its own default estimator at hand to be set."""
    return MRREnsemble(estimator=LatentDefender(exploration_radius="auto", learning_rate=3e-3))


def _clip_values(classifier: PyTorchClassifier) -> tuple[float, float]:
    """Range of all values of a row."""
    low, high = classifier.clip_values
    return float(np.min(low)), float(np.max(high))


def _n_logits(victim: nn.Module, shape: tuple, value: float) -> int:
    x = torch.full((1, *shape), float(value), device=module_device(victim))
    with evaluating(victim), torch.no_grad():
        return victim(x).shape[1]
