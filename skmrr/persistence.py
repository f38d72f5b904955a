"""Fitted detectors saved and loaded: safetensors and JSON, no pickle, nothing executed."""

import warnings
from collections.abc import Mapping
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import sklearn
import torch
from sklearn.base import BaseEstimator
from sklearn.pipeline import Pipeline
from sklearn.utils.validation import check_is_fitted
from torch import nn

from skmrr.detector_files import HASHES, read_document, write_document
from skmrr.harmless import Change
from skmrr.joining import unfrozen
from skmrr.nn.fingerprint import fingerprint, fingerprint_of_weights
from skmrr.nn.known import add_known
from skmrr.nn.placement import resolve_device
from skmrr.records import (
    CLASSIFIER,
    EstimatorAuditor,
    EstimatorBuilder,
    EstimatorWriter,
    add_own_classes,
    find_givens,
    guarded_detector,
)
from skmrr.threshold import RiskMixin

TOLERANCE = 0.05  # of the scores of made-up rows: other processors and versions round otherwise


def register(kind: type) -> type:
    """Let files hold objects of a class; for use as a decorator.

    Parameters
    ----------
    kind : type
        A detector, a `skmrr.nn.Statistic` or another torch module, or a `skmrr.harmless.Change`.
        Files name it by its module. It is built without its ``__init__``, from what it holds:
        numbers, strings, arrays, lists and the like of these, tensors, and other such objects.

    Returns
    -------
    type
        The same.

    Examples
    --------
    >>> import torch
    >>> from skmrr.persistence import register
    >>> @register
    ... class Doubled(torch.nn.Module):
    ...     def forward(self, x):
    ...         return 2 * x
    """
    if not (isinstance(kind, type) and issubclass(kind, BaseEstimator | nn.Module | Change)):
        raise TypeError(f"{kind!r} is no class of detectors, torch modules or changes.")
    add_known(kind)
    return kind


def save(detector, path) -> None:
    """Write a fitted detector to a file, without the classifier's weights.

    A file that is there already stays whole until the new one is.

    Parameters
    ----------
    detector : BaseDetector, FixedThresholdDetector or Pipeline
        Fitted; a Pipeline ends in a detector.
    path : str or Path
        The file.

    Raises
    ------
    NotFittedError
        If it is not fitted.
    TypeError
        If it is no detector, or holds what cannot be stored, such as a function.
    ValueError
        If it looks at a network that is no longer among its parameters.

    See Also
    --------
    load : The way back.

    Examples
    --------
    >>> import tempfile
    >>> from sklearn.datasets import load_digits
    >>> import skmrr
    >>> X, y = load_digits(return_X_y=True)
    >>> classifier = torch.nn.Linear(64, 10)
    >>> detector = skmrr.MarginDetector(classifier, random_state=0).fit(X, y)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     skmrr.save(detector, f"{folder}/detector.safetensors")
    ...     again = skmrr.load(f"{folder}/detector.safetensors", classifier=classifier)
    >>> bool((again.risk(X) == detector.risk(X)).all())
    True
    """
    add_own_classes()
    if not isinstance(detector, RiskMixin | Pipeline):
        raise TypeError(f"save takes a detector, or a Pipeline that ends in one; got {detector!r}.")
    guarded = guarded_detector(detector)
    check_is_fitted(detector)
    givens, names = find_givens(detector)
    writer = EstimatorWriter(givens, names)
    try:
        root = writer.value(detector)["ref"]
    except RecursionError as error:
        raise TypeError("The detector refers to itself, which cannot be stored.") from error
    document = {
        "versions": _versions(),
        "device": str(guarded.device),
        "givens": {name: _hashes(network) for name, network in givens.items()},
        "records": writer.records,
        "root": root,
        "trial": _trial(detector),
    }
    write_document(Path(path), document, writer.stored)


def load(path, *, classifier: nn.Module | None = None, modules: Mapping | None = None):
    """Read a detector that `save` has written. Nothing in the file is executed.

    A file says what a detector computes, not who has written it: whoever may change it may change
    the verdicts.

    Parameters
    ----------
    path : str or Path
        The file.
    classifier : nn.Module, optional
        The classifier that the detector was fitted with, with the same weights.
    modules : dict of str to nn.Module, optional
        Other networks among the detector's parameters, by their names in `get_params`, that the
        file cannot say how to build, as they are neither made of layers of torch nor like a part
        of the classifier. An error says which are missing.

    Returns
    -------
    detector : estimator
        As it was saved, its scores included, where its ``device`` says; on the CPU if that is not
        there.

    Raises
    ------
    ValueError
        If a network is missing or another one than in `fit`, if the file is damaged, no detector,
        or of another format, or if the detector scores otherwise here than where it was saved.

    See Also
    --------
    save : Writes the file, and has an example.
    """
    add_own_classes()
    with _explaining(path):
        document, stored = read_document(Path(path))
        auditor = EstimatorAuditor(stored, document["givens"])
        auditor.audit(document["records"])
    givens = dict(modules or {}) | ({} if classifier is None else {CLASSIFIER: classifier})
    _check_givens(document, givens)
    with _explaining(path):
        device = _device(document["device"], classifier)
        built = EstimatorBuilder(stored, givens, device).build(document["records"])
        detector = built[document["root"]]
        if not isinstance(detector, RiskMixin | Pipeline):
            raise ValueError("its root is no detector.")
        guarded_detector(detector)
        check_is_fitted(detector)
        _check_trial(detector, document)
    return detector


def _versions() -> dict[str, str]:
    return {"torch": torch.__version__, "scikit-learn": sklearn.__version__}


def _hashes(network: nn.Module) -> dict[str, str]:
    values = fingerprint(network), fingerprint_of_weights(network)
    return dict(zip(HASHES, values, strict=True))


@contextmanager
def _explaining(path):
    """Turn whatever a damaged file leads to into one kind of error."""
    try:
        yield
    except (MemoryError, OSError):
        raise
    except Exception as error:
        raise ValueError(f"{path} is no detector that can be read: {error}") from error


def _check_givens(document: dict, givens: dict[str, nn.Module]) -> None:
    """Raise a ValueError unless the networks are those that the detector was fitted with."""
    expected = document["givens"]
    if missing := sorted(expected.keys() - givens.keys()):
        others = [name for name in missing if name != CLASSIFIER]
        cures = ["classifier=…"] if CLASSIFIER in missing else []
        cures += [f"modules={{{', '.join(f'{name!r}: …' for name in others)}}}"] if others else []
        raise ValueError(f"The detector looks at networks that its file lacks: give {cures}.")
    if unknown := sorted(givens.keys() - expected.keys()):
        raise ValueError(f"The detector knows no network {unknown}; it takes {sorted(expected)}.")
    same_torch = document["versions"].get("torch") == torch.__version__
    for name, network in givens.items():
        if not isinstance(network, nn.Module):
            raise TypeError(f"{name} must be an nn.Module, not a {type(network).__name__}.")
        # Of another torch a layer may have other settings; the trial tells whether these matter.
        own, hashes = _hashes(network), HASHES if same_torch else ("weights",)
        if any(own[key] != expected[name][key] for key in hashes):
            raise ValueError(
                f"{name} is another network than the one that the detector was fitted with: give "
                "that one, with the same weights, data type and wrapper."
            )


def _device(name: str, classifier: nn.Module | None) -> torch.device:
    """Where the detector goes: where its parameter says, or the CPU if that is not there."""
    device = resolve_device(name, classifier)
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError):
        return torch.device("cpu")
    return device


def _trial(detector) -> list[float] | None:
    """Scores of two made-up rows; None where there are none, as before the calibration."""
    first = getattr(detector, "estimator_", detector)
    first = unfrozen(first)
    first = first.steps[0][1] if isinstance(first, Pipeline) else first
    shape = getattr(first, "input_shape_", None) or (first.n_features_in_,)
    clip_values = getattr(first, "clip_values", None)
    low, high = (0.0, 1.0) if clip_values is None else clip_values
    steps = np.arange(2 * int(np.prod(shape)), dtype=np.float64)
    rows = low + (high - low) * (0.5 + 0.5 * np.sin(1.7 * steps))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            scores = detector.score_samples(rows.reshape(2, *shape).astype(np.float32))
        except Exception:  # rows unlike any that it was fitted on, or no calibration yet
            return None
    return scores.tolist() if np.isfinite(scores).all() else None


def _check_trial(detector, document: dict) -> None:
    expected, found = document["trial"], _trial(detector)
    if expected is None:
        return
    if found is None or not np.allclose(found, expected, rtol=TOLERANCE, atol=TOLERANCE):
        raise ValueError(
            f"it scores rows otherwise here than where it was saved, with {document['versions']}: "
            "the classifier's code has changed, or a package computes otherwise. Take the same "
            "code and versions, or fit again."
        )
