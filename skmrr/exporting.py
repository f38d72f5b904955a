"""Files that judge rows without this package: ``torch.export`` and ONNX."""

import copy
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from skmrr.base import BaseDetector
from skmrr.joining import member_names
from skmrr.nn.deployed import DONT_KNOW, Deployed
from skmrr.nn.exported_files import Answer, Judge, format_of, quiet
from skmrr.nn.members import ArrayStep
from skmrr.nn.placement import module_dtype
from skmrr.nn.rows import Rows
from skmrr.nn.sparse_coding import SparseCoder
from skmrr.nn.statistic import Statistic
from skmrr.nn.tapped import HALVES
from skmrr.threshold import risk_of
from skmrr.whole_files import replaced

DRAWN_ROWS = 256  # to compare on where no rows are given
EXACT, ROUNDED = 1e-6, 3e-4  # difference of risks in double precision, and in float32

# Parts that no graph can hold, and the cure.
OPAQUE: dict[type[nn.Module], str] = {
    SparseCoder: "the pursuit of an InputDictionaryDefender takes steps that depend on the rows; "
    "fit an ensemble without it",
    ArrayStep: "a step of a Pipeline knows arrays only; fit the member without such a step, or "
    "make it a layer of the network",
    torch.jit.ScriptModule: "a network is scripted or traced; fit with the one that it was made "
    "from",
}


@dataclass(frozen=True)
class Agreement:
    """How an exported file and its detector agree.

    Parameters
    ----------
    n_rows : int
        Rows that both judged.
    n_flagged : int
        Rows that the detector flags.
    risk_difference : float
        Largest difference of a risk, the members' included.
    n_at_threshold : int
        Rows whose verdicts differ, as their risk is within `tolerance` of the threshold.
    tolerance : float
        Largest difference of a risk that was accepted.
    """

    n_rows: int
    n_flagged: int
    risk_difference: float
    n_at_threshold: int
    tolerance: float


def export(detector: BaseDetector, path, X=None, *, tolerance: float | None = None) -> Agreement:
    """Write a calibrated detector, classifier included, to a file that needs no skmrr.

    The file takes ``x``, rows of shape (batch, …) as the networks see them, in the pixel scale of
    the detector and the precision of its first network, for any batch, and
    ``security_parameter``, a float64 of shape (). It gives

    - ``label``, int64 of shape (batch,): the class, or −1 for "don't know";
    - ``risk``, float64 of shape (batch,), and ``flagged``, bool of shape (batch,);
    - ``member_risks``, float64 of shape (batch, members), in the order of the members;
    - ``in_range``, bool of shape (batch,). Where the detector raises an error, as a value is not
      finite or outside ``clip_values``, such a row is flagged with risk 1, and no other is touched.

    Before the file takes its place it is read again, and compared with the detector: the verdicts
    must be the same, and the risks but for rounding. What else the detector promises travels with
    it: calibration, classes never seen, the range.

    Parameters
    ----------
    detector : BaseDetector
        Fitted and calibrated. It is left as it is.
    path : str or path-like
        Where to write. By its suffix: ``.pt2`` is read by ``torch.export.load``, ``.onnx`` by any
        runtime of ONNX (to write it takes ``pip install 'skmrr[onnx]'``). A file there is
        replaced, once the new one is whole.
    X : array-like, Tensor, Dataset or DataLoader of shape (n_samples, …), optional
        Rows to compare on, clean ones best. By default 256 are drawn from the range, most of which
        a detector will flag, so that less is compared.
    tolerance : float, optional
        Largest difference of a risk. By default 1e-6 where all networks compute in double
        precision, else 3e-4, as float32 networks round differently in other runtimes. A verdict
        may differ only where the risk is this close to the threshold.

    Returns
    -------
    Agreement
        What was compared.

    Raises
    ------
    NotFittedError
        If the detector is not fitted, or not calibrated.
    ValueError
        If the suffix is another, or X does not fit the detector.
    TypeError
        If a part of the detector cannot be exported.
    ImportError
        If ONNX's packages are missing.
    RuntimeError
        If the file does not judge as the detector does. Nothing is written.

    Examples
    --------
    >>> import tempfile
    >>> from pathlib import Path
    >>> import torch
    >>> from sklearn.datasets import load_digits
    >>> import skmrr
    >>> X, y = load_digits(return_X_y=True)
    >>> defender = skmrr.LatentDefender(max_epochs=2, random_state=0).fit(X, y)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = Path(folder) / "defender.pt2"
    ...     agreement = skmrr.export(defender, path, X[:100])
    ...     judge = torch.export.load(path).module()
    >>> agreement.n_rows
    100
    >>> answer = judge(torch.as_tensor(X[:3]), torch.tensor(0.01, dtype=torch.float64))
    >>> answer["risk"].shape, answer["label"].dtype
    (torch.Size([3]), torch.int64)
    """
    path = Path(path)
    file_format = format_of(path)
    _check_detector(detector)
    module = copy.deepcopy(detector.module_).cpu().requires_grad_(False)
    shape = detector.input_shape_
    if X is None:
        dtype = _row_dtype(module)
        rows = Rows(_draw(shape, detector.clip_values, dtype), trusted=True)
    else:
        rows = detector._read_rows(X, reset=False)
        dtype = _row_dtype(module, rows.take([0]).dtype)
    if tolerance is None:
        tolerance = EXACT if _is_exact(module) else ROUNDED
    with replaced(path) as written:
        example = torch.zeros(2, *shape, dtype=dtype)
        program = _traced(Deployed(module, detector.clip_values).eval(), example)
        file_format.write(program, written, _notes(detector))
        judge = file_format.read(written)
        return _compare(judge, detector, rows, dtype, tolerance)


def _check_detector(detector) -> None:
    if not isinstance(detector, BaseDetector):
        raise TypeError(
            f"export takes a detector, not a {type(detector).__name__}: give the estimator_ of a "
            "FixedThresholdDetector, as the file is told the threshold anyway; make a Pipeline the "
            "member of an MRREnsemble(defenders=[('name', pipeline, 1)])."
        )
    detector._check_calibrated()
    for part in detector.module_.modules():
        if cure := _cure(part):
            raise TypeError(f"This {type(detector).__name__} cannot be exported: {cure}.")


def _cure(part: nn.Module) -> str:
    """Why no graph can hold a part, and the cure; empty where one can."""
    if isinstance(part, Statistic) and part.no_graph:
        return part.no_graph
    return next((cure for kind, cure in OPAQUE.items() if isinstance(part, kind)), "")


def _row_dtype(module: nn.Module, given: torch.dtype | None = None) -> torch.dtype:
    """Dtype of rows: the first network's, else of the rows given, else of what was fitted."""
    if given is None or not given.is_floating_point:
        given = next(part.dtype for part in module.buffers() if part.is_floating_point())
    dtype = module_dtype(module, given)
    return torch.float32 if dtype in HALVES else dtype


def _is_exact(module: nn.Module) -> bool:
    tensors = (*module.parameters(), *module.buffers())
    return all(part.dtype == torch.float64 for part in tensors if part.is_floating_point())


def _draw(shape, clip_values, dtype: torch.dtype) -> np.ndarray:
    """Rows of noise, of all contrasts, within the range."""
    generator = torch.Generator().manual_seed(0)
    low, high = (-3.0, 3.0) if clip_values is None else clip_values
    noise = torch.rand(DRAWN_ROWS, *shape, dtype=torch.float64, generator=generator) - 0.5
    contrast = torch.linspace(0, 1, DRAWN_ROWS).view(-1, *[1] * len(shape))
    return ((low + high) / 2 + (high - low) * contrast * noise).to(dtype).numpy()


def _traced(deployed: Deployed, x: Tensor) -> torch.export.ExportedProgram:
    inputs = (x, torch.tensor(0.5, dtype=torch.float64))
    shapes = ({0: torch.export.Dim("batch", min=0)}, None)
    try:
        with torch.no_grad(), quiet():
            return torch.export.export(deployed, inputs, dynamic_shapes=shapes, strict=False)
    except Exception as error:
        raise TypeError(
            "torch.export cannot make one graph of this detector: write its networks without "
            "Python that depends on values or on the size of a batch. It says: "
            f"{type(error).__name__}: {error}"
        ) from error


def _notes(detector: BaseDetector) -> str:
    """Tell in JSON what a reader of the file may want to know of the detector."""
    clip_values = detector.clip_values
    return json.dumps(
        {
            "detector": type(detector).__name__,
            "security_parameter": float(detector.security_parameter),
            "members": member_names(detector),
            "classes": detector.classes_.tolist(),
            "clip_values": None if clip_values is None else [float(v) for v in clip_values],
        }
    )


def _compare(
    judge: Judge, detector: BaseDetector, rows: Rows, dtype: torch.dtype, tolerance: float
) -> Agreement:
    """Compare a file with its detector on rows, the first of them by itself.

    Raises
    ------
    RuntimeError
        If they do not agree.
    """
    n_flagged = n_at_threshold = 0
    difference = 0.0
    for positions, batch in rows.batches(detector.batch_size_):
        x = batch.to(dtype).numpy()
        parts = [x]
        if positions.start == 0:
            _check_unreadable(judge, x[:1], detector)
            parts = [x[:1], x[1:]]
        for part in filter(len, parts):
            found = judge(part, detector.security_parameter)
            expected = _judged(detector, part)
            gaps = [np.abs(found[name] - expected[name]) for name in ("risk", "member_risks")]
            difference = max(difference, *(float(gap.max()) for gap in gaps))
            is_other = found["label"] != expected["label"]
            is_other |= found["flagged"] != expected["flagged"]
            is_near = np.abs(expected["risk"] - 1 + detector.security_parameter) <= tolerance
            n_wrong = int((is_other & ~is_near).sum())
            if n_wrong or not difference <= tolerance:
                raise RuntimeError(
                    f"The file does not judge as the detector does, and was not kept: of "
                    f"{len(part)} rows {n_wrong} have another verdict, and a risk differs by "
                    f"{difference:.1e} (accepted: {tolerance:.0e}). Raise tolerance if such "
                    "rounding is all right, or export to another format."
                )
            n_flagged += int(expected["flagged"].sum())
            n_at_threshold += int(is_other.sum())
    return Agreement(len(rows), n_flagged, difference, n_at_threshold, tolerance)


def _judged(detector: BaseDetector, x: np.ndarray) -> Answer:
    """Return the outputs of the detector itself."""
    rows = Rows(x, trusted=True)
    score, columns, members = detector._stream(detector.module_.judge, rows, None)
    flagged = score < detector.offset_
    return {
        "label": np.where(flagged, DONT_KNOW, detector.classes_[columns]),
        "risk": risk_of(score),
        "flagged": flagged,
        "member_risks": risk_of(members),
    }


def _check_unreadable(judge: Judge, row: np.ndarray, detector: BaseDetector) -> None:
    """Raise a RuntimeError unless a row beyond the range is flagged, and no other is touched."""
    beyond = [np.nan, np.inf]
    if detector.clip_values is not None:
        low, high = detector.clip_values
        beyond += [2 * low - high, 2 * high - low]
    x = np.repeat(row, 1 + len(beyond), axis=0)
    x.reshape(len(x), -1)[1:, 0] = beyond
    together, alone = (judge(part, detector.security_parameter) for part in (x, row))
    is_first = np.arange(len(x)) == 0
    refused = {"label": DONT_KNOW, "risk": 1.0, "flagged": True, "in_range": False}
    if not (
        all((together[name][1:] == value).all() for name, value in refused.items())
        and np.array_equal(together["in_range"], is_first)
        and np.allclose(together["risk"][:1], alone["risk"], rtol=0, atol=ROUNDED)
    ):
        raise RuntimeError(
            "The file was not kept: rows beyond the range are not flagged by it, or change what "
            "the rows beside them get. A network in the detector mixes the rows of a batch; let "
            "it judge each row by itself."
        )
