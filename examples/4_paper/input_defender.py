"""
The input defender on digits, MNIST and CIFAR-10
================================================

Both statistics of the input defender against attacks that see the victim alone. Patch size,
overlap and number of atoms are chosen on clean images, which then calibrate nothing:

- impostors: clean images judged under the classifier's second choice. A defender that knows the
  classes finds them odd.
- noise: clean images with random signs of a fixed size added to each pixel.

The residual takes the setting with the best sum of AUC on both. Relabelling need not see noise but
remove it: it takes the best difference of the AUC on impostors and the share of the noise's energy
that passes into the reconstruction. The clean side of all other figures is the whole test set, the
victim's own errors included.

Needs ``mnist.npz``, ``cifar10.npz`` and the weights of ResNet-20 (see ``skmrr.datasets``). What
takes long are the attacks: on one core a quarter of an hour for a seed of MNIST, forty minutes for
one of CIFAR-10. Victims, attacks and figures are cached in the output folder.
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
from skmrr import InputDictionaryDefender
from skmrr.bench.problems import PROBLEMS
from skmrr.evaluation import auc_interval, false_alarm_interval, tpr_at_fpr
from skmrr.nn.reconstruction import RelabelStatistic

HERE = Path(__file__).parent
N_CHOICE = 500  # images of the calibration set that choose the setting instead
NOISE = {"digits": 0.1, "mnist": 0.1, "cifar10": 8 / 255}
# (patch size, stride) and numbers of atoms per patch to choose from
GRIDS = {
    "digits": ([(4, 1), (4, 4), (8, 8)], [1, 2, 5]),
    "mnist": ([(7, 2), (7, 7), (14, 7)], [2, 5, 10]),
    "cifar10": ([(4, 2), (8, 4)], [2, 4, 8, 16]),
}
COLOUR = {"cifar10": {"remove_mean": True}}


def fit(data, statistic, n_patches, **params) -> InputDictionaryDefender:
    """Fit on the images for defenders, without calibration."""
    defender = InputDictionaryDefender(
        data.victim,
        statistic=statistic,
        clip_values=(0, 1),
        calibration_fraction=0,
        n_patches=n_patches,
        **params,
    )
    return defender.fit(data.X_fit, data.y_fit)


@torch.no_grad()
def clean_criteria(defender, X, noise) -> list[dict]:
    """AUC of both statistics on impostors and on noise, and the share of noise that passes."""
    classifier, residual = defender.classifier, defender.module_.statistic
    rebuild = residual.reconstruction
    relabel = RelabelStatistic(rebuild, classifier, torch.as_tensor(defender.classes_))
    x = torch.as_tensor(X)
    signs = np.random.default_rng(0).choice([-noise, noise], X.shape)
    noisy = (x + torch.as_tensor(signs)).clamp(0, 1).float()
    first, second = classifier(x).topk(2).indices.T
    passing = (rebuild(noisy, first) - rebuild(x, first)).square().sum()
    shared = {"passing": float(passing / (noisy - x).square().sum())}
    return [
        {
            "statistic": name,
            "impostors": auc_interval(-statistic.at(x, first), -statistic.at(x, second))[0],
            "noise": auc_interval(
                -statistic.at(x, first), -statistic.at(noisy, classifier(noisy).argmax(1))
            )[0],
            **shared,
        }
        for name, statistic in (("residual", residual), ("relabel", relabel))
    ]


def choose(tried: pd.DataFrame) -> dict[str, dict]:
    """Setting of each statistic, by the clean criteria alone."""
    merit = {
        "residual": tried["impostors"] + tried["noise"],
        "relabel": tried["impostors"] - tried["passing"],
    }
    keys = ["patch_size", "stride", "n_nonzero_coefs"]
    return {
        name: {
            key: int(tried.loc[values[tried["statistic"] == name].idxmax(), key]) for key in keys
        }
        for name, values in merit.items()
    }


def run(name: str, seed: int, sizes: tuple, code: str) -> dict:
    """Everything measured on one data set with one seed; `code` is the cache's key to it."""
    n_attacked, victim_epochs, n_patches, n_choices = sizes
    options = {"digits": {}, "cifar10": {"n_attacked": n_attacked}}
    options["mnist"] = {"n_attacked": n_attacked, "victim_epochs": victim_epochs}
    data = PROBLEMS[name](seed, memory, **options[name])
    common = {"random_state": seed, **COLOUR.get(name, {})}
    n_choice = min(N_CHOICE, len(data.X_calibration) // 2)
    X_choice, X_calibration = data.X_calibration[:n_choice], data.X_calibration[n_choice:]
    grids, sparsities = GRIDS[name]
    settings = [
        {"patch_size": size, "stride": stride, "n_nonzero_coefs": n_nonzero}
        for size, stride in grids
        for n_nonzero in sparsities
    ]
    tried = []
    for setting in settings[:n_choices]:
        defender = fit(data, "residual", n_patches // 5, **setting, **common)
        criteria = clean_criteria(defender, X_choice, NOISE[name])
        tried += [{**setting, **row} for row in criteria]
    chosen = choose(pd.DataFrame(tried))
    detections, alarms, seconds = [], [], {}
    for statistic, setting in chosen.items():
        start = time.perf_counter()
        defender = fit(data, statistic, n_patches, **setting, **common)
        seconds[statistic] = time.perf_counter() - start
        defender.calibrate(X_calibration)
        clean = defender.score_samples(data.X_test)
        key = {"data": name, "seed": seed, "statistic": statistic}
        for attack, images in data.adversarial.items():
            score = defender.score_samples(images)
            tpr = tpr_at_fpr(clean, score, fpr=0.01)
            detections.append(
                {**key, "attack": attack, "AUC": auc_interval(clean, score)[0], "TPR": tpr}
            )
        for sp in (0.01, 0.05):
            share = float(np.mean(clean < np.log(sp)))
            interval = false_alarm_interval(sp, len(clean), n_calibration=len(X_calibration))
            alarms.append({**key, "SP": sp, "share": share, "interval": interval})
    return {
        "tried": [{"data": name, "seed": seed, **row} for row in tried],
        "chosen": [{"data": name, "seed": seed, "statistic": s, **c} for s, c in chosen.items()],
        "detections": detections,
        "alarms": alarms,
        "fit seconds": seconds,
        "mean L2": data.distortion,
        "successes": {attack: len(images) for attack, images in data.adversarial.items()},
    }


def report(runs: list[dict], output: Path) -> None:
    """Print the tables, save them and draw the picture."""
    output.mkdir(parents=True, exist_ok=True)
    rows = {
        key: pd.DataFrame([row for r in runs for row in r[key]])
        for key in ("tried", "chosen", "detections", "alarms")
    }
    for key, table in rows.items():
        table.to_csv(output / f"input_defender_{key}.csv", index=False)
    print(f"chosen on clean images\n{rows['chosen'].to_string(index=False)}")
    names = list(dict.fromkeys(rows["detections"]["data"]))
    fig, axes = plt.subplots(
        len(names), 1, figsize=(9, 2.9 * len(names)), layout="constrained", squeeze=False
    )
    for name, ax in zip(names, axes[:, 0], strict=True):
        mine = [r for r in runs if r["detections"][0]["data"] == name]
        table = rows["detections"].query("data == @name")
        attacks = list(dict.fromkeys(table["attack"]))
        shown = table.pivot_table(
            ["AUC", "TPR"], "attack", "statistic", aggfunc=["mean", "min"]
        ).loc[attacks]
        shown["mean L2", "", ""] = pd.DataFrame([r["mean L2"] for r in mine]).mean()
        shown["successes", "", ""] = pd.DataFrame([r["successes"] for r in mine]).mean()
        print(f"\n{name}, {len(mine)} seed(s); TPR at 1 % FPR\n{shown.round(3).to_string()}")
        for r in mine:
            shown_seconds = ", ".join(f"{s} {t:.0f} s" for s, t in r["fit seconds"].items())
            print(f"  fit: {shown_seconds}")
        for _, row in rows["alarms"].query("data == @name").iterrows():
            low, high = row["interval"]
            print(
                f"  {row['statistic']}, seed {row['seed']}, SP {row['SP']:.0%}: false alarms "
                f"{row['share']:.2%}  [{low:.2%}, {high:.2%}]"
            )
        for statistic, of_statistic in table.groupby("statistic"):
            grouped = of_statistic.groupby("attack")["AUC"]
            mean = grouped.mean().loc[attacks]
            ax.plot(attacks, mean, marker="o", label=statistic)
            ax.fill_between(
                attacks, grouped.min().loc[attacks], grouped.max().loc[attacks], alpha=0.2
            )
        ax.set(title=name, ylabel="AUC", ylim=(None, 1.01))
        ax.tick_params("x", rotation=30)
        ax.axhline(0.5, color="grey", lw=0.8, ls=":")
    axes[0, 0].legend()
    fig.savefig(output / "input_defender.png", dpi=120)
    print(f"\ntables and picture: {output}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", nargs="+", default=["digits", "mnist", "cifar10"])
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--attacked", type=int, default=500, help="images to attack")
    parser.add_argument("--victim-epochs", type=int, default=25, help="of MNIST's victim")
    parser.add_argument("--patches", type=int, default=50_000, help="of each class")
    parser.add_argument("--settings", type=int, default=9, help="to choose from")
    parser.add_argument("--output", type=Path, default=HERE / "output")
    args = parser.parse_args()
    torch.set_flush_denormal(True)
    memory = joblib.Memory(args.output / "cache", verbose=0)
    measured = memory.cache(run)
    sizes = (args.attacked, args.victim_epochs, args.patches, args.settings)
    # Figures are kept for the very code that made them.
    sources = sorted(Path(skmrr.__file__).parent.rglob("*.py"))
    sources += [Path(__file__)]
    code = joblib.hash([path.read_bytes() for path in sources])
    report([measured(n, s, sizes, code) for n in args.data for s in args.seeds], args.output)
