"""Table 2: how much farther Carlini's attack has to go when it knows the detector."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import joblib
import numpy as np
import pandas as pd
import torch
from sklearn.frozen import FrozenEstimator
from torch import nn

from skmrr.attacks import AttackResult, carlini_l2, worst_case
from skmrr.base import BaseDetector
from skmrr.baselines import APEGANDetector, EfficientDefensesDetector, MagNetDetector
from skmrr.bench.problems import Problem
from skmrr.bench.report import Report, markdown
from skmrr.bench.run import Run
from skmrr.bench.sizes import PAPER_PRIOR_ART, PAPER_TABLE2, Sizes
from skmrr.bench.systems import TABLE2, detectors_on
from skmrr.bench.victims import predict
from skmrr.defenders import LatentDefender, default_defenders
from skmrr.ensemble import MRREnsemble
from skmrr.nn.fingerprint import fingerprint

TABLE2_SP = (0.01, 0.05)
BUDGETS = (1.1, 1.5, 2.0)


def table2(run: Run) -> Report:
    """Measure the L2 distortion that defeats victim and detector together.

    Among the run's detectors "N" stands for numbers of narrow latent defenders.
    """
    name = run.dataset
    wanted = run.detectors or ["N", *(system for system in TABLE2 if system in detectors_on(name))]
    frame = pd.concat(
        [distortions(run, problem, wanted) for problem in run.problems(kinds=())],
        ignore_index=True,
    )
    table = summarised(frame)
    return Report(
        f"table2-{name}",
        f"Table 2: Carlini-L2 that knows the detector, {name}",
        table2_text(name, table, run.sizes, len(run.seeds)),
        {"images": frame, "table2": table.reset_index()},
    )


def distortions(run: Run, problem: Problem, wanted: list[str]) -> pd.DataFrame:
    """L2 distortion of each image with the detector and without, by system and SP."""
    sizes, seed = run.sizes, problem.seed
    systems: dict[str, BaseDetector] = {}
    if "N" in wanted:
        run.tell(seed, f"{max(sizes.numbers)} narrow latent defenders")
        systems |= numbered(problem, run.memory, sizes)
    fitted = run.fit(problem, [system for system in wanted if system != "N"])
    systems |= {system: one.detector for system, one in fitted.items()}
    attack = partial(
        run.memory.cache(carlini, ignore=["network", "problem"]),
        problem=problem,
        n_images=sizes.n_carlini,
        search_steps=sizes.carlini_search,
        max_iter=sizes.carlini_steps,
    )
    run.tell(seed, "Carlini-L2 on the victim alone")
    alone = attack(_key(problem.victim, 0, problem), problem.victim)
    images = []
    for system in attacked_networks(problem, systems):
        sp = system.security_parameter
        run.tell(seed, f"Carlini-L2 on {system.system}, SP {sp:g}")
        both = attack(_key(system.network, sp, problem), system.network)
        # Where the victim answers, what passes both fools it too.
        nearest = worst_case([alone, both]) if system.has_victim else alone
        columns = {
            "system": system.system,
            "security_parameter": sp,
            "image": np.arange(len(both.distortion)),
            "l2": both.distortion.numpy(),
            "l2_alone": nearest.distortion.numpy(),
            "right": right_without_attack(system, problem, sizes),
            "false_alarms": system.false_alarms,
            "seed": seed,
        }
        images.append(pd.DataFrame(columns))
    return pd.concat(images, ignore_index=True)


def numbered(problem: Problem, memory: joblib.Memory, sizes: Sizes) -> dict[str, MRREnsemble]:
    """Ensembles of the first N of many latent defenders of a quarter of the victim's width."""
    template = LatentDefender(
        exploration_radius="auto", learning_rate=3e-3, max_epochs=sizes.member_epochs
    )
    members = default_defenders(
        problem.victim,
        latent=template,
        n_latent=max(sizes.numbers),
        width=0.25,
        margin=False,
    )
    ensemble = MRREnsemble(
        problem.victim,
        defenders=members,
        clip_values=(0, 1),
        calibration_fraction=0,
        random_state=problem.seed,
    )
    fitted = memory.cache(fit_members)(ensemble, problem.X_fit, problem.y_fit)
    labels = predict(problem.victim, problem.X_calibration)
    return {
        f"{n} latent": MRREnsemble(
            problem.victim,
            defenders=[(key, FrozenEstimator(member), 1) for key, member in fitted[:n]],
            clip_values=(0, 1),
            random_state=problem.seed,
        ).fit(problem.X_calibration, labels)
        for n in sizes.numbers
    }


def fit_members(ensemble: MRREnsemble, X, y) -> list[tuple[str, LatentDefender]]:
    """Fit an ensemble for its members."""
    return list(ensemble.fit(X, y).named_defenders_.items())


@dataclass(frozen=True)
class Target:
    """A network to attack."""

    system: str
    security_parameter: float
    """SP of its detector; 0 where it has none."""
    network: nn.Module
    false_alarms: float
    """Share of clean test images flagged."""
    has_victim: bool
    """Whether the victim itself answers, so that what passes fools it too."""


def attacked_networks(problem: Problem, systems: dict) -> Iterator[Target]:
    """Each detector beside the victim, and the three of prior art also as published.

    That is MagNet with its reformer, and the hardened or purified classifier without a detector.
    """
    for name, detector in systems.items():
        scores = detector.score_samples(problem.X_test)
        for sp in TABLE2_SP:
            alarms = float(np.mean(scores < np.log(sp)))
            network = detector.defended_classifier(security_parameter=sp)
            yield Target(name, sp, network, alarms, has_victim=True)
            if isinstance(detector, MagNetDetector):
                network = detector.defended_classifier(security_parameter=sp, reform=True)
                yield Target(f"{name} with reformer", sp, network, alarms, has_victim=False)
        network = None
        if isinstance(detector, EfficientDefensesDetector):
            network = detector.hardened_classifier()
        if isinstance(detector, APEGANDetector):
            network = detector.purified_classifier()
        if network is not None:
            yield Target(f"{name} as published", 0.0, network, 0.0, has_victim=False)


def right_without_attack(system: Target, problem: Problem, sizes: Sizes) -> np.ndarray:
    """Of the images to attack, which the system's classifier takes for what they are."""
    rows = problem.rows[: sizes.n_carlini]
    with torch.no_grad():
        logits = system.network(torch.as_tensor(problem.X_test[rows]))
    n_classes = int(problem.y_fit.max()) + 1  # a defended classifier has one output more
    return logits[:, :n_classes].argmax(1).numpy() == problem.y_test[rows]


def carlini(
    key: str, network: nn.Module, problem: Problem, n_images: int, search_steps: int, max_iter: int
) -> AttackResult:
    """Least distortions of the problem's images; `key` stands for network and problem."""
    rows = problem.rows[:n_images]
    return carlini_l2(
        network,
        torch.as_tensor(problem.X_test[rows]),
        torch.as_tensor(problem.y_test[rows]),
        guides=torch.as_tensor(problem.X_calibration[:5000]),
        search_steps=search_steps,
        max_iter=max_iter,
    )


def summarised(images: pd.DataFrame) -> pd.DataFrame:
    """Per system and SP: median ratio, shares of images that hold within budgets, false alarms."""
    # A hardened classifier may get an image wrong without any attack, which then counts nowhere.
    images = images.assign(ratio=(images["l2"] / images["l2_alone"]).where(images["right"]))
    by = images.groupby(["system", "security_parameter"], sort=False)
    table = by.agg(
        n=("ratio", "count"),
        attack_success=("ratio", lambda ratio: np.isfinite(ratio.dropna()).mean()),
        ratio=("ratio", "median"),
        false_alarms=("false_alarms", "mean"),
    )
    for budget in BUDGETS:
        table[f"hold_{budget:g}"] = by["ratio"].agg(lambda r, b=budget: (r.dropna() > b).mean())
    return table


def said_by_the_paper(system: str, sp: float) -> str:
    """Cell of the paper's table 2 for MNIST."""
    n = system.split()[0]
    if n.isdigit() and (sp, int(n)) in PAPER_TABLE2:
        defended, ratio, alarms = PAPER_TABLE2[sp, int(n)]
        return f"{ratio:.2f}, {defended:.0%} defended, {alarms:.1%} false alarms"
    if system in PAPER_PRIOR_ART:
        defended, ratio = PAPER_PRIOR_ART[system]
        return f"{ratio:.2f}, {defended:.0%} defended (grey box)"
    return "–"


def table2_text(name: str, table: pd.DataFrame, sizes: Sizes, n_seeds: int) -> str:
    """Markdown of table 2, beside the paper's where that is of the same images."""
    if name == "mnist":
        table = table.assign(paper=[said_by_the_paper(*row) for row in table.index])
    intro = (
        f"Carlini-L2 with the detector in its loss ({sizes.carlini_search} weights × "
        f"{sizes.carlini_steps} steps, also from clean images of other classes), "
        f"{sizes.n_carlini} images a seed, {n_seeds} seed{'s' * (n_seeds > 1)}. "
        "*ratio*: median over images of the least L2 distortion found, over that without the "
        "detector; *hold b*: share of images "
        "not defeated within b times the distortion that the victim alone takes; *n*: images that "
        "the system gets right without an attack. SP 0: no detector, the classifier alone is "
        "hardened. The paper counts an image as defended where "
        "its attack failed; ours hardly ever fails, given enough distortion."
    )
    return f"{intro}\n\n{markdown(table)}"


def _key(network: nn.Module, sp: float, problem: Problem) -> str:
    """Hash of a network's values, which unlike a tensor's is the same in every process."""
    return joblib.hash((fingerprint(network), sp, problem.seed, problem.name))
