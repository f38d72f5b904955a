"""Black-box transfer: adversarials of each network shown to each other one and to each detector."""

import joblib
import numpy as np
import pandas as pd
import torch
from torch import nn

from skmrr.bench.architectures import build_digits
from skmrr.bench.problems import PROBLEMS, Problem, with_attacks
from skmrr.bench.report import Report, markdown
from skmrr.bench.run import Run
from skmrr.bench.sizes import Sizes
from skmrr.bench.systems import ENSEMBLE, OURS, Fitted
from skmrr.bench.victims import load_victim, predict, read_resnet, train_digits
from skmrr.ensemble import MRREnsemble
from skmrr.evaluation import over_seeds
from skmrr.nn.replica import LatentMap

VICTIM = "victim"
TRANSFER_KINDS = ("FGSM", "BIM", "CW")
SP = 0.05


def transfer(run: Run) -> Report:
    """Measure which adversarials of one network fool another, and which detectors notice."""
    name = run.dataset
    matrix: list[dict] = []
    detection: list[dict] = []
    for problem in run.problems(kinds=()):
        fitted = run.fit(problem, run.detectors)
        ensemble = fitted[ENSEMBLE].detector if ENSEMBLE in fitted else None
        networks = networks_of(problem, ensemble, run.memory)
        X, y = right_everywhere(problem, networks)
        for source, network in networks.items():
            run.tell(problem.seed, f"adversarials of the {source}")
            images = made_on(problem, network, X, y, run.memory, run.sizes)
            for attack, successes in images.attacks.items():
                if len(successes.X):
                    made = {"seed": problem.seed, "attack": attack, "source": source}
                    made["n_rows"] = len(successes.X)
                    labels = y[successes.rows]
                    matrix += fooled_by(successes.X, labels, networks, made)
                    detection += noticed_by(successes.X, labels, problem.victim, fitted, made)
    frames = {"matrix": pd.DataFrame(matrix), "detectors": pd.DataFrame(detection)}
    return Report(
        f"transfer-{name}", f"Transfer between networks, {name}", transfer_text(frames), frames
    )


def fooled_by(x, labels, networks: dict[str, nn.Module], made: dict) -> list[dict]:
    """Share of adversarials that fool each network."""
    return [
        {**made, "target": target, "fooled": float((predict(other, x) != labels).mean())}
        for target, other in networks.items()
    ]


def noticed_by(x, labels, victim: nn.Module, fitted: dict[str, Fitted], made: dict) -> list[dict]:
    """Share of adversarials that fool the victim and pass each detector, and that it flags."""
    fooling = predict(victim, x) != labels
    records = []
    for detector, system in fitted.items():
        flagged = system.detector.score_samples(x) < np.log(SP)
        records.append(
            {
                **made,
                "detector": detector,
                "flagged": float(flagged[fooling].mean()) if fooling.any() else np.nan,
                "accepted": float((fooling & ~flagged).mean()),
            }
        )
    return records


def networks_of(
    problem: Problem, ensemble: MRREnsemble | None, memory: joblib.Memory
) -> dict[str, nn.Module]:
    """Victim, a re-seeded or deeper one, and the network of the latent defender."""
    networks = {VICTIM: problem.victim}
    if problem.name == "imagenette":
        raise ValueError("There is one network for imagenette alone; take another --dataset.")
    if problem.name == "cifar10":
        networks["ResNet-56"] = read_resnet(56)
    elif problem.name == "digits":  # the next seed's has learned some of these test images
        weights = memory.cache(train_digits)(problem.seed + 1, problem.X_fit, problem.y_fit)
        networks["re-seeded victim"] = load_victim(build_digits, weights)
    else:
        other = PROBLEMS[problem.name](problem.seed + 1, memory, kinds=())
        networks["re-seeded victim"] = other.victim
    if ensemble is not None:
        latent = ensemble.named_defenders_["latent_0"]
        networks["latent defender"] = Logits(latent.statistic_.latent_map).eval()
    return networks


class Logits(nn.Module):
    """A latent map as a classifier."""

    def __init__(self, latent_map: LatentMap):
        super().__init__()
        self.latent_map = latent_map

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Rows → logits."""
        return self.latent_map.features_and_logits(x)[1]


def right_everywhere(
    problem: Problem, networks: dict[str, nn.Module]
) -> tuple[np.ndarray, np.ndarray]:
    """Test images, with their classes, that no network gets wrong without an attack."""
    X, y = problem.X_test, problem.y_test
    right = np.all([predict(network, X) == y for network in networks.values()], axis=0)
    return X[right], y[right]


def made_on(problem: Problem, network: nn.Module, X, y, memory, sizes: Sizes) -> Problem:
    """Attack a network with some of the problem's test images."""
    images = problem.X_fit, problem.y_fit, problem.X_calibration, X, y
    return with_attacks(
        problem.name,
        problem.seed,
        memory,
        network,
        images,
        n_attacked=sizes.n_attacked,
        kinds=TRANSFER_KINDS,
        from_all=(),
    )


def transfer_text(frames: dict[str, pd.DataFrame]) -> str:
    """Markdown of the matrix, and of what detectors make of it."""
    matrix = frames["matrix"].assign(kind=frames["matrix"]["attack"].str.split().str[0])
    fooled = over_seeds(matrix, ["kind", "source", "target"], ["fooled"])["fooled"]["mean"]
    detectors = frames["detectors"]
    shown = over_seeds(detectors, ["detector", "source"], ["flagged", "accepted"])
    accepted = shown["accepted"]["mean"].unstack("source", sort=False)
    caught = shown["flagged"]["mean"].unstack("source", sort=False)
    ours = [name for name in accepted.index if name in OURS]
    order = [*ours, *(name for name in accepted.index if name not in OURS)]
    return "\n\n".join(
        [
            "Attacks begin from images that all networks get right. Share of each network's "
            "adversarials (its successes; mean over strengths and seeds) that fool each other "
            "network:",
            markdown(fooled.unstack("target", sort=False)),
            f"Share of them that fool the victim and are *not* flagged at SP {SP:.0%}, by network "
            "that they were made on:",
            markdown(accepted.loc[order]),
            "Of those that fool the victim, share flagged:",
            markdown(caught.loc[order]),
        ]
    )
