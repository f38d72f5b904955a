"""Programs of ``torch.export`` in files, and files as functions of arrays."""

import importlib.util
import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch.export import ExportedProgram

OUTPUTS = ("label", "risk", "flagged", "member_risks", "in_range")
NOTES = "skmrr.json"  # file within a .pt2 that describes the detector
NOTES_PROPERTY = "skmrr"  # property of an .onnx that does
ONNX_PACKAGES = ("onnx", "onnxscript", "onnxruntime")

Answer = dict[str, np.ndarray]
Judge = Callable[[np.ndarray, float], Answer]  # rows, security parameter → outputs by name


class FileFormat(NamedTuple):
    """How a program is written to a file, and what it has become there is read."""

    write: Callable[[ExportedProgram, Path, str], None]
    read: Callable[[Path], Judge]


def format_of(path: Path) -> FileFormat:
    """Format of a file by its suffix.

    Raises
    ------
    ValueError
        If there is none.
    ImportError
        If its packages are missing.
    """
    if (found := FORMATS.get(path.suffix)) is None:
        raise ValueError(f"{path.name!r} must end in one of {', '.join(FORMATS)}.")
    if path.suffix == ".onnx":
        missing = [name for name in ONNX_PACKAGES if importlib.util.find_spec(name) is None]
        if missing:
            raise ImportError(f"ONNX needs {', '.join(missing)}: pip install 'skmrr[onnx]'.")
    return found


def _write_program(program: ExportedProgram, path: Path, notes: str) -> None:
    with _quiet():
        torch.export.save(program, path, extra_files={NOTES: notes})


def _read_program(path: Path) -> Judge:
    module = torch.export.load(path).module()

    def judge(x: np.ndarray, security_parameter: float) -> Answer:
        rate = torch.tensor(security_parameter, dtype=torch.float64)
        with torch.no_grad():
            answer = module(torch.as_tensor(x), rate)
        return {name: answer[name].numpy() for name in OUTPUTS}

    return judge


def _write_onnx(program: ExportedProgram, path: Path, notes: str) -> None:
    from skmrr.nn.onnx_operators import OPERATORS

    try:
        with _quiet():
            converted = torch.onnx.export(
                program,
                dynamo=True,
                output_names=OUTPUTS,
                custom_translation_table=OPERATORS,
                verbose=False,
            )
    except Exception as error:
        raise TypeError(
            "torch.onnx.export cannot translate this detector; export it to a .pt2, or write its "
            f"networks without the operator that it names: {error}"
        ) from error
    assert converted is not None
    converted.model.metadata_props[NOTES_PROPERTY] = notes
    converted.save(path, external_data=False)


def _read_onnx(path: Path) -> Judge:
    import onnxruntime

    try:
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    except Exception as error:
        raise TypeError(
            "onnxruntime has no code for this detector's operators in the precision that they "
            f"compute in; fit with float32 networks, or export to a .pt2: {error}"
        ) from error

    def judge(x: np.ndarray, security_parameter: float) -> Answer:
        inputs = {"x": x, "security_parameter": np.array(security_parameter)}
        return dict(zip(OUTPUTS, session.run(list(OUTPUTS), inputs), strict=True))

    return judge


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep exporters from telling of their own workings; the file is compared with the detector."""
    logger = logging.getLogger("torch.onnx")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(before)


FORMATS = {
    ".pt2": FileFormat(_write_program, _read_program),
    ".onnx": FileFormat(_write_onnx, _read_onnx),
}
