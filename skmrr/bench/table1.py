"""Table 1, of attacks that see the victim alone."""

from collections.abc import Iterator
from functools import partial

import numpy as np
import pandas as pd

from skmrr.base import BaseDetector
from skmrr.bench.problems import Problem
from skmrr.bench.report import Report, markdown, spread
from skmrr.bench.run import Run
from skmrr.bench.sizes import PAPER_TABLE1, Sizes
from skmrr.bench.systems import ENSEMBLE, OURS, Fitted
from skmrr.bench.victims import predict
from skmrr.evaluation import (
    CostDisplay,
    DetectionEvaluation,
    DetectionRocDisplay,
    check_disjoint,
    fitted_bytes,
    flag_rates,
    over_seeds,
    scoring_cost,
)
from skmrr.evaluation.channels import RAW, Arrived, arrive
from skmrr.evaluation.protocol import evaluate_scores, score_arrivals
from skmrr.evaluation.siege import WORST
from skmrr.evaluation.successes import CLEAN, check_attacks
from skmrr.harmless import CHANNELS
from skmrr.threshold import ADVERSARIAL

TABLE1_SP = (0.01, 0.05)
ROUNDED = {"fit_seconds": "{:.0f}", "score_cost": "{:.1f}", "megabytes": "{:.2f}"}
N_ANSWERED = 2000  # images that rivals with a classifier of their own answer
FEWEST = 10  # successes of an attack that an area is shown for
HIGHEST_DRAWN = 0.9999  # a logit axis has no place for 0 and 1


def table1(run: Run) -> Report:
    """Measure how well each detector tells clean images from each attack at each strength."""
    by_seed, costs, harmless = {}, [], []
    for problem, fitted in fitted_problems(run):
        by_seed[problem.seed] = detection_of(run, problem, fitted)
        costs.append(costs_of(problem, fitted, run.sizes))
        harmless.append(harmless_of(run, problem, fitted))
    return table1_report(run, by_seed, costs, harmless)


def fitted_problems(run: Run) -> Iterator[tuple[Problem, dict[str, Fitted]]]:
    """Of each seed the problem with its attacks, and the detectors fitted on it."""
    for problem in run.attacked_problems():
        check_disjoint(
            X_fit=problem.X_fit, X_calibration=problem.X_calibration, X_test=problem.X_test
        )
        yield problem, run.fit(problem, run.detectors)


def table1_report(
    run: Run,
    by_seed: dict[int, DetectionEvaluation],
    costs: list[pd.DataFrame],
    harmless: list[pd.DataFrame],
) -> Report:
    """Join what was measured for each seed."""
    name = run.dataset
    outcome = DetectionEvaluation.concat(by_seed)
    frames = {
        "detection": outcome.detection,
        "flagged": outcome.flagged,
        "cost": pd.concat(costs, ignore_index=True),
        "harmless": pd.concat(harmless, ignore_index=True),
    }
    alone, title = "", "Table 1: attacks on the victim alone"
    if run.detectors is not None and set(run.detectors) <= set(OURS):
        alone, title = "-ours", f"{title}, this package's detectors"
    elif run.detectors is not None and ENSEMBLE not in run.detectors:
        alone, title = "-rivals", f"{title}, other detectors"
    return Report(
        f"table1-{name}{alone}",
        f"{title}, {name}",
        table1_text(run, frames),
        frames,
        {
            "roc_worst_case": lambda: draw_roc(outcome, f"{name}: worst case of each image"),
            "cost": lambda: draw_cost(frames),
        },
    )


def detection_of(run: Run, problem: Problem, fitted: dict[str, Fitted]) -> DetectionEvaluation:
    """Evaluate fitted detectors on all attacks of a problem."""
    run.tell(problem.seed, "scoring")
    X, y = problem.X_test, problem.y_test
    is_right = np.isin(np.arange(len(y)), problem.rows)
    check_attacks(problem.attacks, is_right)
    score = run.memory.cache(score_samples)
    scorers = {name: partial(score, system.detector) for name, system in fitted.items()}
    raw = Arrived(X, is_right, problem.attacks)
    decide = partial(predict, problem.victim)
    arrivals = (
        (channel, arrive(change, X, y, problem.attacks, decide, (0, 1)) if change else raw)
        for channel, change in CHANNELS.items()
    )
    scores, arrived = score_arrivals(scorers, arrivals)
    return evaluate_scores(scores, arrived, security_parameters=TABLE1_SP)


def harmless_of(run: Run, problem: Problem, fitted: dict[str, Fitted]) -> pd.DataFrame:
    """Share of clean images that each detector flags after a harmless change."""
    run.tell(problem.seed, "harmless changes")
    detectors = {name: system.detector for name, system in fitted.items()}
    n = run.sizes.n_changed
    frame = run.memory.cache(flag_rates)(detectors, problem.X_test[:n], problem.y_test[:n])
    return frame.assign(seed=problem.seed)


def score_samples(detector: BaseDetector, X) -> np.ndarray:
    """Scores of rows."""
    return detector.score_samples(X)


def costs_of(problem: Problem, fitted: dict[str, Fitted], sizes: Sizes) -> pd.DataFrame:
    """Time to fit, time to score in passes of the victim, and memory of each detector.

    Of rivals that answer by a network of their own, also whether that is any good.
    """
    X, y = problem.X_test[:N_ANSWERED], problem.y_test[:N_ANSWERED]
    return pd.DataFrame(
        [
            {
                "seed": problem.seed,
                "detector": name,
                "fit_seconds": system.fit_seconds,
                "score_cost": scoring_cost(system.detector, X[: sizes.n_timed], repeats=3),
                "megabytes": fitted_bytes(system.detector) / 1e6,
                "own_accuracy": own_accuracy(system.detector, X, y),
            }
            for name, system in fitted.items()
        ]
    )


def own_accuracy(detector: BaseDetector, X, y) -> float:
    """Share of clean images that reformed, purified or hardened classifiers get right, or NaN."""
    for name in ("reformed_classifier", "purified_classifier", "hardened_classifier"):
        if hasattr(detector, name):
            return float((predict(getattr(detector, name)(), X) == y).mean())
    return np.nan


# What is not the same for all detectors, or not for all seeds.
SAID = {
    "digits": "Each seed trains victim and detectors anew.",
    "mnist": (
        "Each seed trains victim and detectors anew, on 20,000 images, the ensemble on these "
        "shifted by up to a pixel, the certified one on the victim's 50,000. Parts of the "
        "ensemble and of the certified detector were chosen by looking at attacks on other victims "
        "(seeds 7 and 0) on the same test images."
    ),
    "cifar10": (
        "The victim is given; all seeds share one fit of each detector, on 20,000 images, ours on "
        "all 50,000, shifted and mirrored, and draw which test images calibrate and which are "
        "attacked, so that their test images overlap. Parts of the ensemble were chosen by looking "
        "at attacks on a draw of its own (seed 0) of these test images."
    ),
    "imagenette": (
        "The victim is given; all seeds share one fit of each detector, on 2,000 images, and draw "
        "which test images calibrate and which are attacked, so that their test images overlap. "
        "The kinds of members were chosen on attacks on MNIST and CIFAR-10, the size of the copy "
        "on photographs of a thousand classes, and that it is not trained, and keeps the norm of "
        "its features, by looking at seeds 1 and 2."
    ),
}


def table1_text(run: Run, frames: dict[str, pd.DataFrame]) -> str:
    """Markdown of table 1."""
    name = run.dataset
    detection, flagged = (in_channel(frames[part], RAW) for part in ("detection", "flagged"))
    table = over_seeds(detection, ["attack", "detector"], ["auc", "tpr_0.01"])
    paper = PAPER_TABLE1.get(name, {})
    parts = []
    for value, title in (
        ("auc", "Area under the ROC curve"),
        ("tpr_0.01", "Share caught while 1 % of all clean images are flagged"),
    ):
        shown = (
            table[value]
            .apply(lambda row: spread(row["mean"], row["min"], row["max"]), axis=1)
            .unstack("detector", sort=False)
        )
        if value == "auc" and paper:
            kinds = shown.index.str.split().str[0]
            cells = [f"{paper[kind]:.3f}"[1:] if kind in paper else "–" for kind in kinds]
            shown.insert(0, "paper", cells)
        parts += [f"### {title}\n\n{markdown(shown)}"]
    counts = detection[detection["detector"] == detection["detector"].iloc[0]]
    counts = counts.groupby("attack", sort=False).agg(
        n_rows=("n_rows", "mean"),
        success_rate=("success_rate", "mean"),
        mean_distortion=("mean_distortion", "mean"),
        seeds_with_success=("auc", "count"),
    )
    clean = flagged[flagged["rows"].str.startswith("clean")]
    alarms = over_seeds(clean, ["detector", "security_parameter", "rows"], ["flagged"])["flagged"]
    alarms = alarms.apply(lambda r: spread(r["mean"], r["min"], r["max"], 4), axis=1)
    rows = clean.groupby("rows")["n_rows"].sum()
    right = rows[f"{CLEAN}, victim right"] / rows[CLEAN]
    costs = frames["cost"].drop(columns="seed").groupby("detector", sort=False).mean()
    n = len(run.seeds)
    pooled = "The paper pools all strengths of an attack. " if paper else ""
    return "\n\n".join(
        [
            f"{'One seed' if n == 1 else f'Mean of {n} seeds (least–greatest)'}. "
            "Successes of attacks on images that the victim classifies "
            "rightly; the clean side is all clean test images, the victim's own errors "
            "included. Worst case: of each image that all attacks began from, the success that the "
            f"detector finds most normal. {pooled}{SAID[name]}",
            *parts,
            channels_text(frames),
            "### Harmless changes",
            harmless_text(frames["harmless"]),
            "### Share of clean images flagged at the calibrated threshold",
            markdown(alarms.unstack(["security_parameter", "rows"], sort=False).pipe(_flat)),
            "### Cost",
            "Scoring in passes of the victim, the pass that the victim itself takes included. "
            "*own_accuracy*: share of clean test images that a rival's own classifier gets right, "
            "the reformed (MagNet), purified (APE-GAN) or hardened one (Efficient Defenses); the "
            f"victim gets {right:.1%} right.",
            markdown(in_round_numbers(costs)),
            "### Attacks",
            markdown(counts),
        ]
    )


def channels_text(frames: dict[str, pd.DataFrame]) -> str:
    """Markdown of what is left of the evidence at the end of each channel."""
    detection = frames["detection"]
    table = over_seeds(detection, ["detector", "channel", "attack"], ["auc", "auc_raw", "n_rows"])
    means = table[["auc", "auc_raw"]].xs("mean", axis=1, level=1)
    is_shown = (table["n_rows"]["min"] >= FEWEST) & (table.index.get_level_values(2) != WORST)
    single = means[is_shown]
    least = single.groupby(["detector", "channel"], sort=False).min()
    ours = detection["detector"].iloc[0]
    is_ours = single.index.get_level_values(0) == ours
    of_ours = single.loc[is_ours, "auc"].droplevel(0).unstack("channel", sort=False)
    return "\n\n".join(
        [
            "### Through channels",
            "Area under the ROC curve of what fools the victim when it arrives, on images that the "
            "channel alone leaves right, against clean images that came the same way; behind the "
            "stroke, against clean images as they are. Worst case over all attacks; *any channel*: "
            "over channels too, against the clean images of all of them.",
            markdown(_beside(means.xs(WORST, level="attack"))),
            "Least area of a single attack at one strength, of those that still fool the victim "
            f"{FEWEST} times with every seed.",
            markdown(_beside(least)),
            f"Each such attack by {ours}, against clean images that came the same way.",
            markdown(of_ours.map(decimal)),
            "Share of clean images flagged at the calibrated threshold, SP 5 %.",
            markdown(flagged_through(frames["flagged"])),
        ]
    )


def _beside(areas: pd.DataFrame) -> pd.DataFrame:
    """Areas against clean images of the same channel and as they are, by detector and channel."""
    shown = areas["auc"].map(decimal) + " / " + areas["auc_raw"].map(decimal)
    return shown.unstack("channel", sort=False)


def harmless_text(harmless: pd.DataFrame) -> str:
    """Markdown of how often each detector flags what is harmless, at SP 5 %."""
    part = harmless[harmless["security_parameter"] == TABLE1_SP[-1]]
    names = part["change"] + " " + part["severity"].map(str)
    part = part.assign(change=names.str.removesuffix(" 0"))
    shares = over_seeds(part, ["change", "detector"], ["flagged"])["flagged"]
    shown = shares.apply(lambda r: spread(r["mean"], r["min"], r["max"]), axis=1)
    return (
        "Share of images flagged at SP 5 % after a harmless change, of those that the victim still "
        "classifies rightly: 1 mild, 2 moderate, 3 as strong as is still harmless "
        "(`skmrr.harmless.SEVERITIES`).\n\n" + markdown(shown.unstack("detector", sort=False))
    )


def flagged_through(flagged: pd.DataFrame) -> pd.DataFrame:
    """Share of clean images flagged at SP 5 %, by detector and channel."""
    is_shown = (flagged["rows"] == CLEAN) & (flagged["security_parameter"] == TABLE1_SP[-1])
    part = flagged[is_shown]
    shares = over_seeds(part, ["detector", "channel"], ["flagged"])["flagged"]
    shown = shares.apply(lambda r: spread(r["mean"], r["min"], r["max"]), axis=1)
    return shown.unstack("channel", sort=False)


def decimal(value: float) -> str:
    """Share as a table has it."""
    return spread(value, value, value)


def in_channel(frame: pd.DataFrame, channel: str) -> pd.DataFrame:
    """Part of a frame that came through one channel."""
    return frame[frame["channel"] == channel]


def in_round_numbers(table: pd.DataFrame) -> pd.DataFrame:
    """Costs as shown."""
    return table.assign(**{name: table[name].map(form.format) for name, form in ROUNDED.items()})


def draw_roc(outcome: DetectionEvaluation, title: str):
    """Draw the ROC curves of all detectors in the worst case, of the first seed."""
    from matplotlib import pyplot as plt

    figure, ax = plt.subplots(figsize=(9, 5), layout="constrained")
    scores = in_channel(outcome.scores, RAW)
    scores = scores[scores["seed"] == scores["seed"].iloc[0]]
    for detector, part in scores.groupby("detector", sort=False):
        clean, worst = (
            part.loc[part["attack"] == kind, "score"].to_numpy() for kind in (CLEAN, WORST)
        )
        y = np.repeat([0, ADVERSARIAL], [len(clean), len(worst)])
        style = {"lw": 2.5} if detector in OURS else {"lw": 1, "ls": "--"}
        DetectionRocDisplay.from_predictions(y, np.r_[clean, worst], name=detector, ax=ax, **style)
    ax.set_title(title)
    ax.legend(fontsize=7, loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


def draw_cost(frames: dict[str, pd.DataFrame]):
    """Draw mean AUC, on a scale that widens towards 1, against the cost of scoring."""
    from matplotlib import pyplot as plt

    detection = in_channel(frames["detection"], RAW)
    auc = detection[detection["attack"] != WORST].groupby("detector", sort=False)["auc"].mean()
    cost = frames["cost"].groupby("detector", sort=False)["score_cost"].mean()
    frame = pd.concat([auc.clip(1 - HIGHEST_DRAWN, HIGHEST_DRAWN), cost], axis=1).reset_index()
    figure, ax = plt.subplots(figsize=(8, 5.5), layout="constrained")
    ax.set_yscale("logit", one_half="0.5")
    ax.yaxis.set_major_formatter("{x:g}")
    CostDisplay.from_frame(frame, ax=ax)
    return figure


def _flat(frame: pd.DataFrame) -> pd.DataFrame:
    """Give a frame one row of column names."""
    frame.columns = [f"SP {sp:g}: {rows}" for sp, rows in frame.columns]
    return frame
