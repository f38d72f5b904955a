"""The adaptive attacks that a detector has to face, each of which beats the others somewhere."""

from collections.abc import Callable, Sequence
from dataclasses import replace

from torch import nn

from skmrr.attacks.auto_pgd import AutoPGD
from skmrr.attacks.directions import (
    FeatureMatchingPGD,
    LagrangianPGD,
    OrthogonalPGD,
    SelectivePGD,
)
from skmrr.attacks.expectation import OverChannels
from skmrr.attacks.projected import ProjectedGradient
from skmrr.attacks.rays import RayS
from skmrr.attacks.transfer import Transfer

QUERIES = 10  # of decisions, in steps


def adaptive_suite(
    steps: int = 100,
    restarts: int = 1,
    *,
    textured: bool = False,
    channels: Sequence[Callable | None] = (),
    surrogate: nn.Module | None = None,
    **params,
) -> dict[str, ProjectedGradient | OverChannels | Transfer | RayS]:
    """Attacks by name, the strongest in our measurements first.

    Parameters
    ----------
    steps : int, default=100
        Steps for each target and start. The attack that sees decisions alone, of the ℓ∞ ball only,
        asks ten times as often for each row.
    restarts : int, default=1
        Passes over all targets.
    textured : bool, default=False
        Whether each is also run on textured pixels alone, which detectors of noise do not see.
    channels : sequence of callable or None, optional
        Ways on which a row may arrive. With them the attacks from guides are also run on the
        expectation over these, see `OverChannels`.
    surrogate : nn.Module, optional
        The attacker's own copy of victim and detector, such as ``defended_classifier()`` of a
        detector from another ``random_state``. With it the attacks from guides are also run on the
        copy, see `Transfer`.
    **params : dict
        Other parameters of `ProjectedGradient`, such as ``norm``.

    Returns
    -------
    dict of str to callable

    Examples
    --------
    >>> from skmrr.attacks import adaptive_suite
    >>> list(adaptive_suite(steps=10))[:2]
    ['Lagrangian, from guides', 'Lagrangian, random start']
    """
    shared = {"steps": steps, "restarts": restarts, **params}
    suite: dict[str, ProjectedGradient] = {
        "Lagrangian, from guides": LagrangianPGD(start="guide", **shared),
        "Lagrangian, random start": LagrangianPGD(**shared),
        "selective, from guides": SelectivePGD(start="guide", **shared),
        "selective, random start": SelectivePGD(**shared),
        "orthogonal, from guides": OrthogonalPGD(start="guide", **shared),
        "orthogonal, random start": OrthogonalPGD(**shared),
        "feature matching": FeatureMatchingPGD(**shared),
        "APGD, from guides": AutoPGD(start="guide", **shared),
        "APGD, random start": AutoPGD(**shared),
    }
    if textured:
        masked = {f"{name}, textured": replace(a, textured=True) for name, a in suite.items()}
        suite |= masked
    from_guides = {name: attack for name, attack in suite.items() if attack.start == "guide"}
    others: dict[str, ProjectedGradient | OverChannels | Transfer | RayS] = {}
    if channels:
        others |= {f"{n}, over channels": OverChannels(a, channels) for n, a in from_guides.items()}
    if surrogate is not None:
        others |= {f"{n}, on a copy": Transfer(surrogate, a) for n, a in from_guides.items()}
    if params.get("norm", "linf") == "linf":
        kept = {name: params[name] for name in ("batch_size", "verbose") if name in params}
        others["decisions alone"] = RayS(queries=QUERIES * steps, **kept)
    return {**suite, **others}
