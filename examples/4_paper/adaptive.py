"""
The attacker knows everything
=============================

Attacks on the victim and its detector together, with gradients through both. Success means that an
image is misclassified and not flagged, at a threshold that clean images have set before.

On MNIST: the explored defender of ``mnist_latent.py`` (radius 0.2), a certified one, a small
network trained by interval bounds on the victim's own 50,000 clean training images, and the average
of three such networks. Of the latter two the share of images that *any* attack within ε can win is
known without attacking, for all test images and for the first ``--attacked`` ones; images that it
rules out are not attacked. Then Carlini-L2 with the detector in its loss: how much farther than
without? On CIFAR-10: an explored
and a plain latent defender of ResNet-20.

The certified defender's training (radius 0.33, certified radius 0.1, epochs) was chosen on seed 0.

Needs ``mnist.npz``, or ``cifar10.npz`` with the weights of ResNet-20. Fitted defenders are kept in
the output folder, so that an interrupted run resumes.
"""

import argparse
import time
from pathlib import Path

import joblib
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from art.attacks.evasion import SquareAttack

from skmrr import LatentDefender, replicate
from skmrr.art import defended_classifier
from skmrr.attacks import (
    AttackResult,
    LagrangianPGD,
    OrthogonalPGD,
    SelectivePGD,
    adaptive_suite,
)
from skmrr.attacks.result import verified
from skmrr.bench.networks import build_certified
from skmrr.bench.problems import KINDS, N_VICTIM, cifar10, mnist
from skmrr.datasets import load_cifar10, load_mnist
from skmrr.evaluation import (
    auc_interval,
    certified_success_rate,
    evaluate_adaptive,
    evasion_cost,
    false_alarm_interval,
    flag_rates,
    tpr_at_fpr,
)
from skmrr.nn.intervals import IntervalMap

HERE = Path(__file__).parent
MNIST_EPS = (0.1, 0.2, 0.3)
CIFAR10_EPS = (1 / 255, 2 / 255, 4 / 255, 8 / 255)
SP = (0.01, 0.05, 0.5)


def fit_explored(data, seed: int, epochs: int) -> LatentDefender:
    """Fit the headline defender of ``mnist_latent.py``."""
    return LatentDefender(
        replicate(data.victim),
        classifier=data.victim,
        exploration_radius=0.2,
        learning_rate=3e-3,
        max_epochs=epochs,
        clip_values=(0, 1),
        calibration_fraction=0,
        random_state=seed,
    ).fit(data.X_fit, data.y_fit)


def fit_certified(data, seed: int, epochs: int) -> LatentDefender:
    """Fit a defender whose margin is bounded over a ball."""
    X, y = load_mnist("train", n_samples=N_VICTIM)
    return LatentDefender(
        build_certified(),
        classifier=data.victim,
        statistic="certified",
        exploration_radius=0.33,
        certified_radius=0.1,
        learning_rate=2e-3,
        max_epochs=epochs,
        training_batch_size=128,
        clip_values=(0, 1),
        calibration_fraction=0,
        random_state=seed,
    ).fit(X, y)


def fit_averaged(data, networks: list[int], epochs: int, output: Path) -> LatentDefender:
    """Average the certified networks of several seeds, which know nothing of the victim."""
    fitted = [
        kept(output / f"mnist_certified_{k}.joblib", fit_certified, data, k, epochs)
        for k in networks
    ]
    return LatentDefender(
        IntervalMap.average([defender.module_.statistic.latent_map for defender in fitted]),
        classifier=data.victim,
        statistic="certified",
        realign=False,
        certified_radius=0.1,
        clip_values=(0, 1),
        calibration_fraction=0,
    ).fit(data.X_fit, data.y_fit)


def fit_resnet(data, seed: int, epochs: int, *, radius: float, n_rows: int) -> LatentDefender:
    """Fit a replica of ResNet-20, explored or, with a radius of 0, plain."""
    return LatentDefender(
        replicate(data.victim),
        classifier=data.victim,
        exploration_radius=radius,
        exploration_steps=1,
        max_epochs=epochs,
        training_batch_size=128,
        clip_values=(0, 1),
        calibration_fraction=0,
        random_state=seed,
    ).fit(*load_cifar10("train", n_samples=n_rows))


def kept(path: Path, fit, *args, **params) -> LatentDefender:
    """Fitted defender from a file, or fitted now and put there."""
    if not path.exists():
        start = time.perf_counter()
        defender = fit(*args, **params)
        print(f"{path.stem}: fitted in {time.perf_counter() - start:.0f} s", flush=True)
        joblib.dump(defender, path)
    return joblib.load(path)


class Square:
    """ART's black-box Square attack on the label-aware view, one true class after the other."""

    def __init__(self, detector, max_iter: int):
        self.detector, self.max_iter = detector, max_iter

    def __call__(self, network, x, labels, *, eps, **params) -> AttackResult:
        found = torch.full_like(x, torch.nan)
        for c in labels.unique().tolist():
            view = defended_classifier(
                self.detector, security_parameter=network.security_parameter, labels=c
            )
            attack = SquareAttack(view, eps=eps, max_iter=self.max_iter, verbose=False)
            rows = labels == c
            found[rows] = torch.as_tensor(attack.generate(x[rows].numpy(), labels[rows].numpy()))
        return verified(network, x, found, labels, norm=torch.inf)


def static(defender, data) -> pd.DataFrame:
    """AUC and TPR at 1 % FPR against attacks that see the victim alone."""
    clean = defender.score_samples(data.X_test)
    rows = {}
    for name, images in data.adversarial.items():
        score = defender.score_samples(images)
        rows[name] = {"AUC": auc_interval(clean, score)[0], "TPR": tpr_at_fpr(clean, score, 0.01)}
    return pd.DataFrame(rows).T


def alarms(defender, data) -> None:
    """Print the false alarms on all clean test images."""
    clean = defender.score_samples(data.X_test)
    for sp in (0.01, 0.05):
        low, high = false_alarm_interval(sp, len(clean), n_calibration=len(data.X_calibration))
        share = np.mean(clean < np.log(sp))
        print(f"  false alarms at SP {sp:.0%}: {share:.2%}  [{low:.2%}, {high:.2%}]")


def attacked(name: str, defender, data, eps, suite, n_attacked: int, **params) -> pd.DataFrame:
    """Success rates of a suite, as rows of the final table."""
    start = time.perf_counter()
    outcome = evaluate_adaptive(
        defender,
        data.X_test,
        data.y_test,
        eps=eps,
        attacks=suite,
        guides=data.X_calibration[:5000],
        n_attacked=n_attacked,
        security_parameters=(0.05, 0.5),
        **params,
    )
    table = outcome.success.assign(defender=name)
    seconds = time.perf_counter() - start
    shown = table.drop(columns=["defender"]).round(4).to_string(index=False)
    print(f"\n{name}: {n_attacked} images, {seconds:.0f} s\n{shown}", flush=True)
    print(outcome.clean.round(4).to_string(index=False), flush=True)
    return table


def run_mnist(seed: int, args, memory) -> list[pd.DataFrame]:
    """Measure both defenders of one victim."""
    data = mnist(
        seed,
        memory,
        n_attacked=args.static,
        victim_epochs=args.victim_epochs,
        kinds=KINDS if args.static else (),
    )
    tables = []
    for name in args.defenders:
        if name == "averaged":
            defender = fit_averaged(data, args.networks, args.certified_epochs, args.output)
        else:
            fit, epochs = {
                "explored": (fit_explored, args.epochs),
                "certified": (fit_certified, args.certified_epochs),
            }[name]
            defender = kept(args.output / f"mnist_{name}_{seed}.joblib", fit, data, seed, epochs)
        defender.calibrate(data.X_calibration)
        print(f"\nMNIST, seed {seed}, {name} defender")
        alarms(defender, data)
        if args.static:
            print(static(defender, data).round(4).T.to_string())
        print(flag_rates(defender, data.X_test[:2000]).round(4).to_frame().T.to_string())
        bounded = name != "explored"
        if bounded:
            everywhere = certified_success_rate(
                defender, data.X_test, data.y_test, eps=MNIST_EPS, security_parameters=SP
            )
            first = certified_success_rate(
                defender,
                data.X_test[: args.attacked],
                data.y_test[: args.attacked],
                eps=MNIST_EPS,
                security_parameters=SP,
            )
            print("  no attack can exceed, on all test images and on the first ones:")
            both = everywhere.assign(first=first["success_rate"])
            print(both.round(4).to_string(index=False), flush=True)
        suite = adaptive_suite(steps=args.steps, restarts=args.restarts)
        if args.square:
            suite["Square (black box)"] = Square(defender, args.square)
        n_attacked = args.attacked if bounded else args.attacked_explored
        table = attacked(
            f"{name} {seed}",
            defender,
            data,
            MNIST_EPS,
            suite,
            n_attacked,
            trust_bounds=bounded,
            per_attack=bounded,
        )
        tables.append(table)
        if args.carlini:
            costs = evasion_cost(
                defender,
                data.X_test,
                data.y_test,
                guides=data.X_calibration[:5000],
                n_attacked=args.carlini,
                max_iter=args.carlini_steps,
            )
            print(f"\nCarlini-L2, {args.carlini} images\n{costs.round(3).to_string(index=False)}")
            costs.assign(defender=name, seed=seed).to_csv(
                args.output / f"carlini_{name}_{seed}.csv", index=False
            )
    return tables


def run_cifar10(seed: int, args, memory) -> list[pd.DataFrame]:
    """Measure a plain and an explored replica of ResNet-20."""
    data = cifar10(seed, memory, n_attacked=args.static, kinds=KINDS if args.static else ())
    shared = {"start": "clean", "steps": args.steps, "n_targets": 3}
    suite = {
        "Lagrangian": LagrangianPGD(weights=(1.0,), **shared),
        "selective": SelectivePGD(**shared),
        "orthogonal": OrthogonalPGD(**shared),
    }
    tables = []
    for name, radius in (("plain", 0.0), ("explored", 4 / 255)):
        path = args.output / f"cifar10_{name}.joblib"
        params = {"radius": radius, "n_rows": args.cifar_rows}
        defender = kept(path, fit_resnet, data, 0, args.cifar_epochs, **params)
        defender.calibrate(data.X_calibration)
        print(f"\nCIFAR-10, seed {seed}, {name} defender")
        alarms(defender, data)
        if args.static:
            print(static(defender, data).round(4).T.to_string())
        tables.append(
            attacked(f"CIFAR-10 {name} {seed}", defender, data, CIFAR10_EPS, suite, args.attacked)
        )
    return tables


def draw(table: pd.DataFrame, output: Path) -> None:
    """Draw the worst case against ε."""
    worst = table[table["attack"] == "worst case"]
    fig, ax = plt.subplots(figsize=(7, 4.5), layout="constrained")
    for (name, sp), rows in worst.groupby(["defender", "security_parameter"]):
        (line,) = ax.plot(
            rows["eps"],
            rows["success_rate"],
            "o-" if sp == 0.05 else "s--",
            label=f"{name}, SP {sp:g}",
        )
        ax.fill_between(rows["eps"], rows["low"], rows["high"], alpha=0.15, color=line.get_color())
    ax.set(
        xlabel="ε, radius of the ℓ∞ ball", ylabel="attack success, worst case", ylim=(-0.02, 1.02)
    )
    ax.legend(fontsize=8)
    fig.savefig(output / "adaptive.png", dpi=120)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", choices=["mnist", "cifar10"], default="mnist")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--defenders", nargs="+", default=["averaged", "certified", "explored"])
    parser.add_argument("--networks", type=int, nargs="+", default=[1, 2, 3], help="to average")
    parser.add_argument("--attacked", type=int, default=1000, help="images, certified defender")
    parser.add_argument("--attacked-explored", type=int, default=100)
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--restarts", type=int, default=5)
    parser.add_argument("--square", type=int, default=2000, help="queries of the black-box attack")
    parser.add_argument("--carlini", type=int, default=100, help="images of Carlini-L2")
    parser.add_argument("--carlini-steps", type=int, default=200)
    parser.add_argument("--static", type=int, default=200, help="images of the static attacks")
    parser.add_argument("--victim-epochs", type=int, default=25, help="of MNIST's victim")
    parser.add_argument("--epochs", type=int, default=26, help="of the explored defender")
    parser.add_argument("--certified-epochs", type=int, default=24)
    parser.add_argument("--cifar-epochs", type=int, default=4)
    parser.add_argument("--cifar-rows", type=int, default=20_000)
    parser.add_argument("--output", type=Path, default=HERE / "output")
    args = parser.parse_args()
    args.output.mkdir(parents=True, exist_ok=True)
    torch.set_flush_denormal(True)
    memory = joblib.Memory(args.output / "cache", verbose=0)
    run = {"mnist": run_mnist, "cifar10": run_cifar10}[args.data]
    parts = [part for seed in args.seeds for part in run(seed, args, memory)]
    if not parts:
        raise SystemExit
    table = pd.concat(parts)
    table.to_csv(args.output / f"adaptive_{args.data}.csv", index=False)
    draw(table, args.output)
    print(f"\ntable and picture: {args.output}")
