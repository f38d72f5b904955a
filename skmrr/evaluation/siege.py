"""Attacks on the same rows, at one threshold and radius after the other."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import joblib
import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from skmrr.attacks import worst_case
from skmrr.attacks.projected import NORMS
from skmrr.attacks.result import verified
from skmrr.networks import value_hash

WORST = "worst case"
ANY = "any attack"
ROUNDING = 1e-5
ROWS_KEPT = 50  # rows of an attack that are kept together


class Siege:
    """Attacks on the same rows, one network and radius after the other, and what was found.

    Parameters
    ----------
    x, labels : Tensor
        Rows and their true classes.
    attacks : mapping of str to callable
        What to attack with.
    eps : sequence of float
        Radii, in order.
    params : dict
        What else attacks are given, ``clip_values`` among it.
    per_attack : bool
        Whether every attack is run on every row.
    memory : joblib.Memory
        Where the outcome of each attack is kept, a few rows at a time. With a location of None
        nothing is kept, and all rows are attacked together.
    """

    def __init__(
        self,
        x: Tensor,
        labels: Tensor,
        attacks: Mapping,
        eps: Sequence[float],
        params: dict,
        *,
        per_attack: bool,
        memory: joblib.Memory,
    ):
        self.x, self.labels = x, labels
        self.is_kept = memory.location is not None
        ignored = ["attack", "network", "x", "labels", "eps", "params"]
        self._found: Callable = memory.cache(_found, ignore=ignored) if self.is_kept else _found
        self._shared = value_hash(params) if self.is_kept else ""
        self.attacks, self.params, self.per_attack = attacks, params, per_attack
        norms = {norm_of(attack) for attack in attacks.values()}
        self.norm = norms.pop() if len(norms) == 1 else torch.inf
        self.keys = list(attacks) if per_attack else [ANY]
        self.smaller = dict(zip(eps, [None, *eps], strict=False))
        self.found = {(key, e): torch.full_like(x, torch.nan) for key in self.keys for e in eps}

    def run(self, network: nn.Module, eps: float, targets: Tensor | None, bar: tqdm) -> dict:
        """Attack what is left; return the results by name, the worst case last.

        The bar counts the rows of each attack, those that need none of it at once.

        `targets` are the classes that a bound leaves to each row.
        """
        if (smaller := self.smaller[eps]) is not None:
            for key in self.keys:
                known = self.found[key, eps]
                known[:] = torch.where(known.isnan(), self.found[key, smaller], known)
        of_network = value_hash((network, self._shared)) if self.is_kept else ""
        for name, attack in self.attacks.items():
            known = self.found[name if self.per_attack else ANY, eps]
            self._attack_left(attack, network, of_network, known, eps, targets, bar)
        results = {
            key: verified(network, self.x, self.found[key, eps], self.labels, norm=self.norm)
            for key in self.keys
        }
        worst = worst_case(results.values())
        return {**(results if self.per_attack else {}), WORST: worst}

    def _attack_left(self, attack, network, of_network: str, known, eps, targets, bar) -> None:
        """Attack the rows of which nothing is known yet, and note in `known` what breaks them."""
        is_left = known.flatten(1).isnan().any(1)
        if targets is not None:
            is_left &= targets.any(1)
        left = torch.nonzero(is_left)[:, 0]
        bar.update(len(known) - len(left))
        for rows in left.split(ROWS_KEPT if self.is_kept else max(len(left), 1)):
            if len(rows) == 0:
                return
            x, labels, params = self.x[rows], self.labels[rows], dict(self.params)
            if targets is not None:
                params["targets"] = targets[rows]
            key = ""
            if self.is_kept:
                own = (described(attack), x, labels, eps, params.get("targets"))
                key = value_hash((of_network, own))
            known[rows] = self._found(key, attack, network, x, labels, eps, params).to(known)
            bar.update(len(rows))


def _found(key: str, attack, network: nn.Module, x, labels, eps: float, params: dict) -> Tensor:
    """Attack, and check what is found; `key` stands for all that it depends on."""
    found = attack(network, x, labels, eps=eps, **params).adversarial
    _check_reach(found, x, eps, norm_of(attack), params["clip_values"])
    return found.cpu()


def described(attack) -> Any:
    """List what an attack's outcome depends on, as plain values and networks."""
    if dataclasses.is_dataclass(attack) and not isinstance(attack, type):
        fields = {field.name: getattr(attack, field.name) for field in dataclasses.fields(attack)}
        fields.pop("verbose", None)
        kind = f"{type(attack).__module__}.{type(attack).__qualname__}"
        return kind, {name: described(value) for name, value in fields.items()}
    if isinstance(attack, list | tuple):
        return [described(part) for part in attack]
    return attack


def norm_of(attack) -> float:
    """Order of an attack's norm; of one that names none of ours ℓ∞, which no other exceeds."""
    return NORMS.get(getattr(attack, "norm", "linf"), torch.inf)


def _check_reach(found: Tensor, x: Tensor, eps: float, norm: float, clip_values) -> None:
    """Raise an error where an attack found rows that are none of its ball, up to rounding."""
    low, high = clip_values
    slack = ROUNDING * (high - low)
    distance = torch.linalg.vector_norm((found - x).flatten(1), norm, dim=1)  # NaN: none found
    if (distance > eps * (1 + ROUNDING) + slack).any():
        raise ValueError(
            f"An attack went {float(distance.nan_to_num().max()):g} from a row, beyond "
            f"eps={eps:g}: it has to stay in the ball that it is given."
        )
    if ((found < low - slack) | (found > high + slack)).any():
        raise ValueError(
            f"An attack left the range clip_values={tuple(clip_values)} that it is given."
        )
