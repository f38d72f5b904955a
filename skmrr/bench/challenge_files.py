"""What is published of a challenge: the files of its detector and of its victim.

``NAME-detector.safetensors`` is a fitted detector as `skmrr.save` writes it.
``NAME-victim.safetensors`` holds the victim's weights (``victim/…``, unless they come from
elsewhere), ``attacked``, which test rows it gets right, and ``within_reach``, with a row for each
ε, on which of these a success is not ruled out.
"""

import hashlib
from os import PathLike
from pathlib import Path

import numpy as np
import torch
from safetensors import torch as safetensors
from torch import Tensor

from skmrr import persistence
from skmrr.base import BaseDetector
from skmrr.bench import data_files
from skmrr.bench.challenge_entries import find
from skmrr.bench.submissions import TOLERANCE
from skmrr.bench.victims import load_victim, predict
from skmrr.defenders import CertifiedDefender
from skmrr.evaluation.bounds import classes_within_reach
from skmrr.nn.defended import DefendedClassifier

FOLDER = Path(__file__).with_name("challenges")
VICTIM = "victim/"


def load(name: str = "digits", *, folder: str | PathLike | None = None) -> DefendedClassifier:
    """Read the defended classifier to break: a torch module, rows → logits and "flagged".

    Parameters
    ----------
    name : {"digits", "mnist", "cifar10"}, default="digits"
        Which challenge.
    folder : path-like, optional
        Where `save` has written files of one's own; by default the published files, whose
        checksums are compared.

    Returns
    -------
    skmrr.nn.DefendedClassifier
        In evaluation mode. Gradients reach its input, its weights are fixed.

    Raises
    ------
    FileNotFoundError
        If a file came neither with the package nor lies where data sets do.
    ValueError
        If there is no such challenge, or a file is not the published one.

    Examples
    --------
    >>> import torch
    >>> from skmrr.bench import challenge
    >>> x, labels = challenge.test_rows()
    >>> challenge.load()(torch.as_tensor(x[:3])).shape
    torch.Size([3, 11])
    """
    challenge, paths = find(name), paths_of(name, folder)
    _read(paths[0], challenge.sha256[0] if folder is None else None)
    tensors = read_victim_file(name, folder)
    with torch.random.fork_rng(devices=[]):  # of the weights drawn here, none is kept
        if challenge.publishes_victim:
            state = {k.removeprefix(VICTIM): v for k, v in tensors.items() if k.startswith(VICTIM)}
            victim = load_victim(challenge.victim, state)
        else:
            victim = challenge.victim()
    detector = persistence.load(paths[0], classifier=victim)
    defended = detector.defended_classifier(security_parameter=challenge.security_parameter)
    if challenge.publishes_victim:  # else its weights are somebody's, and stay as they are
        defended.requires_grad_(False)
    return defended.eval()


def within_reach(
    name: str = "digits", *, eps: float | None = None, folder: str | PathLike | None = None
) -> np.ndarray:
    """Test rows, bool of shape (n_samples,), outside which no attack whatever can succeed.

    `skmrr.evaluation.certified_success_rate` explains the proof, which was run when the file was
    made. Without one these are the rows that the victim gets right.

    Parameters
    ----------
    name : {"digits", "mnist", "cifar10"}, default="digits"
        Which challenge.
    eps : float, optional
        One of the challenge's radii, by default the largest.
    folder : path-like, optional
        As in `load`.
    """
    radii = find(name).eps
    eps = max(radii) if eps is None else eps
    if eps not in radii:
        raise ValueError(f"eps={eps} is no radius of the challenge {name}; it has {radii}.")
    return read_victim_file(name, folder)["within_reach"][radii.index(eps)].numpy()


def paths_of(name: str, folder: str | PathLike | None = None) -> tuple[Path, Path]:
    """Files of the detector and of the victim."""
    detector, victim = f"{name}-detector.safetensors", f"{name}-victim.safetensors"
    if folder is not None:
        return Path(folder) / detector, Path(folder) / victim
    return published(detector), published(victim)


def published(filename: str) -> Path:
    """Return where a published file lies: in the package, or where data sets do."""
    if (FOLDER / filename).is_file():
        return FOLDER / filename
    found = data_files.find(filename)
    if found is None:
        raise FileNotFoundError(
            f"{data_files.advice(filename)} The repository of skmrr has it in "
            "skmrr/bench/challenges; the wheel has the files of the challenge digits alone."
        )
    return found


def read_victim_file(name: str, folder: str | PathLike | None = None) -> dict[str, Tensor]:
    """Tensors beside the detector."""
    sha256 = find(name).sha256[1] if folder is None else None
    return safetensors.load(_read(paths_of(name, folder)[1], sha256))


def _read(path: Path, sha256: str | None) -> bytes:
    """Read a file whose checksum is right."""
    data = path.read_bytes()
    found = _sha256(data)
    if sha256 not in (None, found):
        raise ValueError(
            f"{path} is not the published file: its SHA-256 is {found}, not {sha256}. "
            "Install skmrr afresh (pip install --force-reinstall --no-deps skmrr), or give "
            "folder=… to load files of your own."
        )
    return data


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def save(detector: BaseDetector, folder: str | PathLike, name: str = "digits") -> tuple[str, str]:
    """Write what `build` returns to two files in a folder.

    Returns
    -------
    tuple of str
        SHA-256 of the detector's file, and of the victim's.
    """
    challenge, paths = find(name), paths_of(name, folder)
    victim = detector.classifier
    assert isinstance(victim, torch.nn.Module)
    X, y = challenge.rows("test")
    attacked = torch.as_tensor(predict(detector.defended_classifier().victim, X) == y)
    reach = [_within_reach(detector, X, y, attacked, eps) for eps in challenge.eps]
    tensors = {"attacked": attacked, "within_reach": torch.stack(reach)}
    if challenge.publishes_victim:
        state = victim.state_dict().items()
        tensors |= {VICTIM + key: value.contiguous() for key, value in state}
    Path(folder).mkdir(parents=True, exist_ok=True)
    persistence.save(detector, paths[0])
    paths[1].write_bytes(safetensors.save(tensors))
    return _sha256(paths[0].read_bytes()), _sha256(paths[1].read_bytes())


def _within_reach(
    detector: BaseDetector, X: np.ndarray, y: np.ndarray, attacked: Tensor, eps: float
) -> Tensor:
    """Rows among those attacked that no bound rules an attack out on."""
    if not isinstance(detector, CertifiedDefender):
        return attacked
    x, labels = torch.as_tensor(X), torch.as_tensor(y)
    # what `score` lets pass is a little more than ε
    classes = classes_within_reach(
        detector, x, labels, eps + TOLERANCE, detector.security_parameter
    )
    return classes.any(1) & attacked
