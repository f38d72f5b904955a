"""The challenge: one fixed defended classifier of digits, published to be broken.

The file beside this one holds a victim and a certified detector. `load` rebuilds them without any
training, `score` judges attempts by the rule below, and `build` is the recipe that made the file.

Format 2 of the file, safetensors: ``victim/…`` and ``network/…`` are the weights of `build_digits`
and of `build_small_certified` by the names of their layers; ``calibration/…`` are the parameters of
`skmrr.ConformalSurvival`; ``within_reach`` says of each test row whether a bound allows a success.
The metadata hold ``format``, ``challenge``, ``eps``, ``security_parameter`` and
``certified_radius``.
"""

import hashlib
from collections.abc import Mapping
from os import PathLike
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from safetensors import torch as safetensors
from torch import Tensor

from skmrr.attacks.result import verified
from skmrr.bench.architectures import build_digits, build_small_certified
from skmrr.bench.submissions import ChallengeScore, positions, refusals, submitted
from skmrr.bench.victims import load_victim, predict, train_digits
from skmrr.calibration import ConformalSurvival
from skmrr.datasets import load_digits_images
from skmrr.defenders import CertifiedDefender
from skmrr.evaluation.bounds import classes_within_reach
from skmrr.evaluation.metrics import exact_interval
from skmrr.nn.defended import DefendedClassifier
from skmrr.nn.detector_module import DetectorModule, Evidence
from skmrr.nn.fusion import Alone
from skmrr.nn.intervals import CertifiedStatistic, IntervalMap
from skmrr.nn.members import Members
from skmrr.nn.tapped import Tapped

VERSION = 1  # of the challenge: its rule, victim and detector
FORMAT = "2"  # of the file
EPS = 0.1
SECURITY_PARAMETER = 0.05
TOLERANCE = 1e-6  # of distances, for the rounding of single precision

WEIGHTS = Path(__file__).with_name("challenge.safetensors")
SHA256 = "1a3c0681ec82a49fb7ca8aed1cd5e33ea4b34caba82063c1b63ffa59a30dc8da"

SEED = 1
N_TEST, N_CALIBRATION = 500, 300
CERTIFIED_RADIUS = 0.075
WITHIN_REACH = "within_reach"

Images = tuple[np.ndarray, np.ndarray]


def training_rows() -> Images:
    """Images, shape (997, 1, 8, 8), and classes that victim and detector were trained on."""
    return _split()[2]


def calibration_rows() -> Images:
    """Images, shape (300, 1, 8, 8), and classes that set the detector's threshold."""
    return _split()[1]


def test_rows() -> Images:
    """Images to attack, shape (500, 1, 8, 8), float32 in [0, 1], and their classes.

    Those that the victim gets wrong by itself are among them, but do not count.

    Examples
    --------
    >>> from skmrr.bench import challenge
    >>> x, labels = challenge.test_rows()
    >>> x.shape, labels.shape
    ((500, 1, 8, 8), (500,))
    """
    return _split()[0]


test_rows.__test__ = False  # type: ignore[attr-defined]  # whatever pytest makes of the name


def _split() -> list[Images]:
    """Test, calibration and training rows."""
    X, y = load_digits_images()
    # RandomState, whose stream NumPy has frozen: the rows stay what they are.
    order = np.random.RandomState(SEED).permutation(len(X))
    parts = np.split(order, [N_TEST, N_TEST + N_CALIBRATION])
    return [(X[part], y[part]) for part in parts]


def build() -> CertifiedDefender:
    """Train victim and detector from scratch, as those in the file were.

    The victim learns the training rows as they are (70 epochs of Adam), and so does a small network
    by interval bounds over balls of up to 0.15 around them. Its margin, bounded over a ball of
    0.075, is the detector's statistic, whose threshold the calibration rows set. The radii were
    chosen by `skmrr.evaluation.certified_success_rate` on training rows that were held out.

    The seed fixes everything but the rounding of sums, which differs between machines and between
    versions of torch: weights come out a little different, and so may a few decisions. The file is
    what counts.

    Returns
    -------
    CertifiedDefender
        With its victim, ready for `save`.
    """
    X, y = training_rows()
    with torch.random.fork_rng(devices=[]):
        victim = load_victim(build_digits, train_digits(SEED, X, y))
        network = build_small_certified()
    detector = CertifiedDefender(
        network,
        classifier=victim,
        exploration_radius=0.15,
        certified_radius=CERTIFIED_RADIUS,
        clip_values=(0, 1),
        max_epochs=60,
        learning_rate=2e-3,
        training_batch_size=32,
        security_parameter=SECURITY_PARAMETER,
        calibration_fraction=0,
        random_state=SEED,
    )
    return detector.fit(X, y).calibrate(calibration_rows()[0])


def save(detector: CertifiedDefender, path: str | PathLike) -> str:
    """Write what `build` returns to a file, with the test rows on which a bound allows a success.

    Returns
    -------
    str
        SHA-256 of the file.
    """
    assert isinstance(detector.classifier, torch.nn.Module)
    parts = {
        "victim": detector.classifier.state_dict(),
        "network": detector.statistic_.latent_map.network_state(),
        "calibration": detector.module_.survival.state_dict(),
    }
    tensors = {
        f"{part}/{name}": value.contiguous()
        for part, state in parts.items()
        for name, value in state.items()
    }
    tensors[WITHIN_REACH] = _within_reach(detector)
    rule = {
        "format": FORMAT,
        "challenge": VERSION,
        "eps": EPS,
        "security_parameter": SECURITY_PARAMETER,
        "certified_radius": CERTIFIED_RADIUS,
    }
    data = safetensors.save(tensors, {name: str(value) for name, value in rule.items()})
    Path(path).write_bytes(data)
    return hashlib.sha256(data).hexdigest()


def _within_reach(detector: CertifiedDefender) -> Tensor:
    """Test rows that the victim gets right and no bound rules an attack out on."""
    X, y = test_rows()
    x, labels = torch.as_tensor(X), torch.as_tensor(y)
    # what `score` lets pass is a little more than ε
    classes = classes_within_reach(detector, x, labels, EPS + TOLERANCE, SECURITY_PARAMETER)
    return classes.any(1) & torch.as_tensor(predict(detector.defended_classifier().victim, X) == y)


def load(path: str | PathLike = WEIGHTS, *, sha256: str | None = SHA256) -> DefendedClassifier:
    """Read the defended classifier to break: a torch module, rows → 10 logits and "flagged".

    Parameters
    ----------
    path : path-like, optional
        Another file that `save` wrote.
    sha256 : str, optional
        Checksum that the file must have, by default the published one; None to check nothing.

    Returns
    -------
    skmrr.nn.DefendedClassifier
        In evaluation mode. Gradients reach its input, its weights are fixed.

    Raises
    ------
    ValueError
        If the file is not the published one.

    Examples
    --------
    >>> import torch
    >>> from skmrr.bench import challenge
    >>> x, labels = challenge.test_rows()
    >>> challenge.load()(torch.as_tensor(x[:3])).shape
    torch.Size([3, 11])
    """
    tensors = _read(path, sha256)

    def part(name: str) -> dict[str, Tensor]:
        return {k.removeprefix(name): v for k, v in tensors.items() if k.startswith(name)}

    with torch.random.fork_rng(devices=[]):  # of the weights drawn here, none is kept
        network, victim = build_small_certified(), build_digits()
    network.load_state_dict(part("network/"))
    victim.load_state_dict(part("victim/"))
    interval_map = IntervalMap(network, keep_weights=True)
    statistic = CertifiedStatistic(interval_map, CERTIFIED_RADIUS, (0, 1))
    evidence = Evidence(Tapped(victim), Members([statistic]), torch.arange(10))
    survival = ConformalSurvival(**part("calibration/"))
    detector = DetectorModule(evidence, survival, Alone()).requires_grad_(False)
    return DefendedClassifier(detector, SECURITY_PARAMETER).eval()


def within_reach(path: str | PathLike = WEIGHTS, *, sha256: str | None = SHA256) -> np.ndarray:
    """Test rows, bool of shape (500,), outside which no attack whatever can succeed.

    `skmrr.evaluation.certified_success_rate` explains the proof. It was run when the file was
    made, and the parameters are those of `load`.
    """
    return _read(path, sha256)[WITHIN_REACH].numpy()


def _read(path: str | PathLike, sha256: str | None) -> dict[str, Tensor]:
    data = Path(path).read_bytes()
    found = hashlib.sha256(data).hexdigest()
    if sha256 not in (None, found):
        raise ValueError(
            f"{path} is not the published challenge: its SHA-256 is {found}, not {sha256}. "
            "Install skmrr afresh (pip install --force-reinstall --no-deps skmrr), or give "
            "sha256=None for a file of your own."
        )
    with safe_open(path, "pt") as file:
        metadata = file.metadata() or {}
    if metadata.get("format") != FORMAT:
        raise ValueError(
            f"{path} is no challenge in format {FORMAT}, but in {metadata.get('format')}; use the "
            "version of skmrr that wrote it, or `skmrr challenge build`."
        )
    return safetensors.load(data)


def score(submission: str | PathLike | Mapping) -> ChallengeScore:
    """Judge a submission.

    Parameters
    ----------
    submission : path-like or mapping
        An .npz file or a mapping with ``x``, floats of shape (500, 1, 8, 8) in the order of
        `test_rows`, NaN in rows that are not claimed; or with ``rows``, positions of k of
        them, and ``x`` of shape (k, 1, 8, 8).

    Returns
    -------
    ChallengeScore

    Raises
    ------
    ValueError
        If the submission cannot be read, or its arrays are of other shapes or types. Single rows
        that break the rule raise nothing: they are refused, and counted.

    Examples
    --------
    >>> from skmrr.bench import challenge
    >>> x, labels = challenge.test_rows()
    >>> challenge.score({"x": x}).success_rate
    0.0
    """
    network, reachable = load(), within_reach()
    X, y = test_rows()
    right = torch.as_tensor(predict(network.victim, X) == y)
    clean, labels = torch.as_tensor(X), torch.as_tensor(y)
    x = torch.as_tensor(submitted(submission, X))
    claimed = ~x.isnan().flatten(1).all(1)
    refused = refusals(x, clean, right, EPS, TOLERANCE)
    for rows in refused.values():
        x[list(rows)] = torch.nan
    success = verified(network, clean, x, labels, norm=torch.inf).success
    n_attacked, n_broken = int(right.sum()), int(success.sum())
    low, high = exact_interval(n_broken, n_attacked)
    return ChallengeScore(
        n_attacked,
        int(claimed.sum()),
        positions(success),
        float(low),
        float(high),
        refused,
        int(reachable.sum()),
        positions(success & ~torch.as_tensor(reachable)),
    )


def describe() -> str:
    """Say what the rule is, which file it is about, and what no attack can exceed."""
    nothing = score({"rows": np.arange(0), "x": np.zeros((0, 1, 8, 8))})
    most = f"{nothing.n_within_reach} of them ({nothing.bound:.1%})"
    return "\n".join(
        [
            f"Challenge {VERSION}: digits of 8×8 pixels in [0, 1], {N_TEST} test images.",
            f"Change each pixel by {EPS:g} at most, so that the victim errs and is not flagged",
            f"by a detector with a false-alarm rate of {SECURITY_PARAMETER:.0%}.",
            f"{nothing.n_attacked} images count, those that the victim gets right.",
            f"No attack can break more than {most}.",
            f"SHA-256 of {WEIGHTS.name}:",
            SHA256,
        ]
    )


def write_template(path: str | PathLike) -> None:
    """Write a submission in which nothing is claimed yet, to be filled in.

    Raises
    ------
    FileExistsError
        If there is such a file: it may hold somebody's work.
    """
    _write_new(path, x=np.full_like(test_rows()[0], np.nan))


def export(folder: str | PathLike) -> None:
    """Write the test rows, an empty submission and a how-to into a folder.

    Raises
    ------
    FileExistsError
        If there is one of the files.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    write_template(folder / "submission.npz")
    x, labels = test_rows()
    _write_new(folder / "test.npz", x=x, labels=labels)
    with (folder / "HOWTO.md").open("x", encoding="utf-8") as file:
        file.write(HOW_TO)


def _write_new(path: str | PathLike, **arrays: np.ndarray) -> None:
    with Path(path).open("xb") as file:
        np.savez_compressed(file, **arrays)  # type: ignore[arg-type]  # a bool among its keywords


HOW_TO = f"""# Break this classifier

- `test.npz`: `x`, {N_TEST} images of shape (1, 8, 8) with ink in [0, 1], and `labels`.
- `submission.npz`: `x` of the same shape, all NaN. Put an image into each row that you break.

An image counts if no pixel of it is farther than {EPS:g} from the test image's, all lie in
[0, 1], the victim takes it for another class, and the detector does not flag it (at a false-alarm
rate of {SECURITY_PARAMETER:.0%}). Rows that the victim gets wrong without any attack do not count.

You may know everything:

    from skmrr.bench import challenge
    network = challenge.load()  # torch; logits of 10 classes and, last, "flagged"

Score it by `skmrr challenge score submission.npz`.
"""
