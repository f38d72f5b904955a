"""The table of all detectors: accuracy, hold against attackers who know them, cost."""

import joblib
import pandas as pd

from skmrr.attacks import adaptive_suite
from skmrr.base import BaseDetector
from skmrr.bench.report import Report, markdown, spread
from skmrr.bench.run import Run
from skmrr.bench.sizes import EPS
from skmrr.bench.systems import CERTIFIED
from skmrr.bench.table1 import (
    ROUNDED,
    costs_of,
    detection_of,
    fitted_problems,
    harmless_of,
    harmless_text,
    in_channel,
    in_round_numbers,
    table1_report,
)
from skmrr.evaluation import certified_success_rate, evaluate_adaptive, impostor_rate
from skmrr.evaluation.channels import RAW
from skmrr.evaluation.metrics import exact_interval
from skmrr.evaluation.siege import WORST

ADAPTIVE_SP = 0.05
FLOOR = "floor, SP {:.0%}"


def peers(run: Run) -> Report:
    """Measure accuracy, hold against attackers who know the detector, and cost, in one table.

    It shares its cache with `table1`.
    """
    by_seed, costs, success, bounds, harmless, impostors = {}, [], [], [], [], []
    name, sizes = run.dataset, run.sizes
    eps = EPS[name][-1:] if sizes.quick else EPS[name]
    for problem, fitted in fitted_problems(run):
        seed = problem.seed
        by_seed[seed] = detection_of(run, problem, fitted)
        costs.append(costs_of(problem, fitted, sizes))
        harmless.append(harmless_of(run, problem, fitted))
        X, y = problem.X_test[problem.rows], problem.y_test[problem.rows]
        for detector, system in fitted.items():
            run.tell(seed, f"attacks on {detector}")
            frame = run.memory.cache(adaptive_success, ignore=["memory"])(
                *(system.detector, X, y, eps),
                n_attacked=sizes.n_adaptive,
                steps=sizes.adaptive_steps,
                restarts=sizes.adaptive_restarts,
                memory=run.memory,
            )
            success.append(frame.assign(detector=detector, seed=seed))
            run.tell(seed, f"impostors of {detector}")
            some = slice(sizes.n_changed)
            frame = run.memory.cache(impostor_rate)(
                system.detector, problem.X_test[some], problem.y_test[some]
            )
            impostors.append(frame.assign(detector=detector, seed=seed))
            if detector == CERTIFIED:
                frame = certified_success_rate(
                    system.detector,
                    problem.X_test,
                    problem.y_test,
                    eps=eps,
                    security_parameters=(ADAPTIVE_SP,),
                )
                bounds.append(frame.assign(detector=detector, seed=seed))
    first = table1_report(run, by_seed, costs, harmless)
    frames = {
        **first.frames,
        "adaptive": pd.concat(success, ignore_index=True),
        "impostors": pd.concat(impostors, ignore_index=True),
    }
    if bounds:
        frames["bounds"] = pd.concat(bounds, ignore_index=True)
    pooled = pooled_success(frames["adaptive"])
    table = frames["peers"] = peers_table(frames, pooled)
    text = (
        "AUC and share caught are means over all attacks on the victim alone; *least* is the "
        "worst attack at its worst strength. SR@5: share of images that attackers who know the "
        "detector turn into a wrong answer that is not flagged, at 5 % false alarms promised "
        f"({sizes.n_adaptive} images a seed, {sizes.adaptive_steps} steps for each target and "
        f"start, {sizes.adaptive_restarts} start{'s' * (sizes.adaptive_restarts > 1)} of each "
        "kind), all seeds together, with its 95 % interval. Bound: what no attack can exceed, on "
        "all test images. Scoring in multiples of the victim's own pass, which is included.\n\n"
        + markdown(with_intervals(table, pooled))
        + "\n\n"
        + impostors_text(frames["impostors"])
        + "\n\n"
        + harmless_text(frames["harmless"])
    )
    return Report(f"peers-{name}", f"All detectors, {name}", text, frames, first.pictures)


def adaptive_success(
    detector: BaseDetector,
    X,
    y,
    eps,
    *,
    n_attacked: int,
    steps: int,
    restarts: int,
    memory: joblib.Memory,
) -> pd.DataFrame:
    """Worst case over the adaptive suite at each ε, at SP 5 %, on the first rows of some.

    What each attack has found on some of the rows is kept, as a run at full strength takes days.
    """
    outcome = evaluate_adaptive(
        detector,
        X[:n_attacked],
        y[:n_attacked],
        eps=eps,
        guides=X[n_attacked : n_attacked + 2000],
        # Noise members only look strong to attacks that do not spare the quiet pixels.
        attacks=adaptive_suite(steps=steps, restarts=restarts, textured=True),
        security_parameters=(ADAPTIVE_SP,),
        memory=memory,
        verbose=True,
    )
    success = outcome.success
    return success[success["attack"] == WORST].reset_index(drop=True)


def peers_table(frames: dict[str, pd.DataFrame], pooled: pd.DataFrame) -> pd.DataFrame:
    """One row a detector; its success rates are those of `pooled_success`."""
    detection = in_channel(frames["detection"], RAW)
    per_attack = detection[detection["attack"] != WORST]
    means = per_attack.groupby("detector", sort=False)[["auc", "tpr_0.01", "tpr_0.05"]].mean()
    by_attack = per_attack.groupby(["detector", "attack"], sort=False)["auc"].mean()
    least = by_attack.groupby("detector", sort=False).min().rename("least auc")
    worst = detection[detection["attack"] == WORST].groupby("detector", sort=False)["auc"].mean()
    success = pooled["success_rate"].unstack("eps")
    success.columns = [success_column(eps) for eps in success.columns]
    floor = floors(frames["impostors"])[FLOOR.format(ADAPTIVE_SP)]
    if "bounds" in frames:
        bound = frames["bounds"].pivot_table("success_rate", "detector", "eps")
        success = success.join(bound.rename(columns=lambda eps: f"bound, ε {eps:.3g}"))
    cost = frames["cost"].groupby("detector", sort=False)[list(ROUNDED)].mean()
    return pd.concat([means, least, worst.rename("worst case auc"), floor, success, cost], axis=1)


def floors(impostors: pd.DataFrame) -> pd.DataFrame:
    """Impostor rate by detector and SP, the mean over seeds."""
    by = impostors.groupby(["detector", "security_parameter"], sort=False)["impostor_rate"].mean()
    return by.unstack("security_parameter").rename(columns=FLOOR.format)


def impostors_text(impostors: pd.DataFrame) -> str:
    """Markdown of the impostor rates."""
    table = floors(impostors).loc[impostors["detector"].unique()]
    return (
        "Floor: share of clean images for which a wrong class passes without any change "
        "(`skmrr.evaluation.impostor_rate`), of those that the victim classifies rightly. An "
        "attacker who has the victim's decision in hand, by changes that the detector does not "
        "notice, succeeds on as many. Where SR@5 is lower, the detector notices what "
        "it takes to change the decision.\n\n" + markdown(table)
    )


def pooled_success(adaptive: pd.DataFrame) -> pd.DataFrame:
    """Success rate by detector and ε over the images of all seeds, with its 95 % interval."""
    hits = adaptive["success_rate"] * adaptive["n_rows"]
    by = adaptive.assign(hits=hits).groupby(["detector", "eps"], sort=False)
    pooled = by[["hits", "n_rows"]].sum()
    low, high = exact_interval(pooled["hits"].round(), pooled["n_rows"])
    return pooled.assign(success_rate=pooled["hits"] / pooled["n_rows"], low=low, high=high)


def with_intervals(table: pd.DataFrame, pooled: pd.DataFrame) -> pd.DataFrame:
    """Table as shown: success rates with their intervals, costs in round numbers."""
    shown = pooled.apply(
        lambda row: spread(row["success_rate"], row["low"], row["high"], 2), axis=1
    )
    success = {success_column(eps): column for eps, column in shown.unstack("eps").items()}
    return in_round_numbers(table).assign(**success)


def success_column(eps: float) -> str:
    """Name of the column of success rates within a ball."""
    return f"SR@5, ε {eps:.3g}"
