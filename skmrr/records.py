"""Estimators as records: their parameters, what they have fitted, and the networks of both."""

from collections.abc import Iterator, Mapping
from functools import cache
from importlib import import_module
from types import MethodType
from typing import Any

import numpy as np
from sklearn.base import BaseEstimator
from sklearn.decomposition import PCA, TruncatedSVD
from sklearn.feature_selection import VarianceThreshold
from sklearn.frozen import FrozenEstimator
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import (
    MaxAbsScaler,
    MinMaxScaler,
    Normalizer,
    RobustScaler,
    StandardScaler,
)
from sklearn.utils import Bunch
from torch import nn

from skmrr.features import FeatureExtractor
from skmrr.harmless import Change
from skmrr.joining import detector_of
from skmrr.nn.audit import PAYLOADS, RECORDS, Auditor, dict_of, is_pair, is_text, is_whole, list_of
from skmrr.nn.fingerprint import fingerprint
from skmrr.nn.known import add_known, check_attribute, known_class, known_name
from skmrr.nn.rebuilt import Builder
from skmrr.nn.written import Record, Writer
from skmrr.threshold import FixedThresholdDetector

CLASSIFIER = "classifier"  # name of the network that a reader gives by that parameter
OWN = (  # modules, all of whose estimators, torch modules and harmless changes may be stored
    *("skmrr.features", "skmrr.threshold", "skmrr.ensemble", "skmrr.calibration"),
    *("skmrr.harmless", "skmrr.defenders.latent", "skmrr.defenders.certified"),
    *("skmrr.defenders.margin", "skmrr.defenders.noise", "skmrr.defenders.dictionary"),
    *("skmrr.nn.detector_module", "skmrr.nn.members", "skmrr.nn.fusion", "skmrr.nn.conditioning"),
    *("skmrr.nn.replica", "skmrr.nn.intervals", "skmrr.nn.latent_statistics"),
    *("skmrr.nn.densities", "skmrr.nn.learnt_classes", "skmrr.nn.statistic"),
    *("skmrr.nn.layer_features", "skmrr.nn.noise_statistic", "skmrr.nn.patches"),
    *("skmrr.nn.sparse_coding", "skmrr.nn.reconstruction"),
    *("skmrr.baselines._default_networks", "skmrr.baselines._feature_detector"),
    *("skmrr.baselines._neighbours", "skmrr.baselines._squeezers", "skmrr.baselines.ape_gan"),
    *("skmrr.baselines.confidence", "skmrr.baselines.efficient_defenses"),
    *("skmrr.baselines.feature_squeezing", "skmrr.baselines.kernel_density"),
    *("skmrr.baselines.lid", "skmrr.baselines.magnet", "skmrr.baselines.mahalanobis"),
    *("skmrr.baselines.nearest_neighbours", "skmrr.baselines.consistent_prediction"),
    "skmrr.baselines.prediction_inconsistency",
)
OF_SCIKIT_LEARN = {
    "sklearn.decomposition": (PCA, TruncatedSVD),
    "sklearn.feature_selection": (VarianceThreshold,),
    "sklearn.frozen": (FrozenEstimator,),
    "sklearn.pipeline": (Pipeline,),
    "sklearn.preprocessing": (MaxAbsScaler, MinMaxScaler, Normalizer, RobustScaler, StandardScaler),
}


@cache
def add_own_classes() -> None:
    """Let files name skmrr's own classes, and a few of scikit-learn."""
    for name in OWN:
        for kind in vars(import_module(name)).values():
            is_storable = isinstance(kind, type) and issubclass(
                kind, nn.Module | BaseEstimator | Change
            )
            if is_storable and kind.__module__ == name:
                add_known(kind)
    for name, kinds in OF_SCIKIT_LEARN.items():
        for kind in kinds:
            add_known(kind, f"{name}.{kind.__name__}")


def guarded_detector(estimator) -> Any:
    """Detector within a Pipeline or a `FixedThresholdDetector`."""
    if isinstance(estimator, FixedThresholdDetector):
        estimator = getattr(estimator, "estimator_", estimator.estimator)
    return detector_of(estimator)


def networks_of(estimator, trail: tuple[str, ...] = ()) -> Iterator[tuple[str, bool, nn.Module]]:
    """Yield the networks among the parameters of an estimator, and of those in it.

    Yields
    ------
    name : str
        As `get_params` names it.
    is_read : bool
        Whether the detector does nothing but run it: its weights are not stored.
    network : nn.Module
        The network.
    """
    parameters = estimator.get_params(deep=False) if isinstance(estimator, BaseEstimator) else {}
    # Parameters first: what is fitted is named only if no parameter is it.
    for name in sorted(vars(estimator), key=lambda name: name not in parameters):
        value = vars(estimator)[name]
        if isinstance(value, nn.Module) and name in parameters:
            is_read = name == CLASSIFIER or isinstance(estimator, FeatureExtractor)
            yield "__".join((*trail, name)), is_read, value
        elif isinstance(value, BaseEstimator):
            yield from networks_of(value, (*trail, name))
        elif isinstance(value, list | tuple):
            for part in value:
                if isinstance(part, tuple) and len(part) > 1 and isinstance(part[1], BaseEstimator):
                    yield from networks_of(part[1], (*trail, part[0]))
        elif isinstance(value, Bunch):
            for key, part in value.items():
                if isinstance(part, BaseEstimator):
                    yield from networks_of(part, (*trail, key))


def find_givens(detector) -> tuple[dict[str, nn.Module], dict[int, str]]:
    """Networks that a reader has to give, and the name of each network that is one of them, by id.

    These are the classifiers, and what the file cannot say how to build.
    """
    networks = [*networks_of(detector)]
    guarded = guarded_detector(detector).classifier
    read = [network for _, is_read, network in networks if is_read]
    first = guarded if guarded is not None else next(iter(read), None)
    givens: dict[str, nn.Module] = {} if first is None else {CLASSIFIER: first}
    prints = {} if first is None else {fingerprint(first): CLASSIFIER}
    names: dict[int, str] = {}
    for name, is_read, network in sorted(networks, key=lambda found: not found[1]):
        if id(network) in names:
            continue
        own = fingerprint(network)
        if own not in prints and (is_read or not _is_writable(network, givens)):
            givens[name], prints[own] = network, name
        if own in prints:
            names[id(network)] = prints[own]
    return givens, names


def _is_writable(network: nn.Module, givens: Mapping[str, nn.Module]) -> bool:
    try:
        Writer(givens).value(network)
    except TypeError:
        return False
    return True


class EstimatorWriter(Writer):
    """Writes estimators too; parameters are those of `Writer`.

    Parameters
    ----------
    givens : dict of str to nn.Module
        Networks that the reader will be given.
    names : dict of int to str
        Name of each network that is one of them, by its id.
    """

    def __init__(self, givens: Mapping[str, nn.Module], names: Mapping[int, str]):
        super().__init__(givens)
        self.given_names |= names

    def value(self, value):
        """Return what stands for a value in JSON."""
        if isinstance(value, Bunch):
            return {"bunch": self.value(dict(value))["dict"]}
        if isinstance(value, np.random.RandomState):
            kind, keys, *rest = value.get_state(legacy=True)
            return {"random_state": [kind, self.value(keys), *map(self.value, rest)]}
        if isinstance(value, MethodType) and value.__name__ == "transform":
            return {"transform": self.value(value.__self__)["ref"]}
        return super().value(value)

    def _kinds(self):
        return {BaseEstimator: self._estimator, Change: self._change, **super()._kinds()}

    def _estimator(self, estimator) -> Record:
        return {"kind": "estimator", **self._held(estimator)}

    def _change(self, change: Change) -> Record:
        return {"kind": "change", **self._held(change)}

    def _held(self, holder) -> Record:
        if (name := known_name(type(holder))) is None:
            raise self.refusal(
                f"a {type(holder).__name__}, which files may not hold; register its class by "
                "skmrr.persistence.register"
            )
        # Callbacks are told of this fit; they are no part of what it has made.
        state = {key: value for key, value in vars(holder).items() if key != "_skl_callbacks"}
        return {"class": name, "state": self.named(state)}


class EstimatorAuditor(Auditor):
    """Checks records of estimators too; parameters are those of `Auditor`."""

    def __init__(self, tensors, givens: Mapping[str, Any]):
        state = {"class": is_text, "state": dict_of(lambda _: True)}
        super().__init__(
            tensors,
            givens,
            {**RECORDS, "estimator": state, "change": state},
            {
                **PAYLOADS,
                "bunch": list_of(is_pair),
                "random_state": list_of(lambda _: True, 5),
                "transform": is_whole,
            },
        )

    def value(self, value):
        """Check what stands for a value."""
        super().value(value)
        if isinstance(value, dict) and value.keys() == {"bunch"}:
            if not all(isinstance(pair[0], str) for pair in value["bunch"]):
                raise ValueError("a Bunch has names.")
            super().value(value["bunch"])
        elif isinstance(value, dict) and value.keys() == {"random_state"}:
            super().value(value["random_state"])
        elif isinstance(value, dict) and value.keys() == {"transform"}:
            self._check_transform(value["transform"])

    def _check_transform(self, position: int) -> None:
        if self._kind_of({"ref": position}) != "estimator":
            raise ValueError("what transforms is an estimator.")

    def _estimator(self, record: dict) -> None:
        kind = self._class(record, BaseEstimator)
        parameters, state = kind._get_param_names(), record["state"]
        if missing := sorted(set(parameters) - set(state)):
            raise ValueError(f"a {kind.__name__} lacks {missing}.")
        for name, value in state.items():
            if name not in parameters and name != "_rows_at_once":
                check_attribute(kind, name)
                if hasattr(kind, name):
                    raise ValueError(f"a {kind.__name__} has no attribute {name!r} of its own.")
            self.value(value)

    def _change(self, record: dict) -> None:
        kind = self._class(record, Change)
        if record["state"].keys() != set(kind.__dataclass_fields__):
            raise ValueError(f"a {kind.__name__} has other parameters.")
        for value in record["state"].values():
            self.value(value)

    def _class(self, record: dict, base: type) -> Any:
        kind = known_class(record["class"])
        if not issubclass(kind, base):
            raise ValueError(f"a {record['class']} is no {base.__name__}.")
        return kind


class EstimatorBuilder(Builder):
    """Builds estimators too; parameters are those of `Builder`."""

    def _tagged(self, tag, payload):
        if tag == "bunch":
            return Bunch(**{name: self.value(value) for name, value in payload})
        if tag == "random_state":
            random_state = np.random.RandomState(0)
            random_state.set_state(tuple(self.value(payload)))
            return random_state
        if tag == "transform":
            return self.built[payload].transform
        return super()._tagged(tag, payload)

    def _estimator(self, record: dict) -> BaseEstimator:
        kind: Any = known_class(record["class"])
        estimator = object.__new__(kind)
        vars(estimator).update(self.named(record["state"]))
        estimator._validate_params()
        return estimator

    def _change(self, record: dict) -> Change:
        return known_class(record["class"])(**self.named(record["state"]))
