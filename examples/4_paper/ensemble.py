"""
The ensemble on MNIST and CIFAR-10
==================================

The protocol of the other measurements of this folder. The default ensemble is fitted on clean
images; all variants of it (fusions, members without a say) share its fitted members. On MNIST the
first seed also says what more members of one kind bring and cost, and which members' alarms differ
at all.

On CIFAR-10 the victim has seen all training images: the latent defender learns from them, shifted
and mirrored, and 2,000 test images calibrate. It is fitted once for all seeds, which draw these
images and those attacked: half an hour on one core with bfloat16 units, several times as long
without (``--latent`` takes one that is fitted already).

Needs ``mnist.npz`` and ``cifar10.npz`` (all 50,000 training images for the figures quoted) with
the weights of ResNet-20. Victims, attacks and fitted members are cached in the output folder.

Chosen by looking at attacks, on seed 7 of MNIST and seed 0 of CIFAR-10: the members, their
conditioning on the classifier's margin, the fusion. The figures are of seeds 1, 2, 3.
"""

import argparse
import dataclasses
import time
from pathlib import Path

import joblib
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from sklearn.base import clone
from sklearn.frozen import FrozenEstimator
from torch.nn import functional
from torch.utils.data import Dataset

from skmrr import LatentDefender, MRREnsemble, NoiseDefender, replicate
from skmrr.bench.problems import KINDS, PROBLEMS
from skmrr.bench.victims import predict, read_resnet
from skmrr.datasets import load_cifar10
from skmrr.evaluation import auc_interval, false_alarm_interval, tpr_at_fpr

HERE = Path(__file__).parent
# Weights of the members "classifier", "latent_0", "dense", "sparse", and other parameters.
VARIANTS = {
    "default": {"weights": [1, 1, 1, 0.25]},
    "all weights equal": {},
    "harmonic": {"weights": [1, 1, 1, 0.25], "fusion": "harmonic"},
    "max": {"weights": [1, 1, 1, 0.25], "fusion": "max"},
    "no conditioning": {"weights": [1, 1, 0.25], "margin": False},
    "without noise": {"weights": [1, 1, 0, 0]},
    "without sparse": {"weights": [1, 1, 1, 0]},
    "without latent": {"weights": [1, 0, 1, 0.25]},
    "latent alone": {"weights": [1, 0, 0], "margin": False},
    "classifier alone": {"weights": [1, 0, 0, 0]},
    "dense alone": {"weights": [0, 0, 1, 0]},
    "sparse alone": {"weights": [0, 0, 0, 1]},
}
NUMBERS = (1, 2, 4, 8, 16)
MAX_IMAGES = 1000  # of an attack


class Augmented(Dataset):
    """Images with their classes, mirrored and shifted by up to four pixels at each reading."""

    def __init__(self, X, y, seed: int):
        self.x = functional.pad(torch.as_tensor(X), (4, 4, 4, 4))
        self.y = y
        self.rng = np.random.default_rng(seed)

    def __len__(self):
        return len(self.y)

    def __getitem__(self, i):
        top, left = self.rng.integers(0, 9, 2)
        image = self.x[i, :, top : top + 32, left : left + 32]
        return image.flip(2) if self.rng.random() < 0.5 else image, self.y[i]


def fit_cifar10_latent(epochs: int, n_samples: int | None) -> LatentDefender:
    """Latent defender of ResNet-20, uncalibrated."""
    victim = read_resnet()
    defender = LatentDefender(
        replicate(victim),
        exploration_radius=2 / 255,
        exploration_steps=1,
        clip_values=(0, 1),
        max_epochs=epochs,
        training_batch_size=128,
        calibration_fraction=0,
        random_state=0,
    )
    with torch.autocast("cpu", dtype=torch.bfloat16):  # twice as fast where there are units for it
        return defender.fit(Augmented(*load_cifar10("train", n_samples=n_samples), seed=0))


def fit_ensemble(name: str, data, seed: int, epochs: int, latent) -> MRREnsemble:
    """Default ensemble, calibrated on images that the victim has not seen."""
    shared = {"clip_values": (0, 1), "random_state": seed, "calibration_fraction": 0}
    if name == "cifar10":
        noises = {n: NoiseDefender(noise=n, clip_values=(0, 1)) for n in ("dense", "sparse")}
        members = [("latent_0", FrozenEstimator(latent)), *noises.items()]
        weights = VARIANTS["default"]["weights"]
        ensemble = MRREnsemble(data.victim, defenders=members, weights=weights, **shared)
    else:
        template = LatentDefender(exploration_radius="auto", learning_rate=3e-3, max_epochs=epochs)
        ensemble = MRREnsemble(data.victim, estimator=template, **shared)
    return ensemble.fit(data.X_fit, data.y_fit).calibrate(data.X_calibration)


def of_frozen(ensemble: MRREnsemble, data, **params) -> MRREnsemble:
    """Ensemble of the same fitted members with other parameters."""
    members = [(name, FrozenEstimator(m)) for name, m in ensemble.named_defenders_.items()]
    other = MRREnsemble(data.victim, defenders=members, clip_values=(0, 1), random_state=0)
    return other.set_params(**params).fit(data.X_calibration, y_of(data))


def y_of(data) -> np.ndarray:
    """Victim's decisions for the images to calibrate on, which stand for their classes."""
    return predict(data.victim, data.X_calibration)


def detections(defender, data) -> list[dict]:
    """AUC and TPR at 1 % FPR of each attack, then false alarms."""
    clean = defender.score_samples(data.X_test)
    rows = []
    for attack, images in data.adversarial.items():
        score = defender.score_samples(images)
        rows.append(
            {
                "attack": attack,
                "AUC": auc_interval(clean, score)[0],
                "TPR": tpr_at_fpr(clean, score, 0.01),
            }
        )
    for sp in (0.01, 0.05):
        rows.append({"attack": f"false alarms, SP {sp:.0%}", "AUC": np.mean(clean < np.log(sp))})
    return rows


def cost(defender, data, batch_size: int) -> float:
    """Median time of scoring over that of the victim's own passes, in alternation."""
    defender.set_params(batch_size=batch_size)
    X = data.X_test[:2000]
    ratios = []
    for _ in range(9):
        start = time.perf_counter()
        with torch.no_grad():
            for x in torch.as_tensor(X).split(batch_size):
                data.victim(x)
        alone = time.perf_counter() - start
        start = time.perf_counter()
        defender.score_samples(X)
        ratios.append((time.perf_counter() - start) / alone)
    return float(np.median(ratios))


def numbers(data, seed: int, epochs: int) -> list[dict]:
    """What N latent defenders of a quarter of the width do and cost."""
    template = LatentDefender(exploration_radius="auto", learning_rate=3e-3, max_epochs=epochs)
    params = {"clip_values": (0, 1), "random_state": seed, "calibration_fraction": 0}
    ensemble = MRREnsemble(
        data.victim,
        n_defenders=max(NUMBERS),
        width=0.25,
        input_defender=False,
        estimator=template,
        **params,
    ).fit(data.X_fit, data.y_fit)
    rows = []
    for n in NUMBERS:
        weights = np.r_[1.0, np.full(n, 1 / n)]  # as they would have by default
        first = of_frozen(ensemble, data, n_defenders=n, weights=weights)
        measured = pd.DataFrame(detections(first, data)).set_index("attack")["AUC"]
        alarms = measured[measured.index.str.startswith("false")]
        row = {
            "N": n,
            "worst AUC": measured.drop(alarms.index).min(),
            "mean AUC": measured.drop(alarms.index).mean(),
            **alarms,
            "cost": cost(first, data, 64),
        }
        statistic = first.module_.statistic
        statistic.stack, statistic.stacked = None, []
        rows.append({**row, "cost as a loop": cost(first, data, 64)})
    return rows


def diversity(data, seed: int, epochs: int) -> pd.DataFrame:
    """Correlation of members' alarms with those of a replica, at SP 5 %."""
    X, y = data.X_fit[:10_000], data.y_fit[:10_000]
    template = LatentDefender(exploration_radius="auto", learning_rate=3e-3, max_epochs=epochs)
    first_dense = next(
        name for name, part in reversed(list(data.victim.named_modules()))
        if isinstance(part, torch.nn.Linear) and part.out_features == part.in_features
    )  # fmt: skip
    plans = {
        "replica": {},
        "other seed": {"random_state": seed + 1},
        "half the width": {"width": 0.5},
        "other layer, contrast": {
            "layer": first_dense,
            "estimator": clone(template).set_params(statistic="contrast"),
        },
        "likelihood": {"estimator": clone(template).set_params(statistic="likelihood")},
        "chain, as published": {"chain": True, "n_defenders": 2},
        "chain, steps of 0.1": {"chain": True, "n_defenders": 2, "chain_step": 0.1},
        "chain, unexplored": {
            "chain": True,
            "n_defenders": 2,
            "estimator": clone(template).set_params(exploration_radius=0.0),
        },
    }
    fooling = np.concatenate([images[:200] for images in data.adversarial.values()])
    labels = {
        "clean": predict(data.victim, data.X_test),
        "adversarial": predict(data.victim, fooling),
    }
    alarms, aucs = {}, {}
    for name, plan in plans.items():
        params = {
            **{"estimator": template, "random_state": seed, "input_defender": False},
            **{"clip_values": (0, 1), "calibration_fraction": 0, "security_parameter": 0.05},
        }
        ensemble = MRREnsemble(data.victim, **{**params, **plan}).fit(X, y)
        member = list(ensemble.calibrate(data.X_calibration).named_defenders_.values())[-1]
        scores = {
            kind: member.score_samples(images, labels=labels[kind])
            for kind, images in (("clean", data.X_test), ("adversarial", fooling))
        }
        alarms[name] = {kind: score < np.log(0.05) for kind, score in scores.items()}
        aucs[name] = auc_interval(scores["clean"], scores["adversarial"])[0]
    reference = alarms["replica"]
    return pd.DataFrame(
        {
            f"alarms, {kind}": {
                name: np.corrcoef(alarm[kind], reference[kind])[0, 1]
                for name, alarm in alarms.items()
            }
            for kind in labels
        }
    ).assign(**{"AUC, all attacks": aucs})


def run(name: str, seed: int, sizes: dict, latent) -> dict:
    """Everything measured on one data set with one seed."""
    options = {"n_attacked": sizes["n_attacked"], "kinds": sizes["kinds"]}
    if name == "mnist":
        options["victim_epochs"] = sizes["victim_epochs"]
    data = PROBLEMS[name](seed, memory, **options)
    capped = {
        name: dataclasses.replace(
            attack,
            X=attack.X[:MAX_IMAGES],
            rows=attack.rows[:MAX_IMAGES],
            distortion=attack.distortion[:MAX_IMAGES],
        )
        for name, attack in data.attacks.items()
    }
    data = dataclasses.replace(data, attacks=capped)
    start = time.perf_counter()
    ensemble = memory.cache(fit_ensemble, ignore=["data", "latent"])(
        name, data, seed, sizes["epochs"], latent
    )
    seconds = time.perf_counter() - start
    rows = []
    for variant, params in VARIANTS.items():
        if "weights" in params:
            params = {**params, "weights": np.array(params["weights"], dtype=float)}
        for row in detections(of_frozen(ensemble, data, **params), data):
            rows.append({"data": name, "seed": seed, "variant": variant, **row})
    return {
        "rows": rows,
        "successes": {attack: len(images) for attack, images in data.adversarial.items()},
        "fit seconds": seconds,
        "cost": {size: cost(ensemble, data, size) for size in (64, 128, 512)},
        "data": data,
    }


def report(name: str, runs: list[dict], output: Path) -> pd.DataFrame:
    """Print and save the tables of one data set."""
    rows = pd.DataFrame([row for r in runs for row in r["rows"]])
    rows.to_csv(output / f"ensemble_{name}.csv", index=False)
    attacks = list(dict.fromkeys(rows["attack"]))
    print(f"\n{name}, {len(runs)} seeds; successes of the first: {runs[0]['successes']}")
    default = rows.query("variant == 'default'").groupby("attack")[["AUC", "TPR"]]
    print(default.agg(["mean", "min"]).loc[attacks].round(4).to_string())
    shown = rows.pivot_table("AUC", "variant", "attack", sort=False)[attacks]
    print(f"\nmean AUC of all variants, and share of false alarms\n{shown.T.round(4).to_string()}")
    n_test = len(runs[0]["data"].X_test)
    half = len(runs[0]["data"].X_calibration) // 2
    for sp in (0.01, 0.05):
        low, high = false_alarm_interval(sp, n_test, n_calibration=half)
        of_default = rows.query(f"variant == 'default' and attack == 'false alarms, SP {sp:.0%}'")
        shares = ", ".join(f"{share:.2%}" for share in of_default["AUC"])
        print(f"false alarms at SP {sp:.0%}: {shares}  [{low:.2%}, {high:.2%}]")
    print("fit: " + ", ".join(f"{r['fit seconds']:.0f} s" for r in runs))
    for size in runs[0]["cost"]:
        ratios = ", ".join(f"{r['cost'][size]:.2f}" for r in runs)
        print(f"scoring / victim's pass, batches of {size}: {ratios}")
    return shown


def draw(tables: dict[str, pd.DataFrame], counts: pd.DataFrame | None, output: Path) -> None:
    """Draw what carries on each data set, and what N members do."""
    fig, axes = plt.subplots(
        len(tables) + (counts is not None), 1, figsize=(9, 4 * len(tables) + 3),
        layout="constrained", squeeze=False,
    )  # fmt: skip
    for ax, (name, shown) in zip(axes[:, 0], tables.items(), strict=False):
        attacks = [attack for attack in shown if not attack.startswith("false")]
        ax.set_prop_cycle(color=plt.get_cmap("tab20").colors)
        for variant, row in shown[attacks].iterrows():
            bold = {"lw": 3, "color": "k"} if variant == "default" else {"lw": 1}
            ax.plot(attacks, (1 - row).clip(lower=1e-5), marker="o", label=variant, **bold)
        ax.set(yscale="log", ylabel="1 − AUC (lower is better)", title=name)
        ax.tick_params("x", rotation=40)
        ax.legend(fontsize=7, loc="upper left", bbox_to_anchor=(1, 1))
    if counts is not None:
        ax = axes[-1, 0]
        ax.plot(counts["N"], counts["cost"], "o-", label="scoring, side by side")
        ax.plot(counts["N"], counts["cost as a loop"], "o:", label="scoring, one by one")
        ax.set(xscale="log", xticks=NUMBERS, xticklabels=NUMBERS, xlabel="latent defenders, N")
        ax.set(ylabel="time / victim's pass", title="MNIST, defenders of a quarter of the width")
        right = ax.twinx()
        right.plot(counts["N"], counts["worst AUC"], "s-", color="C3", label="worst AUC (right)")
        right.set(ylabel="AUC over the attacks")
        handles = [*ax.get_lines(), *right.get_lines()]
        ax.legend(handles, [line.get_label() for line in handles], fontsize=7, loc="upper left")
    fig.savefig(output / "ensemble.png", dpi=120)
    print(f"\ntables and picture: {output}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", nargs="+", default=["mnist", "cifar10"])
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--attacked", type=int, default=500, help="images to attack")
    parser.add_argument("--victim-epochs", type=int, default=25, help="of MNIST's victim")
    parser.add_argument("--epochs", type=int, default=20, help="of a latent defender on MNIST")
    parser.add_argument("--small-epochs", type=int, default=5, help="of those that are compared")
    parser.add_argument("--cifar-epochs", type=int, default=5)
    parser.add_argument("--latent", type=Path, help="fitted LatentDefender of ResNet-20 (joblib)")
    parser.add_argument("--kinds", nargs="+", default=KINDS, help="of attacks")
    parser.add_argument("--output", type=Path, default=HERE / "output")
    args = parser.parse_args()
    args.output.mkdir(parents=True, exist_ok=True)
    torch.set_flush_denormal(True)
    memory = joblib.Memory(args.output / "cache", verbose=0)
    sizes = {key: getattr(args, key) for key in ("victim_epochs", "epochs", "kinds")}
    tables, counts = {}, None
    for name in args.data:
        latent = None
        if name == "cifar10":
            latent = (
                joblib.load(args.latent)
                if args.latent
                else memory.cache(fit_cifar10_latent)(args.cifar_epochs, None)
            )
        runs = [run(name, s, {**sizes, "n_attacked": args.attacked}, latent) for s in args.seeds]
        tables[name] = report(name, runs, args.output)
        if name == "mnist":
            first = runs[0]["data"]
            counts = pd.DataFrame(numbers(first, args.seeds[0], args.small_epochs))
            print(f"\nN latent defenders\n{counts.round(4).to_string(index=False)}")
            shown = diversity(first, args.seeds[0], args.small_epochs)
            print(f"\nwhose alarms differ from a replica's\n{shown.round(3).to_string()}")
    draw(tables, counts, args.output)
