"""Submissions to the challenge: reading them, what is refused, and the score."""

import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from os import PathLike
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

MAX_BYTES = 10_000_000  # unpacked; a full submission in double precision takes 256,000


@dataclass(frozen=True)
class ChallengeScore:
    """What a submission achieved."""

    n_attacked: int
    """Test rows that count: those that the victim gets right."""
    n_claimed: int
    """Rows submitted."""
    broken: tuple[int, ...]
    """Rows on which it succeeded: misclassified and not flagged."""
    low: float
    """Lower end of Clopper and Pearson's 95 % interval of the success rate."""
    high: float
    """Upper end."""
    refused: dict[str, tuple[int, ...]]
    """By reason, the rows submitted that do not count."""
    n_within_reach: int
    """Rows on which a success is not ruled out."""
    ruled_out: tuple[int, ...]
    """Rows broken although they were ruled out: should there be any, the proof is wrong."""

    @property
    def success_rate(self) -> float:
        """Share of the rows attacked that were broken."""
        return len(self.broken) / self.n_attacked

    @property
    def bound(self) -> float:
        """Share of the rows attacked that any attack can break at most."""
        return self.n_within_reach / self.n_attacked

    def __str__(self):
        lines = [
            f"success rate {self.success_rate:.1%}: {len(self.broken)} of {self.n_attacked} rows "
            f"broken (95 % interval {self.low:.1%} to {self.high:.1%})",
            f"no attack can break more than {self.n_within_reach} of them ({self.bound:.1%})",
            f"{self.n_claimed} rows submitted",
        ]
        lines += [
            f"{len(rows)} refused, {reason}: {_some(rows)}" for reason, rows in self.refused.items()
        ]
        if self.ruled_out:
            lines.append(f"broken though ruled out, please report: rows {_some(self.ruled_out)}")
        return "\n".join(lines)


def _some(rows: tuple[int, ...]) -> str:
    shown = ", ".join(str(row) for row in rows[:10])
    return f"{shown}, …" if len(rows) > 10 else shown


def submitted(submission: str | PathLike | Mapping, clean: np.ndarray) -> np.ndarray:
    """Read a submission and return all rows, float32, NaN in those not claimed."""
    arrays = submission if isinstance(submission, Mapping) else _read_npz(submission)
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


def _read_npz(path: str | PathLike) -> dict[str, np.ndarray]:
    """Arrays of an .npz file by a stranger: no pickles, and no more than fits in memory."""
    path = Path(path)
    if not zipfile.is_zipfile(path) and path.exists():
        raise ValueError(f"{path} is no .npz file; write it by numpy.savez.")
    with zipfile.ZipFile(path) as archive:
        size = sum(part.file_size for part in archive.infolist())
    if size > MAX_BYTES:
        raise ValueError(f"{path} unpacks to {size:,} bytes; at most {MAX_BYTES:,} are read.")
    try:
        with np.load(path, allow_pickle=False) as arrays:
            return {name: arrays[name] for name in arrays.files}
    except Exception as error:  # such files are broken in many ways
        raise ValueError(f"{path} cannot be read as plain arrays: {error}") from error


def refusals(
    x: Tensor, clean: Tensor, right: Tensor, eps: float, tolerance: float
) -> dict[str, tuple[int, ...]]:
    """Rows that break the rule, by the first reason that applies.

    Parameters
    ----------
    x : Tensor of shape (n, …)
        Rows submitted, NaN where none is claimed.
    clean : Tensor of shape (n, …)
        Test rows.
    right : Tensor of shape (n,)
        Whether the victim gets the test row right.
    eps, tolerance : float
        Largest distance, and how much more is put down to rounding.
    """
    rows, distance = x.flatten(1), (x.double() - clean).flatten(1).abs().amax(1)
    reasons = {
        "a value is not finite": ~rows.isfinite().all(1),
        "a value is outside [0, 1]": ((rows < 0) | (rows > 1)).any(1),
        f"farther than {eps:g} from the test image": distance > eps + tolerance,
        "the victim errs on the clean image": ~right,
    }
    left = ~rows.isnan().all(1)
    refused = {}
    for reason, applies in reasons.items():
        if (applies & left).any():
            refused[reason] = positions(applies & left)
        left = left & ~applies
    return refused


def positions(mask: Tensor) -> tuple[int, ...]:
    """Where a mask is true."""
    return tuple(torch.nonzero(mask)[:, 0].tolist())
