"""Suites of attacks on a classifier of ART: run, cached, judged."""

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import joblib
import numpy as np
import torch
from art.attacks.evasion import SaliencyMapMethod
from art.config import ART_NUMPY_DTYPE
from art.estimators.classification import PyTorchClassifier
from torch import nn
from tqdm.auto import tqdm

from skmrr.art._modules import as_module, channels_as_given, clip_values
from skmrr.attacks import AttackResult, carlini_l2
from skmrr.attacks.result import verified
from skmrr.nn.fingerprint import fingerprint
from skmrr.nn.placement import seeded
from skmrr.nn.tapped import shared_copy


class Attack(NamedTuple):
    """An attack of a suite."""

    method: Callable
    """Class of ART's evasion attacks, a function that makes one, or `skmrr.attacks.carlini_l2`."""
    params: dict
    """What it is called with, beside the classifier."""


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

    Each begins with the same seed, so that its result does not depend on what ran before; numpy's
    and torch's own generators go on afterwards where they were, and the network is left alone.

    Parameters
    ----------
    classifier : PyTorchClassifier
        With ``clip_values``. Of a defended one the view for rows of one class,
        ``defended_classifier(…, labels=c)``: to the other, "flagged" is a class like any.
    attacks : dict of str to Attack
        By name, as `paper_attacks` and `modern_attacks` give them.
    x : ndarray of shape (n_samples, …)
        Rows, best those that the classifier gets right: the others are adversarial as they are.
    y : ndarray of shape (n_samples,)
        True classes.
    batch_size : int, default=100
        Rows at a time.
    memory : joblib.Memory, optional
        Cache of the results, which depend on the classifier's weights, settings, preprocessing and
        loss, the attack and the rows.
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
    key = ""
    if memory is not None:
        run = memory.cache(_run_attack, ignore=["classifier"])
        key = _key(classifier)
    bar = tqdm(attacks.items(), "attacks", disable=not verbose)
    return {name: run(classifier, key, *attack, x, y, batch_size) for name, attack in bar}


def judge_transfer(
    result: AttackResult, classifier: PyTorchClassifier, x: np.ndarray, y: np.ndarray
) -> AttackResult:
    """Try on one classifier what an attack on another has found.

    Parameters
    ----------
    result : AttackResult
        Of an attack on the same rows, such as `run_attacks` on a classifier from another seed.
    classifier : PyTorchClassifier
        The victim. Of a defended one the view for rows of one class, as of `run_attacks`.
    x : ndarray of shape (n_samples, …)
        Rows as they were.
    y : ndarray of shape (n_samples,)
        True classes.

    Returns
    -------
    AttackResult
        Rows that fool the victim, NaN for the others.

    Examples
    --------
    >>> import torch
    >>> from art.estimators.classification import PyTorchClassifier
    >>> from skmrr.art import judge_transfer, modern_attacks, run_attacks
    >>> from skmrr.datasets import load_digits_images
    >>> X, y = load_digits_images()
    >>> source, victim = (
    ...     PyTorchClassifier(
    ...         torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10)),
    ...         torch.nn.CrossEntropyLoss(), (1, 8, 8), 10, clip_values=(0, 1),
    ...     )
    ...     for _ in range(2)
    ... )
    >>> suite = modern_attacks(eps=(0.2,), steps=5, square_steps=10, hop_steps=None)
    >>> found = run_attacks(source, suite, X[:5], y[:5])["PGD 0.2"]
    >>> judge_transfer(found, victim, X[:5], y[:5]).success.shape
    torch.Size([5])
    """
    x, y = np.asarray(x, dtype=ART_NUMPY_DTYPE), np.asarray(y, dtype=np.int64)
    return _judged(classifier, result.adversarial, x, y)


def _key(classifier: PyTorchClassifier) -> str:
    """Hash of all that an attack's outcome depends on in a classifier."""
    steps = [
        # what is private changes as rows come
        (type(step).__qualname__, {k: v for k, v in vars(step).items() if not k.startswith("_")})
        for step in classifier.preprocessing_operations
    ]
    networks = [fingerprint(part) for part in (as_module(classifier), classifier.loss)]
    return joblib.hash((networks, steps, clip_values(classifier), classifier.channels_first))


def _run_attack(classifier, key, method, params, x, y, batch_size) -> AttackResult:
    """Run one attack; `key` stands for the classifier in a cache."""
    network = channels_as_given(classifier)
    with _left_alone(network), _seeded(classifier.device):
        if method is carlini_l2:
            rows, labels = (torch.as_tensor(part, device=classifier.device) for part in (x, y))
            batches = zip(rows.split(batch_size), labels.split(batch_size), strict=True)
            params = {"clip_values": clip_values(classifier), **params}
            found = torch.cat([carlini_l2(network, *b, **params).adversarial for b in batches])
        else:
            attack = method(classifier, batch_size=batch_size, **params)
            n_classes, goal = classifier.nb_classes, y
            if method is SaliencyMapMethod:  # always goes for a class: a random other one
                steps = np.random.default_rng(0).integers(1, n_classes, len(y))
                goal = np.eye(n_classes, dtype=ART_NUMPY_DTYPE)[(y + steps) % n_classes]
            with warnings.catch_warnings():
                # PGD of ART hands tensors to numpy, in a way that numpy 2 frowns upon.
                warnings.filterwarnings("ignore", "__array__", DeprecationWarning)
                found = torch.as_tensor(attack.generate(x, goal))
    return _judged(classifier, found, x, y)


def _judged(classifier, found: torch.Tensor, x: np.ndarray, y: np.ndarray) -> AttackResult:
    """Outcome of an attack by the classifier's own word."""
    network, device = channels_as_given(classifier), classifier.device
    rows, labels = (torch.as_tensor(part, device=device) for part in (x, y))
    result = verified(shared_copy(network), rows, found.to(rows), labels, norm=2.0)
    return AttackResult(result.adversarial.cpu(), result.success.cpu(), result.distortion.cpu())


@contextmanager
def _seeded(device: torch.device, seed: int = 0) -> Iterator[None]:
    """Seed the global generators, which attacks of ART draw from, and restore them afterwards."""
    state = np.random.get_state()  # noqa: NPY002 - ART's own source of randomness
    try:
        np.random.seed(seed)  # noqa: NPY002
        with seeded(seed, device):
            yield
    finally:
        np.random.set_state(state)  # noqa: NPY002


@contextmanager
def _left_alone(network: nn.Module) -> Iterator[None]:
    """Keep modes and gradients of a network, which ART's attacks switch, compute and reset."""
    modes = [(part, part.training) for part in network.modules()]
    parameters = [(part, part.requires_grad, part.grad) for part in network.parameters()]
    try:
        network.eval()
        for parameter, _, _ in parameters:
            parameter.requires_grad = False
            parameter.grad = None
        yield
    finally:
        for part, training in modes:
            part.training = training
        for parameter, requires_grad, gradient in parameters:
            parameter.requires_grad = requires_grad
            parameter.grad = gradient
