"""Rows on many machines: Dask moves them, a detector judges or examines each chunk where it lies.

Nothing here schedules or retries: that is Dask's work. Dask is imported where it is used, and a
detector meets it only if it is given one of its arrays.
"""

import copy
import os
import sys
import tempfile
import weakref
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeGuard

import numpy as np

from skmrr.nn.fingerprint import fingerprint

if TYPE_CHECKING:
    import dask.array as da

CHUNK_ROWS = 4096


def is_dask_array(X) -> "TypeGuard[da.Array]":
    """Whether X is an array of Dask: if nobody has imported Dask, it is none."""
    dask_array = sys.modules.get("dask.array")
    return dask_array is not None and isinstance(X, dask_array.Array)


def image_rows(
    paths,
    read: Callable[[Any], np.ndarray],
    row_shape: Sequence[int],
    *,
    chunk_rows: int = CHUNK_ROWS,
    dtype=np.float32,
) -> "da.Array":
    """Rows that are read from paths when their chunk is computed, for detectors to score lazily.

    Parameters
    ----------
    paths : sequence of str or Path, or dask.bag.Bag
        Where the images are: files that every worker sees, or URLs. A partition of a bag is a
        chunk, whose number of rows is known only once it is read.
    read : callable
        Path → row of shape `row_shape`. It runs on the workers.
    row_shape : tuple of int
        Shape of a row.
    chunk_rows : int, default=4096
        Rows in a chunk, which is what a thread of a worker holds at a time. For a bag it has no
        effect: repartition the bag.
    dtype : dtype, default=float32
        Of the rows.

    Returns
    -------
    rows : dask.array.Array of shape (n_paths, …)
        Chunked along the rows. ``n_paths`` is NaN for a bag.

    Raises
    ------
    ValueError
        When computed: if a row cannot be read, or is of another shape. It names the path.

    Examples
    --------
    >>> import numpy as np
    >>> from skmrr.distributed import image_rows
    >>> def read(path):
    ...     return np.full((1, 2, 2), int(path))
    >>> rows = image_rows(["0", "1", "2"], read, (1, 2, 2), chunk_rows=2)
    >>> rows.chunks[0], rows[:, 0, 0, 0].compute()
    ((2, 1), array([0., 1., 2.], dtype=float32))
    """
    import dask
    import dask.array as da

    row_shape = tuple(row_shape)
    if hasattr(paths, "to_delayed"):
        parts, lengths = paths.to_delayed(), None
    else:
        paths = list(paths)
        parts = [paths[k : k + chunk_rows] for k in range(0, len(paths), chunk_rows)]
        lengths = list(map(len, parts))
    if not parts:
        raise ValueError("There is no path to read rows from.")
    load = dask.delayed(_read_all)
    chunks = [
        da.from_delayed(
            load(dask.delayed(part, traverse=False), read, row_shape, np.dtype(dtype)),
            (np.nan if lengths is None else lengths[k], *row_shape),
            meta=np.empty((0, *row_shape), dtype),
        )
        for k, part in enumerate(parts)
    ]
    return da.concatenate(chunks, allow_unknown_chunksizes=True)


def _read_all(paths, read, row_shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """Rows of a chunk."""
    paths = list(paths)
    rows = np.empty((len(paths), *row_shape), dtype)
    for k, path in enumerate(paths):
        try:
            row = np.asarray(read(path))
            if row.shape != row_shape:
                raise ValueError(f"it is of shape {row.shape}, not {row_shape}.")
        except Exception as error:
            message = f"{path} cannot be read: {type(error).__name__}: {error}"
            raise ValueError(message) from error
        rows[k] = row
    return rows


def npy_rows(path, *, chunk_rows: int = CHUNK_ROWS) -> "da.Array":
    """Rows of an ``.npy`` file, each chunk read by the worker that needs it.

    ``dask.array.from_array`` of a memmap would send the rows themselves to a cluster.

    Parameters
    ----------
    path : str or Path
        File that every worker sees under this name, of shape (n_rows, …).
    chunk_rows : int, default=4096
        Rows in a chunk, which is what a thread of a worker holds at a time.

    Returns
    -------
    rows : dask.array.Array of shape (n_rows, …)
        Chunked along the rows.

    Examples
    --------
    >>> import tempfile
    >>> import numpy as np
    >>> from skmrr.distributed import npy_rows
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     np.save(f"{folder}/rows.npy", np.eye(5))
    ...     rows = npy_rows(f"{folder}/rows.npy", chunk_rows=2)
    ...     rows.chunks[0], float(rows.sum().compute())
    ((2, 2, 1), 5.0)
    """
    import dask.array as da
    from dask.base import tokenize

    path = Path(path).absolute()
    whole = np.load(path, mmap_mode="r", allow_pickle=False)
    if whole.ndim < 2 or not len(whole):
        raise ValueError(f"{path} is of shape {whole.shape}; it must hold rows, (n_rows, …).")
    n_rows, row_shape = len(whole), whole.shape[1:]
    lengths = [min(chunk_rows, n_rows - start) for start in range(0, n_rows, chunk_rows)]
    return da.map_blocks(
        _read_slice,
        path,
        chunks=(tuple(lengths), *((side,) for side in row_shape)),
        dtype=whole.dtype,
        meta=np.empty((0, *row_shape), whole.dtype),
        token=f"npy-{tokenize(path, whole.shape, path.stat().st_mtime_ns, chunk_rows)}",
    )


def _read_slice(path: Path, block_info) -> np.ndarray:
    """Rows of a chunk, as they are in the file now."""
    start, stop = block_info[None]["array-location"][0]
    return np.array(np.load(path, mmap_mode="r", allow_pickle=False)[start:stop])


def spooled(X: "da.Array") -> np.memmap:
    """Rows of a dask array in a file of this machine, fetched chunk by chunk.

    What is trained on them reads them in any order and many times. The file lies where Python
    keeps temporary files (``TMPDIR``), and goes with the array.
    """
    X = _whole_rows(X)
    if any(np.isnan(length) for length in X.chunks[0]):
        X = X.persist().compute_chunk_sizes()
    if len(X) == 0:
        raise ValueError("Found array with 0 sample(s) while a minimum of 1 is required.")
    handle, name = tempfile.mkstemp(prefix="skmrr-", suffix=".rows")
    os.close(handle)
    try:
        rows = np.memmap(name, X.dtype, "w+", shape=X.shape)
        start = 0
        for number, length in enumerate(X.chunks[0]):
            rows[start : start + length] = X.blocks[number].compute()
            start += length
    except BaseException:
        Path(name).unlink()
        raise
    weakref.finalize(rows, Path(name).unlink, missing_ok=True)
    return rows


def by_chunk(
    work: Callable[..., np.ndarray], detector, X: "da.Array", labels, width: int, *params
) -> "da.Array":
    """Return what a detector finds in rows, as a lazy array of shape (n_samples, width), float64.

    Parameters
    ----------
    work : callable
        ``work(detector, rows, labels, number, *params)`` → ndarray of shape (len(rows), width),
        for the chunk of that number; ``labels`` is None or the chunk's.
    detector : BaseDetector
        Fitted. It is one node of the graph, so that a worker receives it once, and receives it
        again if it has died. What is set on the detector later does not count.
    X : dask.array.Array
        Rows.
    labels : array-like or dask array of shape (n_samples,), optional
        The classifier's decisions.
    width : int
        Numbers that are found in a row.
    *params : object
        Handed on; small.
    """
    import dask
    import dask.array as da
    from dask.base import tokenize

    X = _whole_rows(X)
    _check_one_row(detector, X)
    arrays = [X]
    if labels is not None:
        arrays.append(_beside(labels, X)[(slice(None), *[None] * (X.ndim - 1))])
    shipped = copy.copy(detector)
    shipped.verbose = False  # bars of many workers say nothing
    token = tokenize(
        fingerprint(detector.evidence_ if params else detector.module_),
        *(detector.input_shape_, detector.clip_values, detector.batch_size_),
    )
    node = dask.delayed(shipped, name=f"detector-{token}", traverse=False)
    return da.map_blocks(
        _work_on_chunk,
        *arrays,
        work=work,
        detector=node,
        params=params,
        drop_axis=list(range(1, X.ndim)),
        new_axis=1,
        chunks=(X.chunks[0], (width,)),
        dtype=np.float64,
        meta=np.empty((0, width)),
        token=f"{work.__name__.strip('_')}-{tokenize(token, *arrays, width, *params)}",
    )


def _work_on_chunk(X, labels=None, *, work, detector, params, block_info):
    """Work on a chunk, and name its rows if it fails."""
    width = block_info[None]["chunk-shape"][1]
    if not len(X):
        return np.empty((0, width))
    place = block_info[0]
    labels = None if labels is None else labels.reshape(len(labels))
    try:
        return work(detector, X, labels, place["chunk-location"][0], *params)
    except Exception as error:
        start, stop = place["array-location"][0]
        rows = f"chunk {place['chunk-location'][0]}"
        if not np.isnan(start):
            rows = f"rows {start} to {stop - 1} ({rows})"
        kind = ValueError if isinstance(error, ValueError) else RuntimeError
        raise kind(f"In {rows} of X: {error}") from error


def judge_chunk(detector, X, labels, number) -> np.ndarray:
    """Score, class column and members' log-survivals of each row."""
    return np.column_stack(detector._judge(X, labels))


def judge_lazily(detector, X: "da.Array", labels) -> tuple[Any, ...]:
    """Score, class column and members' log-survivals of each row, as lazy arrays of one pass."""
    width = 2 + len(detector.evidence_.members)
    judged = by_chunk(judge_chunk, detector, X, labels, width)
    return judged[:, 0], judged[:, 1].astype(np.int64), judged[:, 2:]


def picked(values: np.ndarray, positions):
    """Values at positions, which may be a dask array."""
    if is_dask_array(positions):
        import dask.array as da

        take = partial(np.take, values, axis=0)
        return da.map_blocks(take, positions, dtype=values.dtype, meta=values[:0])
    return values[positions]


def as_frame(values, columns: Sequence[str]):
    """Dask dataframe of a lazy array of shape (n_samples, n_columns)."""
    import dask.dataframe as dd

    return dd.from_dask_array(values, columns=list(columns))


def _whole_rows(X: "da.Array") -> "da.Array":
    """X in chunks of whole rows."""
    if X.ndim < 2:
        raise ValueError(
            f"X is of shape {X.shape}, but the rows are its first of two axes or more."
        )
    return X.rechunk(dict.fromkeys(range(1, X.ndim), -1))


def _beside(labels, X: "da.Array") -> "da.Array":
    """Labels in the chunks of X.

    Raises
    ------
    ValueError
        If there are more or fewer than rows, or nobody knows how many rows a chunk has.
    """
    import dask.array as da

    if is_dask_array(labels):
        same = len(labels.chunks[0]) == len(X.chunks[0]) and labels.ndim == 1
        is_unknown = np.isnan([*labels.chunks[0], *X.chunks[0]]).any()
        if is_unknown and same:
            return labels  # by the same selection as X; a chunk that does not fit says so
    else:
        labels = np.asarray(labels)
        is_unknown = np.isnan(X.shape[0])
    if is_unknown:
        raise ValueError(
            "Nobody knows how many rows the chunks of X have, so that labels cannot be dealt out: "
            "call X.compute_chunk_sizes() first, or give labels with the chunks of X."
        )
    if labels.shape != X.shape[:1]:
        raise ValueError(f"labels has shape {labels.shape} but X has {X.shape[0]} rows.")
    if is_dask_array(labels):
        return labels.rechunk((X.chunks[0],))
    return da.from_array(labels, chunks=(X.chunks[0],))


def _check_one_row(detector, X: "da.Array") -> None:
    """Raise now what a row of this shape and type would raise on a worker."""
    low = 0 if detector.clip_values is None else detector.clip_values[0]
    detector._read_rows(np.full((1, *X.shape[1:]), low, X.dtype), reset=False)
