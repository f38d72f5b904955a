"""Rows that can be read, and what becomes of those that cannot."""

from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace
from hashlib import blake2b

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from tqdm.auto import tqdm

from skmrr.cli.data import Data
from skmrr.cli.outcomes import UnreadableError, printable, say

HELD_BYTES = 2**30  # rows that take less are read once, and kept
FILES_AT_ONCE = 64
DIGEST_BYTES = 8


@dataclass(frozen=True)
class Unreadable:
    """A row that could not be read, and why."""

    name: str
    reason: str

    def __str__(self) -> str:
        return f"{printable(self.name)} cannot be read: {self.reason}"


@dataclass(frozen=True)
class Sound:
    """The rows that could be read."""

    data: Data
    digests: list[str]
    """A hash of each row."""
    example: Tensor
    """The first row, twice."""
    held: np.ndarray | None = None
    """The rows in memory, if they are few."""
    workers: int = 0
    n_unreadable: int = 0

    @property
    def X(self) -> "np.ndarray | DataLoader | Data":
        """Rows as detectors take them."""
        if self.held is not None:
            return self.held
        if self.workers == 0:
            return self.data
        return DataLoader(self.data, batch_size=1, num_workers=self.workers)

    def array(self) -> np.ndarray:
        """All rows in memory."""
        if self.held is not None:
            return self.held
        return np.stack([self.data[k].numpy() for k in range(len(self.data))])

    def without(self, digests: Collection[str], reason: str) -> "Sound":
        """Leave out rows of these hashes, and say so.

        Raises
        ------
        ValueError
            If no other is left.
        """
        taken = set(digests)
        kept = [k for k, digest in enumerate(self.digests) if digest not in taken]
        n_shared = len(self.digests) - len(kept)
        if not n_shared:
            return self
        if not kept:
            raise ValueError(f"All these rows {reason}: give others, new to the detector.")
        say(f"left out: {n_shared} rows, which {reason}")
        return replace(
            self,
            data=self.data.at(kept),
            digests=[self.digests[k] for k in kept],
            held=None if self.held is None else self.held[kept],
        )


def attempts(
    data: Data, batch_size: int, workers: int
) -> Iterator[list[tuple[str, Tensor | Unreadable]]]:
    """Read rows batch by batch, with their names, and say of each that cannot be why."""
    yield from DataLoader(
        _Attempts(data), batch_size=batch_size, num_workers=workers, collate_fn=list
    )


def sound_rows(data: Data, *, workers: int, skip: bool) -> Sound:
    """Read all rows once; tell which cannot be read, and leave them out or stop there.

    Raises
    ------
    UnreadableError
        If a row cannot be read, and is not to be skipped.
    """
    held: list[Tensor] | None = []
    n_bytes, position = 0, 0
    example = torch.empty(0)
    good: list[int] = []
    digests: list[str] = []
    with tqdm(total=len(data), desc="reading", unit=" rows", disable=None, leave=False) as bar:
        for batch in attempts(data, FILES_AT_ONCE, workers):
            for _, row in batch:
                if isinstance(row, Unreadable):
                    refuse(row, skip=skip)
                else:
                    example = row if not good else example
                    good.append(position)
                    digests.append(_digest(row))
                    n_bytes += row.numel() * row.element_size()
                    if held is not None:
                        held.append(row)
                position += 1
            held = None if n_bytes > HELD_BYTES else held
            bar.update(len(batch))
    if not good:
        raise UnreadableError("No row at all can be read.")
    return Sound(
        data.at(good),
        digests,
        torch.stack([example] * 2),
        None if held is None else torch.stack(held).numpy(),
        workers,
        len(data) - len(good),
    )


def refuse(row: Unreadable, *, skip: bool) -> None:
    """Tell of a row that cannot be read, or stop."""
    if not skip:
        raise UnreadableError(f"{row} (--on-error skip leaves such rows out.)")
    say(f"skipped: {row}")


class _Attempts(Dataset):
    """Rows, or why they cannot be read."""

    def __init__(self, data: Data):
        self.data = data

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, position: int) -> tuple[str, Tensor | Unreadable]:
        name = self.data.names[position]
        try:
            return name, self.data[position]
        except Exception as error:  # whatever a damaged file leads to
            return name, Unreadable(name, f"{type(error).__name__}: {error}")


def _digest(row: Tensor) -> str:
    digest = blake2b(f"{row.dtype} {tuple(row.shape)}".encode(), digest_size=DIGEST_BYTES)
    digest.update(row.contiguous().numpy().tobytes())
    return digest.hexdigest()
