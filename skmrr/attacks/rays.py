"""An attack that sees classes and flags alone."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Int
from torch import Tensor, nn
from tqdm.auto import tqdm

from skmrr.attacks.guides import Guides
from skmrr.attacks.judging import check_attack_input
from skmrr.attacks.projected import per_row
from skmrr.attacks.result import AttackResult, decisions, verified
from skmrr.nn.tapped import shared_copy

TOLERANCE = 0.01  # of ε, to which a radius is searched for


@dataclass(frozen=True)
class RayS:
    """Search for the ℓ∞ direction in which a wrong answer that is not flagged is nearest.

    It asks for decisions alone: a class, or "flagged". No logit, score or gradient is looked at.

    A direction is an image to aim at: at radius r the row goes as far towards it as the ball of r
    allows. The search begins at the best of all highest values, all lowest, and, given guides, the
    nearest clean row of each other class. It then turns round block after block of the values,
    first all, then halves, quarters and so on, and keeps what brings the answer nearer.

    Parameters
    ----------
    queries : int, default=1000
        Rows that the network may be asked about, for each row attacked. A row that has been broken
        within ε asks no more.
    batch_size : int, default=250
        Rows at a time.
    verbose : bool, default=False
        Whether to show a progress bar.

    Raises
    ------
    ValueError
        If a number is less than one.

    Notes
    -----
    Aims other than corners are ours: whole ways to a corner are often flagged, and then the search
    of the paper never begins.

    References
    ----------
    J. Chen, Q. Gu, "RayS: A Ray Searching Method for Hard-label Adversarial Attack", KDD 2020.

    Examples
    --------
    >>> import torch
    >>> from skmrr.attacks import RayS
    >>> result = RayS(queries=50)(torch.nn.Identity(), torch.eye(3), torch.arange(3), eps=0.6)
    >>> result.success
    tensor([True, True, True])
    >>> bool((result.queries <= 50).all())
    True
    """

    queries: int = 1000
    batch_size: int = 250
    verbose: bool = False

    def __post_init__(self):
        """Refuse settings that mean nothing."""
        if min(self.queries, self.batch_size) < 1:
            raise ValueError("queries and batch_size must be at least 1.")

    @property
    def norm(self) -> str:
        """The largest change of a value is what counts."""
        return "linf"

    @property
    def needs_guides(self) -> bool:
        """Never: without them it aims at corners alone."""
        return False

    def with_effort(self, factor: float) -> "RayS":
        """Return the same with so many times the queries, one at least."""
        return replace(self, queries=max(1, round(factor * self.queries)))

    def __call__(
        self,
        network: nn.Module,
        x: Tensor,
        labels: Tensor,
        *,
        eps: float,
        clip_values: tuple = (0.0, 1.0),
        guides: Tensor | None = None,
        targets: Tensor | None = None,
    ) -> AttackResult:
        """Attack rows; parameters as of `ProjectedGradient`, but guides are never needed.

        Returns
        -------
        AttackResult
            With ``queries``, those that each row took. Of the guides the attacker asks once for
            all rows, which is not counted.
        """
        check_attack_input(x, labels, clip_values, eps)
        network = shared_copy(network)
        bank = None if guides is None else Guides(network, guides)
        found, queries = torch.full_like(x, torch.nan), torch.zeros_like(labels)
        parts = torch.arange(len(x), device=x.device).split(self.batch_size)
        for rows in tqdm(parts, "RayS", disable=not self.verbose, leave=False):
            allowed = None if targets is None else targets[rows]
            search = _RaySearch(network, x[rows], labels[rows], allowed, clip_values, self.queries)
            search.run(search.aims(bank), eps)
            reached = per_row(search.radius <= eps, x)
            found[rows] = torch.where(reached, search.point(), torch.nan)
            queries[rows] = search.n_asked
        return replace(verified(network, x, found, labels, norm=math.inf), queries=queries)


class _RaySearch:
    """The nearest wrong answer of each row so far, and the search for nearer ones."""

    def __init__(
        self,
        network: nn.Module,
        x: Tensor,
        labels: Int[Tensor, " batch"],
        allowed: Bool[Tensor, "batch classes"] | None,
        clip_values: tuple,
        queries: int,
    ):
        self.network, self.x, self.labels, self.allowed = network, x, labels, allowed
        self.low, self.high = clip_values
        self.queries = queries
        self.n_asked = torch.zeros_like(labels)
        self.aim = x.clone()
        self.radius = x.new_full((len(x),), torch.inf)

    def aims(self, bank: Guides | None) -> list[Tensor]:
        """Images to aim at first: both corners, and the nearest clean row of each class.

        A row aims at none of its own class, where there is nothing to be found.
        """
        aims = [torch.full_like(self.x, self.high), torch.full_like(self.x, self.low)]
        if bank is None:
            return aims
        for c in bank.classes.unique().tolist():
            nearest = bank.nearest(self.x, torch.full_like(self.labels, c))
            aims.append(torch.where(per_row(self.labels == c, self.x), aims[0], nearest))
        return aims

    def run(self, aims: list[Tensor], eps: float) -> None:
        """Search until a row is broken within ε or has asked enough."""
        everyone = torch.arange(len(self.x), device=self.x.device)
        as_it_is = self._succeeds(everyone, self.x)
        self.radius[as_it_is] = 0
        for aim in aims:
            if len(rows := self._left(eps)) == 0:
                return
            self._try(rows, aim[rows], eps)
        for block in _blocks(self.x[0].numel()):
            if len(rows := self._left(eps)) == 0:
                return
            turned = self.aim[rows].flatten(1)
            here, x = turned[:, block], self.x[rows].flatten(1)[:, block]
            is_up = torch.where(here == x, x > (self.low + self.high) / 2, here > x)
            turned[:, block] = torch.where(is_up, self.low, self.high).to(turned)
            self._try(rows, turned.view_as(self.x[rows]), eps)

    def point(self) -> Tensor:
        """Nearest wrong answers; rows without one as they are."""
        return _towards(self.aim, self.x, self.radius)

    def _left(self, eps: float) -> Tensor:
        return torch.nonzero((self.radius > eps) & (self.n_asked < self.queries))[:, 0]

    def _try(self, rows: Tensor, aim: Tensor, eps: float) -> None:
        """Take other aims where the answer is wrong no farther than it is now, and go nearer."""
        x = self.x[rows]
        far = torch.minimum(self.radius[rows], (aim - x).flatten(1).abs().amax(1))
        better = self._succeeds(rows, _towards(aim, x, far))
        rows, aim, x, far = rows[better], aim[better], x[better], far[better]
        near = torch.zeros_like(far)
        while True:
            going = (far - near > TOLERANCE * eps) & (far > eps)
            going &= self.n_asked[rows] < self.queries
            going = torch.nonzero(going)[:, 0]
            if len(going) == 0:
                break
            middle = (near[going] + far[going]) / 2
            success = self._succeeds(rows[going], _towards(aim[going], x[going], middle))
            far[going] = torch.where(success, middle, far[going])
            near[going] = torch.where(success, near[going], middle)
        self.aim[rows], self.radius[rows] = aim, far

    def _succeeds(self, rows: Tensor, points: Tensor) -> Tensor:
        """Ask what the network decides: whether it is a wrong class, one that is allowed."""
        self.n_asked[rows] += 1
        answers = decisions(self.network, points)
        success = (answers != -1) & (answers != self.labels[rows])
        if self.allowed is None:
            return success
        return success & self.allowed[rows].gather(1, answers.clamp_min(0)[:, None])[:, 0]


def _towards(aim: Tensor, x: Tensor, radius: Tensor) -> Tensor:
    """Point of the ℓ∞ ball around each row that is nearest to its aim."""
    reach = per_row(radius, x)
    return torch.maximum(torch.minimum(aim, x + reach), x - reach)


def _blocks(n: int) -> Iterator[slice]:
    """All of n values, their halves, their quarters … down to each by itself, and again."""
    while True:
        for level in range(math.ceil(math.log2(n)) + 1):
            size = math.ceil(n / 2**level)
            yield from (slice(start, start + size) for start in range(0, n, size))
