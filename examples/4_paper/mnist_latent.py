"""
One latent defender on MNIST
============================

The protocol: a victim trained on images 0–50,000 of the training set, one defender fitted on the
first 20,000, a threshold from the last 10,000, which neither has seen. Attacks see the victim
alone; they start from 500 test images that it classifies rightly (FGSM, of which few weak ones
succeed, from all such images) and only successes count. The clean side is the whole test set, the
victim's own errors included.

Needs ``mnist.npz`` (see ``skmrr.datasets.load_mnist``). A seed takes about a quarter of an hour
on two cores, its ablation as long again. Victims, attacks and figures are cached in the output
folder, so that an interrupted run resumes.

What was chosen by looking at attacks (radius, its draw, epochs, learning rate) was chosen on other
seeds than the three of the headline.
"""

import argparse
import time
from pathlib import Path

import joblib
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch

import skmrr
from skmrr import LatentDefender, replicate
from skmrr.bench.problems import KINDS, mnist
from skmrr.bench.victims import predict
from skmrr.evaluation import auc_interval, false_alarm_interval, tpr_at_fpr

HERE = Path(__file__).parent
RADIUS = 0.2


def fit(victim, module, data, **params) -> LatentDefender:
    """Fit a defender on the first training images and calibrate it on the last ones."""
    X, y, X_calibration = data
    defender = LatentDefender(
        module, classifier=victim, clip_values=(0, 1), calibration_fraction=0, **params
    )
    return defender.fit(X, y).calibrate(X_calibration)


def measure(defender, X_test, adversarial) -> tuple[dict, dict, np.ndarray]:
    """AUC and TPR at 1 % FPR of each attack, and the clean scores."""
    clean = defender.score_samples(X_test)
    areas, tpr = {}, {}
    for name, images in adversarial.items():
        score = defender.score_samples(images)
        areas[name] = auc_interval(clean, score)[0]
        tpr[name] = tpr_at_fpr(clean, score, fpr=0.01)
    return areas, tpr, clean


def ablation(victim, data, seed, epochs, main):
    """Pairs of name and defender, one ingredient changed at a time."""
    params = headline(seed, epochs)
    trained = main.module_.statistic.latent_map
    bare = {"realign": False, "random_state": seed}
    distance = {**bare, "density": "distance", "statistic": "likelihood"}
    yield "victim's own features, distance", fit(victim, replicate(victim), data, **distance)
    plain = fit(victim, replicate(victim), data, **params | {"exploration_radius": 0.0})
    features = plain.module_.statistic.latent_map
    yield "realigned, distance", fit(victim, features, data, **distance)
    yield "realigned, margin", plain
    for name, change in {
        "explored 0.1": {"exploration_radius": 0.1},
        "explored 0.3": {"exploration_radius": 0.3},
        "headline, no clustering": {"gamma": 0.0},
    }.items():
        yield f"{name}, margin", fit(victim, replicate(victim), data, **params | change)
    for density in ("distance", "ppca", "gaussian"):
        for statistic in ("likelihood", "contrast"):
            yield (
                f"headline map, {density} {statistic}",
                fit(victim, trained, data, density=density, statistic=statistic, **bare),
            )


def headline(seed: int, epochs: int) -> dict:
    """Parameters of the headline defender."""
    return {
        "exploration_radius": RADIUS,
        "exploration_steps": 2,
        "max_epochs": epochs,
        "learning_rate": 3e-3,
        "random_state": seed,
    }


def scoring_cost(defender, victim, X) -> float:
    """Median time of scoring over that of the raw forward passes of victim and replica."""
    replica = defender.module_.statistic.latent_map
    batches = torch.as_tensor(X).split(defender.batch_size)
    ratios = []
    for _ in range(5):
        start = time.perf_counter()
        with torch.no_grad():
            for x in batches:
                victim(x)
                replica(x)
        raw = time.perf_counter() - start
        start = time.perf_counter()
        defender.score_samples(X)
        ratios.append((time.perf_counter() - start) / raw)
    return float(np.median(ratios))


def run_seed(seed, n_attacked, victim_epochs, epochs, with_ablation, code) -> dict:
    """Everything that is measured for one seed, as tidy rows; `code` is the cache's key to them."""
    attacked = mnist(
        seed,
        memory,
        n_attacked=n_attacked,
        victim_epochs=victim_epochs,
        kinds=KINDS,
    )
    victim, X_test = attacked.victim, attacked.X_test
    right = predict(victim, X_test) == attacked.y_test

    data = attacked.X_fit, attacked.y_fit, attacked.X_calibration
    start = time.perf_counter()
    defender = fit(victim, replicate(victim), data, **headline(seed, epochs))
    fit_seconds = time.perf_counter() - start
    variants = [("headline", defender)]
    if with_ablation:
        variants += ablation(victim, data, seed, epochs, defender)
    detections, clean = [], {}
    for variant, fitted in variants:
        areas, tpr, clean[variant] = measure(fitted, X_test, attacked.adversarial)
        detections += [
            {"seed": seed, "variant": variant, "attack": name, "AUC": areas[name], "TPR": tpr[name]}
            for name in areas
        ]
    return {
        "detections": detections,
        "successes": {name: len(images) for name, images in attacked.adversarial.items()},
        "mean L2": attacked.distortion,
        "false alarms": [
            {
                "seed": seed,
                "SP": sp,
                "all": np.mean(clean["headline"] < np.log(sp)),
                "victim right": np.mean(clean["headline"][right] < np.log(sp)),
                "victim wrong": np.mean(clean["headline"][~right] < np.log(sp)),
            }
            for sp in (0.005, 0.01, 0.05)
        ],
        "victim accuracy": right.mean(),
        "fit seconds": fit_seconds,
        "scoring / raw passes": scoring_cost(defender, victim, X_test),
    }


def report(runs: list[dict], ablated: list[dict], output: Path) -> None:
    """Print the tables, save them and draw the picture."""
    for key in ("victim accuracy", "fit seconds", "scoring / raw passes"):
        print(f"{key}: " + ", ".join(f"{run[key]:.4g}" for run in runs))
    detections = pd.DataFrame([row for run in runs for row in run["detections"]])
    attacks = list(runs[0]["successes"])
    table = (
        detections.groupby("attack")[["AUC", "TPR"]]
        .agg(["mean", "min", "max"])
        .loc[attacks]
        .round(4)
    )
    for key in ("successes", "mean L2"):
        table[key, ""] = pd.DataFrame([run[key] for run in runs]).mean().round(2)
    print(f"\nheadline defender, {len(runs)} seeds; TPR at 1 % FPR\n{table.to_string()}")
    alarms = pd.DataFrame([row for run in runs for row in run["false alarms"]])
    print("\nfalse alarms on all clean test images, and the 99 % interval if SP held exactly")
    for sp, rows in alarms.groupby("SP"):
        low, high = false_alarm_interval(sp, 10_000)
        seeds = ", ".join(f"{share:.2%}" for share in rows["all"])
        print(
            f"  SP {sp:.1%}: {seeds}  [{low:.2%}, {high:.2%}]; where the victim is right "
            f"{rows['victim right'].mean():.2%}, wrong {rows['victim wrong'].mean():.1%}"
        )
    output.mkdir(parents=True, exist_ok=True)
    detections.to_csv(output / "mnist_latent.csv", index=False)
    if not ablated:
        return
    variants = pd.DataFrame([row for run in ablated for row in run["detections"]])
    variants.to_csv(output / "mnist_latent_ablation.csv", index=False)
    shown = variants.pivot_table("AUC", "variant", "attack", sort=False).reindex(columns=attacks)
    print(f"\nablation, AUC on {len(ablated)} other seed(s)\n{shown.round(4).to_string()}")
    fig, ax = plt.subplots(figsize=(9, 4.5), layout="constrained")
    for variant, row in shown.iterrows():
        is_main = variant == "headline"
        ax.plot(
            attacks,
            1 - row,
            marker="o",
            lw=3 if is_main else 1,
            color="k" if is_main else None,
            label=variant,
        )
    ax.set(yscale="log", ylabel="1 − AUC (lower is better)", title="What each ingredient brings")
    ax.tick_params("x", rotation=45)
    ax.legend(fontsize=7, loc="upper left", bbox_to_anchor=(1, 1))
    fig.savefig(output / "mnist_latent.png", dpi=120)
    print(f"\ntable and picture: {output}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--ablation", type=int, nargs="*", default=[0], help="other seeds")
    parser.add_argument("--attacked", type=int, default=500, help="images to attack")
    parser.add_argument("--victim-epochs", type=int, default=25)
    parser.add_argument("--epochs", type=int, default=26, help="of the defender")
    parser.add_argument("--output", type=Path, default=HERE / "output")
    args = parser.parse_args()
    torch.set_flush_denormal(True)
    memory = joblib.Memory(args.output / "cache", verbose=0)
    measured = memory.cache(run_seed)
    sizes = (args.attacked, args.victim_epochs, args.epochs)
    # Figures are kept for the very code that made them.
    sources = sorted(Path(skmrr.__file__).parent.rglob("*.py"))
    sources += [Path(__file__)]
    code = joblib.hash([path.read_bytes() for path in sources])
    report(
        [measured(seed, *sizes, False, code) for seed in args.seeds],
        [measured(seed, *sizes, True, code) for seed in args.ablation],
        args.output,
    )
