"""Samples of a dataset, read as its loader reads them."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from torch import Tensor
from torch.utils.data import (
    DataLoader,
    Dataset,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    Subset,
    default_collate,
)

WORKERS = (  # what a loader says of them
    *("num_workers", "worker_init_fn", "multiprocessing_context", "prefetch_factor"),
    *("timeout", "generator"),
)


class Samples(Dataset):
    """Samples of a map-style dataset, a batch of which is asked for by a list of positions.

    Parameters
    ----------
    source : Dataset or DataLoader
        Of a loader its workers read, its ``collate_fn`` makes batches, and a sampler that does not
        go through the whole dataset says, once for all, which samples there are. In whatever order
        it reads, samples count in that of the dataset.

    Raises
    ------
    TypeError
        If the dataset has no length, cannot be indexed, or makes batches by itself.
    """

    def __init__(self, source: Dataset | DataLoader):
        self.collate: Callable | None = None
        self.workers: dict[str, Any] = {"num_workers": 0}
        self.positions: np.ndarray | None = None
        self.dataset: Any = source
        if isinstance(source, DataLoader):
            self.dataset = source.dataset
        if isinstance(self.dataset, IterableDataset) or not hasattr(self.dataset, "__len__"):
            raise TypeError(
                f"{type(self.dataset).__name__} cannot be indexed; give an array, a tensor, or a "
                "map-style torch Dataset."
            )
        if isinstance(source, DataLoader):
            self._follow(source)

    def _follow(self, loader: DataLoader) -> None:
        if loader.batch_sampler is None:
            raise TypeError(
                "A DataLoader with batch_size=None leaves batches to its dataset, so that nobody "
                "knows its rows; give the loader a batch_size."
            )
        if loader.collate_fn is not default_collate:
            self.collate = loader.collate_fn
        self.workers = {name: getattr(loader, name) for name in WORKERS}
        sampler = loader.sampler
        is_whole = isinstance(sampler, SequentialSampler) or (
            isinstance(sampler, RandomSampler)
            and not sampler.replacement
            and sampler.num_samples == len(self.dataset)
        )
        if loader.batch_size is None:  # batches by a sampler of their own
            self.positions = np.concatenate([np.asarray(b) for b in loader.batch_sampler])
        elif not is_whole:
            self.positions = np.asarray(list(sampler))

    def __len__(self) -> int:
        return len(self.dataset) if self.positions is None else len(self.positions)

    def __getitem__(self, indices) -> tuple[Tensor, Any]:
        """Rows of the samples at `indices` as one tensor, and their labels as they come, or None.

        Raises
        ------
        ValueError
            If a sample cannot be read; the message names it.
        TypeError
            If samples are neither rows nor pairs of row and label.
        """
        if self.positions is not None:
            indices = self.positions[np.asarray(indices)]
        items = [self._read(int(i)) for i in indices]
        if self.collate is not None:
            batch = self.collate(items)
            x, *rest = batch if isinstance(batch, tuple | list) else (batch,)
            return _tensor(x), rest[0] if rest else None
        if isinstance(items[0], tuple | list):
            labels = [item[1] for item in items] if len(items[0]) > 1 else None
            return _tensor(default_collate([item[0] for item in items])), labels
        return _tensor(default_collate(items)), None

    def _read(self, index: int):
        try:
            return self.dataset[index]
        except Exception as error:
            raise ValueError(
                f"Row {index} of the dataset cannot be read: {type(error).__name__}: {error}"
            ) from error

    def stream(self, batches: Sequence) -> Iterator[tuple[Tensor, Any]]:
        """Yield rows and labels of each of many lists of positions, read by the workers."""
        if self.workers["num_workers"] == 0:
            yield from map(self.__getitem__, batches)
        else:
            yield from DataLoader(
                self, batch_size=None, sampler=batches, collate_fn=_as_they_are, **self.workers
            )

    def part(self, indices: np.ndarray) -> Dataset | DataLoader:
        """Return the samples at `indices` alone, read the same way."""
        positions = indices if self.positions is None else self.positions[indices]
        subset = Subset(self.dataset, positions.tolist())
        if self.collate is None and self.workers["num_workers"] == 0:
            return subset
        return DataLoader(subset, batch_size=1, collate_fn=self.collate, **self.workers)


def _as_they_are(batch):
    return batch


def _tensor(x) -> Tensor:
    if isinstance(x, Tensor):
        return x
    keys = f" with keys {list(x)}" if isinstance(x, Mapping) else ""
    raise TypeError(
        f"The dataset yields a {type(x).__name__}{keys}; make it yield a tensor, or (tensor, "
        "label), perhaps by collate_fn=… of a DataLoader."
    )
