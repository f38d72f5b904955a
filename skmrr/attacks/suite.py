"""The adaptive attacks that a detector has to face, each of which beats the others somewhere."""

from collections.abc import Callable, Sequence
from dataclasses import replace

from skmrr.attacks.directions import (
    FeatureMatchingPGD,
    LagrangianPGD,
    OrthogonalPGD,
    SelectivePGD,
)
from skmrr.attacks.expectation import OverChannels
from skmrr.attacks.projected import ProjectedGradient


def adaptive_suite(
    steps: int = 100,
    restarts: int = 1,
    *,
    textured: bool = False,
    channels: Sequence[Callable | None] = (),
    **params,
) -> dict[str, ProjectedGradient | OverChannels]:
    """Attacks by name, the strongest in our measurements first.

    Parameters
    ----------
    steps : int, default=100
        Steps for each target and start.
    restarts : int, default=1
        Passes over all targets.
    textured : bool, default=False
        Whether each is also run on textured pixels alone, which detectors of noise do not see.
    channels : sequence of callable or None, optional
        Ways on which a row may arrive. With them the attacks from guides are also run on the
        expectation over these, see `OverChannels`.
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
    }
    if textured:
        masked = {f"{name}, textured": replace(a, textured=True) for name, a in suite.items()}
        suite |= masked
    expected = {
        f"{name}, over channels": OverChannels(attack, channels)
        for name, attack in suite.items()
        if channels and attack.start == "guide"
    }
    return {**suite, **expected}
