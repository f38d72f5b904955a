"""Members of an ensemble: from estimators to torch modules, and which there are by default."""

import numpy as np
import torch
from sklearn.base import clone
from sklearn.frozen import FrozenEstimator
from sklearn.pipeline import Pipeline
from torch import nn

from skmrr.base import BaseDetector
from skmrr.features import FeatureExtractor
from skmrr.latent import LatentDefender
from skmrr.nn.inference import noise_tolerance
from skmrr.nn.layers import LayerFeatures
from skmrr.nn.members import ArrayStep, Member
from skmrr.nn.narrowing import narrow
from skmrr.nn.replica import replicate

LATENT = "latent_"  # begins the names of default latent defenders
MAX_SEED = np.iinfo(np.int32).max


def is_frozen(estimator) -> bool:
    """Whether a member is to be taken as it is."""
    return isinstance(estimator, FrozenEstimator)


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


def prepared(estimator, seed: int):
    """Clone of a member that leaves calibrating to the ensemble, its seed set if it had none."""
    estimator = clone(estimator)
    if not is_frozen(estimator):
        detector = detector_of(estimator)
        detector.set_params(calibration_fraction=0.0)
        if detector.random_state is None:
            detector.set_params(random_state=seed)
    return estimator


def unfrozen(estimator):
    """Fitted estimator itself, without the shell that keeps it from being fitted."""
    return estimator.estimator if is_frozen(estimator) else estimator


def as_member(estimator, classifier: nn.Module | None) -> Member:
    """Turn a fitted member into a torch module.

    A `FeatureExtractor` of the classifier becomes a tap: the features are taken from the pass
    that asks for the decisions.
    """
    detector = detector_of(estimator)
    if not isinstance(estimator, Pipeline):
        return Member(detector.module_, detector.input_shape_, [])
    before = [step for _, step in estimator.steps[:-1] if step not in (None, "passthrough")]
    shape = _row_shape(before[0] if before else detector)
    steps = [_as_step(step) for step in before]
    first = steps[0] if steps else None
    if isinstance(first, LayerFeatures) and first.model is classifier:
        return Member(detector.module_, shape, steps[1:], tap=first)
    return Member(detector.module_, shape, steps)


def _row_shape(first) -> tuple[int, ...]:
    return getattr(first, "input_shape_", None) or (first.n_features_in_,)


def _as_step(step) -> nn.Module:
    if isinstance(step, FeatureExtractor):
        return step.layer_reader()
    return ArrayStep(step.transform)


def latent_defenders(
    n: int,
    template: LatentDefender,
    classifier: nn.Module | None,
    layer: str | None,
    width: float,
    x: torch.Tensor,
    random_state: np.random.RandomState,
    **params,
) -> list[tuple[str, LatentDefender]]:
    """Name and make `n` latent defenders after a template, which differ in their seeds.

    Without a module of its own each gets a replica of the classifier, narrowed to `width`. `x` are
    a thousand training rows, to find radius and shapes with.
    """
    template = clone(template).set_params(**params)
    if template.exploration_radius == "auto":
        radius = 0.0
        if classifier is not None:  # measured once for all
            generator = torch.Generator().manual_seed(int(random_state.randint(MAX_SEED)))
            radius = noise_tolerance(classifier, x, template.clip_values, generator=generator)
        template.set_params(exploration_radius=radius)
    named = []
    for k in range(n):
        member = clone(template).set_params(random_state=int(random_state.randint(MAX_SEED)))
        if member.module is None and classifier is not None:
            network = classifier
            if width < 1:
                network = narrow(classifier, width, x[:2], seed=member.random_state)
            member.set_params(module=replicate(network, layer))
        named.append((f"{LATENT}{k}", member))
    return named
