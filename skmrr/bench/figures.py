"""Figures 4 and 5 of Rouhani et al. (2019), drawn from our own networks and attacks."""

from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import mannwhitneyu
from sklearn.decomposition import PCA
from sklearn.preprocessing import normalize

from skmrr.bench.problems import Problem
from skmrr.bench.report import Report, markdown
from skmrr.bench.run import Run
from skmrr.bench.systems import ENSEMBLE
from skmrr.bench.transferability import Logits
from skmrr.bench.victims import outputs, predict
from skmrr.nn.replica import LatentMap, replicate

N_POINTS = 1500  # images in a cloud
SP = 0.01


def figures(run: Run) -> Report:
    """Draw figures 4 and 5 for the first seed, and test figure 5's question on all of them.

    They are of the latent defender and its ensemble, whichever detectors the run names. The cache
    is shared with `table1`.
    """
    name = run.dataset
    hardness = []
    first: dict[str, Any] = {}
    for problem in run.attacked_problems():
        fitted = run.fit(problem, [ENSEMBLE])
        latent = fitted[ENSEMBLE].detector.named_defenders_["latent_0"]
        latent_map = latent.statistic_.latent_map
        frame = hardness_of(problem, fitted[ENSEMBLE].detector, latent_map)
        hardness.append(frame.assign(seed=problem.seed))
        if not first:
            first = {
                "clouds": clouds_of(problem, latent_map),
                "distances": distances_of(problem, latent_map),
            }
            examples = examples_of(problem, frame)
    frame = pd.concat(hardness, ignore_index=True)
    table = hardness_table(frame)
    text = (
        "Figure 4: features of the last checkpoint of clean test images, three principal "
        "components, in the victim and in the latent defender; below, distances of clean and "
        "adversarial images to the centre of the class that the victim names.\n\n"
        "Figure 5: which adversarials does the ensemble miss at "
        f"{SP:.0%} false alarms, and which fool its latent defender's network too? Median margin "
        "(logit of the class minus the best other) of the *clean* image, by outcome, and the "
        "probability that an image of that outcome has a smaller margin than a caught one of the "
        "same attack (Mann–Whitney; .5 is no difference).\n\n" + markdown(table)
    )
    return Report(
        f"figures-{name}",
        f"Figures 4 and 5, {name}",
        text,
        {"hardness": frame, "distances": first["distances"], "outcomes": table.reset_index()},
        {
            "figure4": lambda: draw_clouds(first["clouds"], first["distances"]),
            "figure5": lambda: draw_hardness(frame, examples),
        },
    )


def latent_maps_of(problem: Problem, latent_map: LatentMap) -> dict[str, LatentMap]:
    """Victim as it is, its checkpoint seen on the unit sphere, and the latent defender."""
    return {"victim": replicate(problem.victim).eval(), "latent defender": latent_map}


def clouds_of(problem: Problem, latent_map: LatentMap) -> dict[str, pd.DataFrame]:
    """Three principal components of clean features, in the victim and after realignment."""
    X, y = problem.X_test[:N_POINTS], problem.y_test[:N_POINTS]
    clouds = {}
    for name, network in latent_maps_of(problem, latent_map).items():
        points = PCA(3, random_state=0).fit_transform(outputs(network, X))
        clouds[name] = pd.DataFrame(points, columns=["x", "y", "z"]).assign(label=y)
    return clouds


def distances_of(problem: Problem, latent_map: LatentMap) -> pd.DataFrame:
    """Distance of clean and adversarial images to the centre of the class the victim names."""
    adversarial = np.concatenate([a.X[:200] for a in problem.attacks.values()])
    frames = []
    for name, network in latent_maps_of(problem, latent_map).items():
        fit = outputs(network, problem.X_fit[:5000])
        labels = problem.y_fit[:5000]
        centres = normalize(np.stack([fit[labels == c].mean(0) for c in range(10)]))
        for kind, X in (("clean", problem.X_test), ("adversarial", adversarial)):
            own = centres[predict(problem.victim, X)]
            distance = np.linalg.norm(outputs(network, X) - own, axis=1)
            frames.append(pd.DataFrame({"network": name, "rows": kind, "distance": distance}))
    return pd.concat(frames, ignore_index=True)


def hardness_of(problem: Problem, detector, latent_map: LatentMap) -> pd.DataFrame:
    """Of each success: whether it is flagged, fools the latent defender, and its clean margin."""
    logits = outputs(problem.victim, problem.X_test)
    own = np.take_along_axis(logits, problem.y_test[:, None], 1)[:, 0]
    np.put_along_axis(logits, problem.y_test[:, None], -np.inf, 1)
    margin = own - logits.max(1)
    network = Logits(latent_map).eval()
    frames = []
    for name, attack in problem.attacks.items():
        if not len(attack.X):
            continue
        score = detector.score_samples(attack.X)
        named = predict(network, attack.X)
        frames.append(
            pd.DataFrame(
                {
                    "attack": name,
                    "success": np.arange(len(score)),
                    "row": attack.rows,
                    "missed": score >= np.log(SP),
                    "transferred": named == predict(problem.victim, attack.X),
                    "clean_margin": margin[attack.rows],
                }
            )
        )
    return pd.concat(frames, ignore_index=True)


def hardness_table(frame: pd.DataFrame) -> pd.DataFrame:
    """Median clean margin by outcome, and how it compares with those that are caught."""
    is_caught = ~frame["missed"] & ~frame["transferred"]
    outcomes = {
        "caught, not transferred": is_caught,
        "missed": frame["missed"],
        "transferred": frame["transferred"],
    }
    rows = {}
    for name, mask in outcomes.items():
        margins = frame.loc[mask, "clean_margin"]
        rows[name] = {"n": len(margins), "median margin": margins.median(), "P(smaller)": np.nan}
        if mask is not is_caught:
            rows[name]["P(smaller)"] = smaller_within_attacks(frame, is_caught, mask)
    return pd.DataFrame(rows).T.rename_axis("outcome").astype({"n": int})


def smaller_within_attacks(frame: pd.DataFrame, one, other) -> float:
    """Probability that the margin of `other` is the smaller, both being of one attack and seed.

    Across attacks it would tell weak attacks, which succeed on small margins alone, from strong.
    """
    smaller, pairs = 0.0, 0
    for _, part in frame.groupby(["seed", "attack"]):
        ones, others = (part.loc[mask[part.index], "clean_margin"] for mask in (one, other))
        if len(ones) and len(others):
            smaller += mannwhitneyu(ones, others).statistic
            pairs += len(ones) * len(others)
    return smaller / pairs if pairs else np.nan


def examples_of(problem: Problem, frame: pd.DataFrame, n: int = 8) -> list[tuple]:
    """Missed adversarials with what they were and what the victim takes them for."""
    missed = frame[frame["missed"]].drop_duplicates("row").head(n)
    examples = []
    for attack, success, row in zip(
        missed["attack"], missed["success"], missed["row"], strict=True
    ):
        image = problem.attacks[attack].X[success]
        named = int(predict(problem.victim, image[None])[0])
        examples.append((image, problem.X_test[row], int(problem.y_test[row]), named))
    return examples


def draw_clouds(clouds: dict[str, pd.DataFrame], distances: pd.DataFrame):
    """Draw figure 4."""
    from matplotlib import pyplot as plt

    figure = plt.figure(figsize=(10, 8), layout="constrained")
    for k, (name, cloud) in enumerate(clouds.items()):
        ax = figure.add_subplot(2, 2, k + 1, projection="3d")
        ax.scatter(cloud["x"], cloud["y"], cloud["z"], c=cloud["label"], cmap="tab10", s=4)
        ax.set(title=f"features in the {name}", xticklabels=[], yticklabels=[], zticklabels=[])
        ax = figure.add_subplot(2, 2, k + 3)
        part = distances[distances["network"] == name]
        bins = np.linspace(0, part["distance"].max(), 60).tolist()
        for rows, group in part.groupby("rows", sort=False):
            ax.hist(group["distance"], bins, density=True, alpha=0.6, label=rows)
        ax.set(xlabel="distance to the centre of the class named", ylabel="density", yscale="log")
        ax.legend(title=name)
    return figure


def draw_hardness(frame: pd.DataFrame, examples: list[tuple]):
    """Draw figure 5."""
    from matplotlib import pyplot as plt

    figure = plt.figure(figsize=(10, 7), layout="constrained")
    top, bottom = np.asarray(figure.subfigures(2, 1, height_ratios=[1.2, 1]))
    axes = top.subplots(1, 2, sharey=True)
    bins = np.quantile(frame["clean_margin"], np.linspace(0, 1, 9))
    middle = (bins[1:] + bins[:-1]) / 2
    which = np.digitize(frame["clean_margin"], bins[1:-1])
    for ax, outcome in zip(axes, ("missed", "transferred"), strict=True):
        share = [frame.loc[which == k, outcome].mean() for k in range(len(middle))]
        ax.plot(middle, share, "o-")
        ax.set(xlabel="margin of the clean image, logits", title=f"share {outcome}")
    axes[0].set(ylabel="share of adversarials", ylim=(0, None))
    if examples:
        cells = np.atleast_2d(bottom.subplots(2, len(examples), squeeze=False))
        for column, (image, clean, true, named) in zip(cells.T, examples, strict=True):
            for ax, picture, title in zip(
                column, (clean, image), (f"a {true}", f"missed: {named}"), strict=True
            ):
                ax.imshow(np.moveaxis(picture, 0, -1).squeeze(), cmap="gray", vmin=0, vmax=1)
                ax.set(xticks=[], yticks=[])
                ax.set_title(title, fontsize=9)
    return figure
