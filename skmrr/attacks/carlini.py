"""Carlini & Wagner's L2 attack (2017), all rows of a batch at once, with or without a detector."""

import torch
from torch import Tensor, nn

from skmrr.attacks.guides import Guides
from skmrr.attacks.judging import Judgement, check_attack_input, judge, victim_logits
from skmrr.attacks.projected import per_row
from skmrr.attacks.result import AttackResult, is_defended, verified
from skmrr.nn.tapped import shared_copy

HALVINGS = 10  # of the way from a row to its guide, to begin near the boundary


def carlini_l2(
    classifier: nn.Module,
    x: Tensor,
    labels: Tensor,
    *,
    confidence: float = 0.0,
    targeted: bool = False,
    clip_values: tuple = (0.0, 1.0),
    search_steps: int = 6,
    max_iter: int = 200,
    learning_rate: float = 0.05,
    initial_const: float = 1.0,
    detector_weight: float = 1.0,
    guides: Tensor | None = None,
    restarts: int = 1,
) -> AttackResult:
    """Find the smallest L2 change that fools the classifier, with a margin, and goes unflagged.

    Parameters
    ----------
    classifier : nn.Module
        Returns logits of shape (batch, classes). Of a `skmrr.nn.DefendedClassifier` the detector is
        attacked with the victim: one weight c multiplies both terms, and rises until both are met.
    x : Tensor of shape (batch, …)
        Rows to change, within `clip_values`.
    labels : Tensor of shape (batch,)
        True labels to leave or, with `targeted`, labels to reach.
    confidence : float, default=0.0
        Lead κ, in logits, that the wrong label must have.
    targeted : bool, default=False
        Whether `labels` are targets.
    clip_values : tuple of float, default=(0, 1)
        Range of the rows.
    search_steps : int, default=6
        Steps of the search, per row, for the weight c.
    max_iter : int, default=200
        Steps of Adam for each weight.
    learning_rate : float, default=0.05
        Step size of Adam, in the tanh space.
    initial_const : float, default=1.0
        First weight c.
    detector_weight : float, default=1.0
        Weight of the detector's term beside the victim's.
    guides : Tensor of shape (n, …), optional
        Clean rows. With them a search also starts from the way to the nearest one that is taken for
        another class (with `targeted`, for the target), where that way meets the boundary.
    restarts : int, default=1
        How many such guides to start from, the nearest first.

    Returns
    -------
    AttackResult

    Raises
    ------
    ValueError
        If rows or labels do not fit.

    References
    ----------
    N. Carlini, D. Wagner, "Towards Evaluating the Robustness of Neural Networks", S&P 2017:
    objective f₆ of section V-A, change of variable of section V-B. The same, "Adversarial Examples
    Are Not Easily Detected", AISec 2017, for the detector's term.

    Examples
    --------
    >>> import torch
    >>> from skmrr.attacks import carlini_l2
    >>> net = torch.nn.Linear(2, 2)
    >>> with torch.no_grad():
    ...     _ = net.weight.copy_(torch.eye(2)), net.bias.zero_()
    >>> x = torch.tensor([[0.2, 0.8], [0.7, 0.1]])
    >>> result = carlini_l2(net, x, net(x).argmax(1))
    >>> result.success
    tensor([True, True])
    >>> net(result.adversarial).argmax(1) != net(x).argmax(1)
    tensor([True, True])
    """
    check_attack_input(x, labels, clip_values)
    classifier = shared_copy(classifier)
    search = _Search(classifier, x, labels, targeted, confidence, clip_values, detector_weight)
    starts = [x]
    if guides is not None:
        bank = Guides(classifier, guides)
        starts += [search.boundary(_guide(bank, search, k)) for k in range(restarts)]
    for start in starts:
        search.run(start, search_steps, max_iter, learning_rate, initial_const)
    return verified(classifier, x, search.best, labels, norm=2.0, targeted=targeted)


class _Search:
    """The nearest success so far of each row, and the search for nearer ones."""

    def __init__(self, network, x, labels, targeted, confidence, clip_values, detector_weight):
        self.network, self.x, self.labels, self.targeted = network, x, labels, targeted
        self.confidence, self.detector_weight = confidence, detector_weight
        self.low, self.high = clip_values
        self.best = torch.full_like(x, torch.nan)
        self.best_distortion = x.new_full((len(x),), torch.inf)

    def run(self, start: Tensor, search_steps, max_iter, learning_rate, initial_const) -> None:
        """Descend from `start` under weights c that are searched for, row by row."""
        const = self.x.new_full((len(self.x),), initial_const)
        lower, upper = torch.zeros_like(const), torch.full_like(const, torch.inf)
        span = self.high - self.low
        for _ in range(search_steps):
            w = self._squash(start)
            adam = _Adam(w, learning_rate)
            succeeded = torch.zeros_like(const, dtype=torch.bool)
            for _ in range(max_iter):
                squashed = w.tanh()
                candidate = squashed * (span / 2) + (self.low + span / 2)
                uphill, success = self._uphill(candidate.requires_grad_(True), const)
                candidate = candidate.detach()
                change = candidate - self.x
                succeeded |= success
                self._keep(candidate, change.flatten(1).norm(dim=1), success)
                # (‖candidate − x‖² + c · gap)' through candidate' = (1 − tanh² w) · span / 2
                slope = squashed.square_().neg_().add_(1)
                adam.step(change.mul_(2).add_(uphill).mul_(slope).mul_(span / 2))
            upper = torch.where(succeeded, torch.minimum(upper, const), upper)
            lower = torch.where(succeeded, lower, torch.maximum(lower, const))
            const = torch.where(upper.isinf(), const * 10, (lower + upper) / 2)

    def _uphill(self, candidate: Tensor, const: Tensor) -> tuple[Tensor, Tensor]:
        """Gradient of c times what a candidate fails by, and whether it succeeds."""
        judgement = self._judge(candidate)
        success = self._succeeds(judgement)
        # f₆ is zero once fooled with margin κ, and the detector's term once nothing is flagged.
        terms, slopes = [judgement.lead], [-const * (judgement.lead < self.confidence)]
        if judgement.alarm.requires_grad:
            terms.append(judgement.alarm)
            slopes.append(const * self.detector_weight * (judgement.alarm > 0))
        slopes = [slope.to(term) for slope, term in zip(slopes, terms, strict=True)]
        return torch.autograd.grad(terms, candidate, slopes)[0], success

    @torch.no_grad()
    def boundary(self, guide: Tensor) -> Tensor:
        """Point on the way from each row to its guide behind which the guide's answer holds."""
        near = torch.zeros_like(self.best_distortion)
        far = torch.ones_like(near)
        for _ in range(HALVINGS):
            middle = (near + far) / 2
            point = torch.lerp(self.x, guide, per_row(middle, guide))
            success = self._succeeds(self._judge(point))
            near, far = torch.where(success, near, middle), torch.where(success, middle, far)
        point = torch.lerp(self.x, guide, per_row(far, guide))
        distance = (point - self.x).flatten(1).norm(dim=1)
        self._keep(point, distance, self._succeeds(self._judge(point)))
        return point

    def _succeeds(self, judgement: Judgement) -> Tensor:
        return judgement.success & (judgement.lead >= self.confidence)

    def _judge(self, candidate: Tensor) -> Judgement:
        if self.targeted:
            return judge(self.network, candidate, self.labels)
        if is_defended(self.network):
            # The detector is asked about the likeliest wrong class, where the row is to end.
            with torch.no_grad():
                logits = victim_logits(self.network, candidate)
                wrong = logits.scatter(1, self.labels[:, None], -torch.inf).argmax(1)
            return judge(self.network, candidate, wrong)
        own = judge(self.network, candidate, self.labels)
        return own._replace(lead=-own.lead)

    def _keep(self, candidate: Tensor, distortion: Tensor, success: Tensor) -> None:
        better = success & (distortion < self.best_distortion)
        self.best_distortion = torch.where(better, distortion, self.best_distortion)
        self.best = torch.where(per_row(better, candidate), candidate, self.best)

    def _squash(self, x: Tensor) -> Tensor:
        share = 2 * (x - self.low) / (self.high - self.low) - 1
        return torch.atanh(share.clamp(-1 + 1e-6, 1 - 1e-6))


class _Adam:
    """Steps of Adam on one tensor, in place: `torch.optim` takes as long as a small network."""

    def __init__(self, w: Tensor, learning_rate: float):
        self.w, self.learning_rate = w, learning_rate
        self.mean, self.square = torch.zeros_like(w), torch.zeros_like(w)
        self.n_steps = 0

    def step(self, gradient: Tensor) -> None:
        """Go downhill, by torch's default decay rates 0.9 and 0.999."""
        self.n_steps += 1
        self.mean.lerp_(gradient, 0.1)
        self.square.mul_(0.999).addcmul_(gradient, gradient, value=0.001)
        size = (self.square / (1 - 0.999**self.n_steps)).sqrt_().add_(1e-8)
        self.w.addcdiv_(self.mean, size, value=-self.learning_rate / (1 - 0.9**self.n_steps))


def _guide(bank: Guides, search: _Search, rank: int) -> Tensor:
    """Nearest guide of each row's target or, untargeted, of any class but its own."""
    x, labels = search.x, search.labels
    if search.targeted:
        return bank.nearest(x, labels, rank)
    classes = bank.classes.unique()
    best = torch.full_like(x, torch.nan)
    distance = x.new_full((len(x),), torch.inf)
    for c in classes.tolist():
        rows = torch.nonzero(labels != c)[:, 0]
        guide = bank.nearest(x[rows], torch.full_like(rows, c), rank)
        length = (guide - x[rows]).flatten(1).norm(dim=1)
        nearer = length < distance[rows]
        best[rows[nearer]], distance[rows[nearer]] = guide[nearer], length[nearer]
    return best
