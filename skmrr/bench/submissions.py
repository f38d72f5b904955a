"""Submissions to a challenge: reading them, what is refused, and the score."""

import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from os import PathLike
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from skmrr.attacks.result import verified
from skmrr.evaluation.metrics import exact_interval
from skmrr.nn.defended import DefendedClassifier

BATCH = 512  # rows judged at a time
TOLERANCE = 1e-6  # of distances, for the rounding of single precision
COUNTS, NOT_CLAIMED = -1, -2  # beside positions of reasons to refuse


@dataclass(frozen=True)
class ScoreWithin:
    """What a submission achieved within one ε."""

    n_attacked: int
    """Test rows that count: those that the victim gets right."""
    broken: tuple[int, ...]
    """Rows on which it succeeded: misclassified and not flagged."""
    n_within_reach: int
    """Rows on which a success is not ruled out."""
    ruled_out: tuple[int, ...]
    """Rows broken although they were ruled out: should there be any, the proof is wrong."""

    @property
    def success_rate(self) -> float:
        """Share of the rows attacked that were broken."""
        return len(self.broken) / self.n_attacked

    @property
    def interval(self) -> tuple[float, float]:
        """Clopper and Pearson's 95 % interval of the success rate."""
        low, high = exact_interval(len(self.broken), self.n_attacked)
        return float(low), float(high)

    @property
    def bound(self) -> float:
        """Share of the rows attacked that any attack can break at most."""
        return self.n_within_reach / self.n_attacked

    def __str__(self):
        low, high = self.interval
        lines = [
            f"success rate {self.success_rate:.1%}: {len(self.broken)} of {self.n_attacked} rows "
            f"broken (95 % interval {low:.1%} to {high:.1%})"
        ]
        if self.n_within_reach < self.n_attacked:
            lines.append(
                f"no attack can break more than {self.n_within_reach} of them ({self.bound:.1%})"
            )
        if self.ruled_out:
            lines.append(f"broken though ruled out, please report: rows {_some(self.ruled_out)}")
        return "\n".join(lines)


@dataclass(frozen=True)
class ChallengeScore:
    """What a submission achieved."""

    n_claimed: int
    """Rows submitted."""
    refused: dict[str, tuple[int, ...]]
    """By reason, the rows submitted that do not count."""
    within: dict[float, ScoreWithin]
    """By ε: rows that lie within it and were broken."""

    def __str__(self):
        lines = [f"within {eps:.4g}: {score}" for eps, score in self.within.items()]
        lines.append(f"{self.n_claimed} rows submitted")
        lines += [
            f"{len(rows)} refused, {reason}: {_some(rows)}" for reason, rows in self.refused.items()
        ]
        return "\n".join(lines)


def _some(rows: tuple[int, ...]) -> str:
    shown = ", ".join(str(row) for row in rows[:10])
    return f"{shown}, …" if len(rows) > 10 else shown


def submitted(submission: str | PathLike | Mapping, clean: np.ndarray) -> np.ndarray:
    """Read a submission and return all rows, float32, NaN in those not claimed."""
    arrays = submission if isinstance(submission, Mapping) else _read_npz(submission, clean)
    if "x" not in arrays:
        raise ValueError(f"A submission needs an array x; this one holds {sorted(arrays)}.")
    x, n = np.asarray(arrays["x"]), len(clean)
    rows = np.asarray(arrays["rows"]) if "rows" in arrays else np.arange(n)
    if rows.ndim != 1 or rows.dtype.kind not in "iu":
        raise ValueError(f"rows must be integers of shape (k,); got {rows.dtype}, {rows.shape}.")
    if len(rows) and not 0 <= rows.min() <= rows.max() < n:
        raise ValueError(f"rows must lie in 0 to {n - 1}; got {rows.min()} to {rows.max()}.")
    if len(np.unique(rows)) < len(rows):
        raise ValueError("rows must differ: one attempt for each test row.")
    expected = (len(rows), *clean.shape[1:])
    if x.shape != expected or x.dtype.kind != "f":
        raise ValueError(
            f"x must be floats of shape {expected}; got {x.dtype}, {x.shape}. For some of the "
            "test rows alone give their positions as rows."
        )
    full = np.full_like(clean, np.nan)
    with np.errstate(over="ignore"):  # what overflows is refused as not finite
        full[rows] = x
    return full


def _read_npz(path: str | PathLike, clean: np.ndarray) -> dict[str, np.ndarray]:
    """Arrays of an .npz file by a stranger: no pickles, and no more than fits in memory."""
    path = Path(path)
    # a full submission in double precision, with positions of its rows, and what is around them
    max_bytes = 8 * (clean.size + len(clean)) + 1_000_000
    if not zipfile.is_zipfile(path) and path.exists():
        raise ValueError(f"{path} is no .npz file; write it by numpy.savez.")
    with zipfile.ZipFile(path) as archive:
        size = sum(part.file_size for part in archive.infolist())
    if size > max_bytes:
        raise ValueError(f"{path} unpacks to {size:,} bytes; at most {max_bytes:,} are read.")
    try:
        with np.load(path, allow_pickle=False) as arrays:
            return {name: arrays[name] for name in arrays.files}
    except Exception as error:  # such files are broken in many ways
        raise ValueError(f"{path} cannot be read as plain arrays: {error}") from error


def judge(
    network: DefendedClassifier, x: Tensor, clean: Tensor, labels: Tensor, attacked: Tensor, eps
) -> ChallengeScore:
    """Judge all rows, batch by batch.

    Parameters
    ----------
    network : DefendedClassifier
        Victim and detector.
    x : Tensor of shape (n, …)
        Rows submitted, NaN where none is claimed.
    clean : Tensor of shape (n, …)
        Test rows.
    labels : Tensor of shape (n,)
        Their classes.
    attacked : Tensor of shape (n,)
        Whether the victim gets the test row right.
    eps : dict of float to Tensor of shape (n,)
        By ε, the test rows that a bound leaves within reach.
    """
    reasons = (
        "a value is not finite",
        "a value is outside [0, 1]",
        f"farther than {max(eps):.4g} from the test image",
        "the victim errs on the clean image",
    )
    batches = zip(*(part.split(BATCH) for part in (x, clean, labels, attacked)), strict=True)
    outcomes = [_judge_batch(network, max(eps), *batch) for batch in batches]
    verdict, distance, success = map(torch.cat, zip(*outcomes, strict=True))
    of_reason = {reason: positions(verdict == k) for k, reason in enumerate(reasons)}
    within = {}
    for radius, reachable in eps.items():
        broken = success & (distance <= radius + TOLERANCE)
        within[radius] = ScoreWithin(
            int(attacked.sum()),
            positions(broken),
            int(reachable.sum()),
            positions(broken & ~reachable),
        )
    return ChallengeScore(
        int((verdict != NOT_CLAIMED).sum()),
        {reason: rows for reason, rows in of_reason.items() if rows},
        within,
    )


def _judge_batch(network, eps, x, clean, labels, attacked) -> tuple[Tensor, Tensor, Tensor]:
    """Position of the first reason to refuse each row, its distance, and whether it is broken."""
    rows, distance = x.flatten(1), (x.double() - clean).flatten(1).abs().amax(1)
    refused = torch.stack(
        [
            ~rows.isfinite().all(1),
            ((rows < 0) | (rows > 1)).any(1),
            distance > eps + TOLERANCE,
            ~attacked,
        ]
    )
    verdict = torch.where(refused.any(0), refused.to(torch.int8).argmax(0), COUNTS)
    verdict[rows.isnan().all(1)] = NOT_CLAIMED
    candidates = x.clone()
    candidates[verdict != COUNTS] = torch.nan
    success = verified(network, clean, candidates, labels, norm=torch.inf).success
    return verdict, distance, success


def positions(mask: Tensor) -> tuple[int, ...]:
    """Where a mask is true."""
    return tuple(torch.nonzero(mask)[:, 0].tolist())
