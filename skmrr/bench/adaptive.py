"""Table 2: how much farther Carlini's attack has to go when it knows the detector."""

from collections.abc import Callable

import joblib
import numpy as np
import pandas as pd
import torch
from sklearn.frozen import FrozenEstimator
from torch import nn

from skmrr.attacks import carlini_l2, worst_case
from skmrr.baselines import APEGANDetector, EfficientDefensesDetector, MagNetDetector
from skmrr.bench.problems import PROBLEMS, Problem
from skmrr.bench.report import Report, markdown
from skmrr.bench.sizes import PAPER_PRIOR_ART, PAPER_TABLE2, Sizes
from skmrr.bench.systems import ATTACKED_BY_ALL, CERTIFIED, fit_all
from skmrr.bench.victims import predict
from skmrr.ensemble import MRREnsemble
from skmrr.latent import LatentDefender
from skmrr.nn.defended import DefendedClassifier

TABLE2_SP = (0.01, 0.05)
BUDGETS = (1.1, 1.5, 2.0)


def table2(
    name: str,
    seeds: list[int],
    memory: joblib.Memory,
    sizes: Sizes,
    *,
    names: list[str] | None = None,
    progress: Callable[[str], None] = print,
) -> Report:
    """Measure the L2 distortion that defeats victim and detector together.

    Parameters
    ----------
    name : {"digits", "mnist", "cifar10", "imagenette"}
        Problem.
    seeds : list of int
        As in `table1`.
    memory : joblib.Memory
        Cache.
    sizes : Sizes
        How large the run is.
    names : list of str, optional
        Systems, "N" for numbers of narrow latent defenders; all by default.
    progress : callable
        Told what begins.
    """
    wanted = ["N", *ATTACKED_BY_ALL] if names is None else names
    images = []
    for seed in seeds:
        problem = PROBLEMS[name](seed, memory, kinds=())
        systems: dict[str, MRREnsemble | LatentDefender] = {}
        if "N" in wanted:
            progress(f"{name}, seed {seed}: {max(sizes.numbers)} narrow latent defenders")
            systems |= numbered(problem, memory, sizes)
        from_table1 = [system for system in wanted if system != "N"]
        if name not in ("digits", "mnist"):
            from_table1 = [system for system in from_table1 if system != CERTIFIED]
        fitted = fit_all(problem, memory, names=from_table1, quick=sizes.quick, progress=progress)
        systems |= {system: one.detector for system, one in fitted.items()}
        for label, sp, network, alarms in attacked_networks(problem, systems):
            progress(f"{name}, seed {seed}: Carlini-L2 on {label}, SP {sp:g}")
            frame = memory.cache(distortions, ignore=["network"])(
                joblib.hash(_arrays(network)), network, problem_rows(problem, sizes), sizes
            )
            columns = {"system": label, "security_parameter": sp, "false_alarms": alarms}
            images.append(frame.assign(seed=seed, **columns))
    frame = pd.concat(images, ignore_index=True)
    table = summarised(frame)
    return Report(
        f"table2-{name}",
        f"Table 2: Carlini-L2 that knows the detector, {name}",
        table2_text(table, sizes, len(seeds)),
        {"images": frame, "table2": table.reset_index()},
    )


def numbered(problem: Problem, memory: joblib.Memory, sizes: Sizes) -> dict[str, MRREnsemble]:
    """Ensembles of the first N of many latent defenders of a quarter of the victim's width."""
    template = LatentDefender(
        exploration_radius="auto", learning_rate=3e-3, max_epochs=sizes.member_epochs
    )
    members = memory.cache(fit_members)(
        MRREnsemble(
            problem.victim,
            n_defenders=max(sizes.numbers),
            width=0.25,
            input_defender=False,
            margin=False,
            estimator=template,
            clip_values=(0, 1),
            calibration_fraction=0,
            random_state=problem.seed,
        ),
        problem.X_fit,
        problem.y_fit,
    )
    labels = predict(problem.victim, problem.X_calibration)
    return {
        f"{n} latent": MRREnsemble(
            problem.victim,
            defenders=[(key, FrozenEstimator(member)) for key, member in members[:n]],
            margin=False,
            clip_values=(0, 1),
            random_state=problem.seed,
        ).fit(problem.X_calibration, labels)
        for n in sizes.numbers
    }


def fit_members(ensemble: MRREnsemble, X, y) -> list[tuple[str, LatentDefender]]:
    """Fit an ensemble for its members."""
    return list(ensemble.fit(X, y).named_defenders_.items())


def attacked_networks(problem: Problem, systems: dict):
    """Yield (label, SP, network to attack, share of clean images flagged).

    Each detector beside the victim, and the three of prior art also as published: MagNet with its
    reformer, the hardened or purified classifier without any detector (SP 0).
    """
    for name, detector in systems.items():
        scores = detector.score_samples(problem.X_test)
        for sp in TABLE2_SP:
            alarms = float(np.mean(scores < np.log(sp)))
            network = detector.defended_classifier(security_parameter=sp)
            yield name, sp, network, alarms
            if isinstance(detector, MagNetDetector):
                network = detector.defended_classifier(security_parameter=sp, reform=True)
                yield f"{name} with reformer", sp, network, alarms
        if isinstance(detector, EfficientDefensesDetector):
            yield f"{name} as published", 0.0, detector.hardened_classifier(), 0.0
        if isinstance(detector, APEGANDetector):
            yield f"{name} as published", 0.0, detector.purified_classifier(), 0.0


def problem_rows(problem: Problem, sizes: Sizes) -> tuple:
    """Victim, images to attack, their classes, and clean images to start from as well."""
    rows = problem.rows[: sizes.n_carlini]
    return problem.victim, problem.X_test[rows], problem.y_test[rows], problem.X_calibration[:5000]


def distortions(key: str, network: nn.Module, rows: tuple, sizes: Sizes) -> pd.DataFrame:
    """L2 distortion of each image with the detector and without; `key` stands for the network."""
    victim, *arrays = rows
    x, labels, guides = (torch.as_tensor(part) for part in arrays)
    params = {"search_steps": sizes.carlini_search, "max_iter": sizes.carlini_steps}
    alone = carlini_l2(victim, x, labels, guides=guides, **params)
    both = carlini_l2(network, x, labels, guides=guides, **params)
    nearest = both.distortion
    if isinstance(network, DefendedClassifier) and network.classifier is victim:
        # What passes victim and detector fools the victim too.
        nearest = worst_case([alone, both]).distortion
    else:
        nearest = alone.distortion
    return pd.DataFrame(
        {
            "image": np.arange(len(x)),
            "l2": both.distortion.numpy(),
            "l2_alone": torch.minimum(alone.distortion, nearest).numpy(),
        }
    )


def summarised(images: pd.DataFrame) -> pd.DataFrame:
    """Per system and SP: median ratio, shares of images that hold within budgets, false alarms."""
    images = images.assign(ratio=images["l2"] / images["l2_alone"])
    by = images.groupby(["system", "security_parameter"], sort=False)
    table = by.agg(
        n=("ratio", "size"),
        attack_success=("l2", lambda l2: np.isfinite(l2).mean()),
        ratio=("ratio", "median"),
        false_alarms=("false_alarms", "mean"),
    )
    for budget in BUDGETS:
        table[f"hold_{budget:g}"] = by["ratio"].agg(lambda r, b=budget: (r > b).mean())
    return table


def table2_text(table: pd.DataFrame, sizes: Sizes, n_seeds: int) -> str:
    """Markdown of table 2."""
    paper = []
    for name, sp in table.index:
        n = name.split()[0]
        cell = PAPER_TABLE2.get((sp, int(n))) if n.isdigit() else None
        known = next((k for k in PAPER_PRIOR_ART if name.startswith(k)), None)
        if cell:
            defended, ratio, alarms = cell
            paper.append(f"{ratio:.2f}, {defended:.0%} defended, {alarms:.1%} false alarms")
        elif known:
            defended, ratio = PAPER_PRIOR_ART[known]
            paper.append(f"{ratio:.2f}, {defended:.0%} defended")
        else:
            paper.append("–")
    intro = (
        f"Carlini-L2 with the detector in its loss ({sizes.carlini_search} weights × "
        f"{sizes.carlini_steps} steps, also from clean images of other classes), "
        f"{sizes.n_carlini} images a seed, {n_seeds} seeds. *ratio*: median over images of the "
        "least L2 distortion found, over that without the detector; *hold b*: share of images "
        "not defeated within b times the distortion that the victim alone takes. SP 0: no "
        "detector, the classifier alone is hardened. The paper counts an image as defended where "
        "its attack failed; ours hardly ever fails, given enough distortion."
    )
    return f"{intro}\n\n{markdown(table.assign(paper=paper))}"


def _arrays(network: nn.Module) -> dict[str, np.ndarray]:
    state = {name: np.asarray(tensor) for name, tensor in network.state_dict().items()}
    threshold = getattr(network, "security_parameter", 0.0)
    return {**state, "security_parameter": np.asarray(threshold)}
