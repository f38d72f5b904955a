"""Which members an ensemble takes by default."""

from typing import Literal

from sklearn.base import clone
from torch import nn

from skmrr.base import StatisticDetector
from skmrr.defenders.dictionary import InputDictionaryDefender
from skmrr.defenders.latent import LatentDefender
from skmrr.defenders.margin import MarginDetector
from skmrr.defenders.noise import NoiseDefender
from skmrr.nn.replica import replicate

SPARSE_WEIGHT = 0.25  # chosen on tuning seeds of MNIST and CIFAR-10


def default_defenders(
    classifier: nn.Module | None = None,
    *,
    latent: LatentDefender | None = None,
    n_latent: int = 1,
    layer: str | None = None,
    width: float = 1.0,
    margin: bool = True,
    noise: bool = False,
    dictionary: bool = False,
) -> list[tuple[str, StatisticDetector, float]]:
    """Make the members of an `MRREnsemble`, to be given as they are or changed first.

    Parameters
    ----------
    classifier : nn.Module, optional
        The victim, rows of X → logits.
    latent : LatentDefender, optional
        Template of the latent defenders. Without a module of its own each gets a replica of the
        classifier, which sees images of 128 pixels a side and more at three quarters of their size,
        and is not trained then. By default
        ``LatentDefender(exploration_radius="auto", transfer_radius="auto", learning_rate=3e-3)``,
        without exploration where there is no classifier; narrow replicas, which start from
        nothing, explore for themselves alone.
    n_latent : int, default=1
        Number of latent defenders. They see much the same, and share the weight of one.
    layer : str, optional
        Checkpoint of the replicas, as `replicate` takes it.
    width : float, default=1.0
        Share of the classifier's channels and units that a replica has. At 1 it starts as a copy
        of the classifier, below it is trained from scratch and costs less.
    margin : bool, default=True
        Whether the classifier's own margin is a member, at no cost. Without a classifier there is
        none.
    noise : bool, default=False
        Whether two `NoiseDefender` are members: one against faint noise of all values, and, at a
        quarter of the weight as most attacks do not concern it, one against few loud values. For
        inputs of one clean source alone: what they see is noise, which a camera makes too, and
        which a JPEG takes away.
    dictionary : bool, default=False
        Whether the published method's `InputDictionaryDefender` is a member. It is more expensive
        than the noise defenders, and was weaker in our measurements.

    Returns
    -------
    list of (str, detector, float)
        Name, unfitted detector, weight.

    Examples
    --------
    >>> import torch
    >>> from skmrr import default_defenders
    >>> net = torch.nn.Sequential(torch.nn.Linear(64, 32), torch.nn.ReLU(), torch.nn.Linear(32, 10))
    >>> [(name, weight) for name, _, weight in default_defenders(net, n_latent=2)]
    [('latent_0', 0.5), ('latent_1', 0.5), ('margin', 1.0)]
    """
    latent = latent or default_template(classifier, width)
    members: list[tuple[str, StatisticDetector, float]] = []
    for k in range(n_latent):
        member = clone(latent)
        if member.module is None and classifier is not None:
            module = replicate(classifier, layer, width=width, scale="auto")
            member.set_params(module=module)
        members.append((f"latent_{k}", member, 1 / n_latent))
    if noise:
        members.append(("dense", NoiseDefender(noise="dense"), 1.0))
        members.append(("sparse", NoiseDefender(noise="sparse"), SPARSE_WEIGHT))
    if dictionary:
        members.append(("dictionary", InputDictionaryDefender(), 1.0))
    if margin and classifier is not None:
        members.append(("margin", MarginDetector(), 1.0))
    return members


def default_template(classifier: nn.Module | None, width: float = 1.0) -> LatentDefender:
    """Make the template of the default latent defenders."""
    own: float | Literal["auto"] = 0.0 if classifier is None else "auto"
    transfer = own if width == 1 else 0.0
    return LatentDefender(exploration_radius=own, transfer_radius=transfer, learning_rate=3e-3)
