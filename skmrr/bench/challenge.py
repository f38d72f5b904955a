"""The challenges: fixed defended classifiers, published to be broken.

`load` reads one without any training, `score` judges attempts by its rule, and `build` is the
recipe that made the files. `skmrr.bench.challenge_entries` lists the challenges, and
`skmrr.bench.challenge_files` says what the files hold.
"""

from collections.abc import Mapping
from os import PathLike
from pathlib import Path

import numpy as np
import torch

from skmrr.base import BaseDetector
from skmrr.bench.challenge_entries import CHALLENGES, Challenge, Images, find
from skmrr.bench.challenge_files import load, paths_of, read_victim_file, save, within_reach
from skmrr.bench.submissions import ChallengeScore, judge, submitted

__all__ = [
    "CHALLENGES",
    "Challenge",
    "ChallengeScore",
    "build",
    "calibration_rows",
    "describe",
    "export",
    "load",
    "save",
    "score",
    "test_rows",
    "training_rows",
    "within_reach",
]


def training_rows(name: str = "digits") -> Images:
    """Images and classes that victim and detector were trained on."""
    return find(name).rows("training")


def calibration_rows(name: str = "digits") -> Images:
    """Images and classes that set the detector's threshold."""
    return find(name).rows("calibration")


def test_rows(name: str = "digits") -> Images:  # noqa: PT028  # no test
    """Images to attack, float32 in [0, 1], and their classes.

    Those that the victim gets wrong by itself are among them, but do not count.

    Parameters
    ----------
    name : {"digits", "mnist", "cifar10"}, default="digits"
        Which challenge. MNIST and CIFAR-10 are looked for as by `skmrr.bench.images.load_mnist`
        and `load_cifar10`.

    Returns
    -------
    images : ndarray of shape (n_samples, channels, height, width), float32
    labels : ndarray of shape (n_samples,), int64

    Raises
    ------
    ValueError
        If there is no such challenge.
    FileNotFoundError
        If its images are in no folder; the message says what to do.

    Examples
    --------
    >>> from skmrr.bench import challenge
    >>> x, labels = challenge.test_rows()
    >>> x.shape, labels.shape
    ((500, 1, 8, 8), (500,))
    """
    return find(name).rows("test")


test_rows.__test__ = False  # type: ignore[attr-defined]  # whatever pytest makes of the name


def build(
    name: str = "digits", *, checkpoint: str | PathLike | None = None, verbose: bool = False
) -> BaseDetector:
    """Train victim and detector from scratch, as those published were.

    The victim learns the training rows, and so does a small network by interval bounds over balls
    around them. Its margin, bounded over a smaller ball, is the detector's statistic, whose
    threshold the calibration rows set. Sizes and radii are in `skmrr.bench.challenge_entries`.
    CIFAR-10's victim is somebody's ResNet-20, and its detector a copy by `skmrr.bench.hardening`.

    The seed fixes everything but the rounding of sums, which differs between machines and between
    versions of torch: weights come out a little different, and so may a few decisions. The files
    are what counts.

    Parameters
    ----------
    name : {"digits", "mnist", "cifar10"}, default="digits"
        Which challenge: a minute, half an hour, two hours.
    checkpoint : path-like, optional
        File that the training for CIFAR-10 goes on from after an interruption.
    verbose : bool, default=False
        Whether to show the progress of the detector's training.

    Returns
    -------
    BaseDetector
        Fitted and calibrated, with its victim, ready for `save`.
    """
    challenge = find(name)
    calibration, training = calibration_rows(name)[0], training_rows(name)
    detector = challenge.recipe(*training, checkpoint, verbose)
    detector.set_params(security_parameter=challenge.security_parameter, verbose=False)
    return detector.calibrate(calibration)


def score(submission: str | PathLike | Mapping, name: str = "digits") -> ChallengeScore:
    """Judge a submission.

    Parameters
    ----------
    submission : path-like or mapping
        An .npz file or a mapping with ``x``, floats of the shape and in the order of `test_rows`,
        NaN in rows that are not claimed; or with ``rows``, positions of k of them, and ``x`` with
        as many rows.
    name : {"digits", "mnist", "cifar10"}, default="digits"
        Which challenge.

    Returns
    -------
    ChallengeScore

    Raises
    ------
    ValueError
        If there is no such challenge, if the submission cannot be read, or if its arrays are of
        other shapes or types. Single rows that break the rule raise nothing: they are refused, and
        counted.
    FileNotFoundError
        If there is no such submission, or the test images are in no folder.

    Examples
    --------
    >>> from skmrr.bench import challenge
    >>> x, labels = challenge.test_rows()
    >>> challenge.score({"x": x}).within[0.1].success_rate
    0.0
    """
    challenge, network, held = find(name), load(name), read_victim_file(name)
    X, y = test_rows(name)
    reachable = dict(zip(challenge.eps, held["within_reach"], strict=True))
    x, clean, labels = map(torch.as_tensor, (submitted(submission, X), X, y))
    return judge(network, x, clean, labels, held["attacked"], reachable)


def describe(name: str = "digits") -> str:
    """Say what the rule is, which files it is about, and what no attack can exceed."""
    challenge, held = find(name), read_victim_file(name)
    n_attacked = int(held["attacked"].sum())
    sizes = " or ".join(f"{eps:.4g}" for eps in challenge.eps)
    bounds = [
        f"No attack within {eps:.4g} can break more than {n} of them ({n / n_attacked:.1%})."
        for eps, n in zip(challenge.eps, held["within_reach"].sum(1).tolist(), strict=True)
        if n < n_attacked
    ]
    sums = [
        f"{sha256}  {path.name}"
        for path, sha256 in zip(paths_of(name), challenge.sha256, strict=True)
    ]
    return "\n".join(
        [
            f"Challenge {name}: {challenge.title} in [0, 1], {len(held['attacked'])} test images.",
            f"Change each pixel by {sizes} at most, so that the victim errs and is not flagged",
            f"by a detector with a false-alarm rate of {challenge.security_parameter:.0%}.",
            f"{n_attacked} images count, those that the victim gets right.",
            *bounds,
            "SHA-256:",
            *sums,
        ]
    )


def export(folder: str | PathLike, name: str = "digits") -> None:
    """Write the test rows, an empty submission and a how-to into a folder.

    Raises
    ------
    FileExistsError
        If there is one of the files: it may hold somebody's work.
    """
    challenge, folder = find(name), Path(folder)
    x, labels = test_rows(name)
    folder.mkdir(parents=True, exist_ok=True)
    _write_new(folder / "submission.npz", x=np.full_like(x, np.nan))
    _write_new(folder / "test.npz", x=x, labels=labels)
    with (folder / "HOWTO.md").open("x", encoding="utf-8") as file:
        file.write(_how_to(name, challenge, x))


def _write_new(path: Path, **arrays: np.ndarray) -> None:
    with path.open("xb") as file:
        np.savez_compressed(file, **arrays)  # type: ignore[arg-type]  # a bool among its keywords


def _how_to(name: str, challenge: Challenge, x: np.ndarray) -> str:
    sizes = " or ".join(f"{eps:.4g}" for eps in challenge.eps)
    return f"""# Break this classifier

- `test.npz`: `x`, {len(x)} images of shape {x.shape[1:]} in [0, 1], and `labels`.
- `submission.npz`: `x` of the same shape, all NaN. Put an image into each row that you break.

An image counts if no pixel of it is farther than {sizes} from the test image's, all lie in
[0, 1], the victim takes it for another class, and the detector does not flag it, at a false-alarm
rate of {challenge.security_parameter:.0%}. Rows that the victim gets wrong do not count.

You may know everything:

    from skmrr.bench import challenge
    network = challenge.load("{name}")  # torch; logits of the classes and, last, "flagged"
    rows = challenge.within_reach("{name}")  # a mask; no attack breaks any other row

Score it by `skmrr challenge score submission.npz --name {name}`.
"""
