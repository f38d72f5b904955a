"""Members of an ensemble: from fitted estimators to statistics of one pass."""

import numpy as np
import torch
from sklearn.frozen import FrozenEstimator
from sklearn.pipeline import Pipeline
from torch import nn

from skmrr.base import BaseDetector
from skmrr.features import FeatureExtractor
from skmrr.nn.fingerprint import fingerprint
from skmrr.nn.learnt_classes import OfLearntClasses
from skmrr.nn.members import ArrayStep, Piped, WithOwnClassifier
from skmrr.nn.statistic import Statistic


def is_frozen(estimator) -> bool:
    """Whether a member is to be taken as it is."""
    return isinstance(estimator, FrozenEstimator)


def unfrozen(estimator):
    """Fitted estimator itself, without the shell that keeps it from being fitted."""
    return estimator.estimator if is_frozen(estimator) else estimator


def detector_of(estimator) -> BaseDetector:
    """Detector that a member is, or that it ends in.

    Raises
    ------
    TypeError
        If there is none.
    """
    inner = unfrozen(estimator)
    last = inner.steps[-1][1] if isinstance(inner, Pipeline) else inner
    if not isinstance(last, BaseDetector):
        raise TypeError(
            f"A defender must be a detector of skmrr or a Pipeline that ends in one, either of "
            f"them perhaps in a FrozenEstimator; got {type(last).__name__}."
        )
    return last


def member_names(detector: BaseDetector) -> list[str]:
    """Names of a fitted detector's members; its own kind, where it has none."""
    return list(getattr(detector, "member_names_", [type(detector).__name__]))


def as_statistic(
    member, classifier: nn.Module | None, row_shape: tuple[int, ...], classes: np.ndarray
) -> Statistic:
    """Turn a fitted member into a statistic of the ensemble's rows and its classifier's pass.

    A `FeatureExtractor` of the classifier becomes a tap: the features are taken from the pass that
    asks for the decisions. Of an ensemble's class that the member has not it knows nothing.
    """
    statistic = _of_rows(member, classifier, row_shape)
    own = detector_of(member).classes_
    if np.array_equal(own, classes):
        return statistic
    positions = np.searchsorted(own, classes).clip(max=len(own) - 1)
    positions[own[positions] != classes] = -1
    return OfLearntClasses(statistic, torch.as_tensor(positions))


def _of_rows(member, classifier: nn.Module | None, row_shape: tuple[int, ...]) -> Statistic:
    detector = detector_of(member)
    statistics = list(detector.evidence_.members)
    if len(statistics) != 1:
        raise TypeError(
            f"A member must rest on one statistic; {type(detector).__name__} has "
            f"{len(statistics)}: give the ensemble its members instead."
        )
    statistic: Statistic = statistics[0]
    is_piped = isinstance(member, Pipeline)
    if statistic.reads_pass and (is_piped or not _is_same(detector.classifier, classifier)):
        assert detector.evidence_.classifier is not None
        statistic = WithOwnClassifier(statistic, detector.evidence_.classifier)
    if not is_piped:
        if detector.input_shape_ == row_shape:
            return statistic
        return Piped(statistic, detector.input_shape_, [])
    before = [step for _, step in member.steps[:-1] if step not in (None, "passthrough")]
    first = before[0] if before else detector
    shape = getattr(first, "input_shape_", None) or (first.n_features_in_,)
    if isinstance(first, FeatureExtractor) and _is_same(first.model, classifier):
        return Piped(statistic, shape, list(map(_as_step, before[1:])), first.reader_.reader)
    return Piped(statistic, shape, list(map(_as_step, before)))


def _as_step(step) -> nn.Module:
    return step.reader_ if isinstance(step, FeatureExtractor) else ArrayStep(step.transform)


def _is_same(one: nn.Module | None, other: nn.Module | None) -> bool:
    """Whether two networks are one, or have the same values, as after a pickle."""
    if one is None or other is None or one is other:
        return one is other
    return fingerprint(one) == fingerprint(other)
