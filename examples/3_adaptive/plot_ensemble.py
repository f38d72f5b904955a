"""
Who raised the alarm?
=====================

Put defenders that look at different things beside a small network and fuse what they say into one
risk. Then see which of them notices which attack, what an image refused is worth, and what more
defenders of the same kind cost.
"""

import argparse
import time
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch
from art.attacks.evasion import BasicIterativeMethod, DeepFool, FastGradientMethod
from art.estimators.classification import PyTorchClassifier
from sklearn.frozen import FrozenEstimator
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import train_test_split
from torch import nn

from skmrr import LatentDefender, MarginDetector, MRREnsemble, default_defenders
from skmrr.datasets import load_digits_images
from skmrr.evaluation import RiskHistogramDisplay, false_alarm_interval, tpr_at_fpr

parser = argparse.ArgumentParser()
parser.add_argument("--epochs", type=int, default=30, help="of the network and of the defenders")
parser.add_argument("--output", type=Path, default=Path(__file__).parent / "output")
args, _ = parser.parse_known_args()
args.output.mkdir(parents=True, exist_ok=True)
torch.manual_seed(0)
torch.set_num_threads(1)  # images of 8×8 are too small to share among threads
SP = 0.05  # share of clean images that may be flagged

# %%
# A classifier that knows nothing of all this
# -------------------------------------------

X, y = load_digits_images()  # (1797, 1, 8, 8) in [0, 1]
X_rest, X_test, y_rest, y_test = train_test_split(X, y, test_size=0.25, random_state=0, stratify=y)
X_train, X_new, y_train, y_new = train_test_split(X_rest, y_rest, test_size=0.2, random_state=0)

classifier = nn.Sequential(
    nn.Conv2d(1, 16, 3, padding=1),
    nn.ReLU(),
    nn.Conv2d(16, 32, 3, padding=1),
    nn.ReLU(),
    nn.MaxPool2d(2),
    nn.Flatten(),
    nn.Linear(512, 64),
    nn.ReLU(),
    nn.Dropout(0.5),
    nn.Linear(64, 10),
)
optimizer = torch.optim.Adam(classifier.parameters(), 2e-3)
x, labels = torch.as_tensor(X_train), torch.as_tensor(y_train)
for _ in range(args.epochs):
    for batch in torch.randperm(len(x)).split(64):
        optimizer.zero_grad()
        nn.functional.cross_entropy(classifier(x[batch]), labels[batch]).backward()
        optimizer.step()
classifier.eval()

# %%
# Defenders beside it
# -------------------
# The classifier runs once for each image, every member is shown that pass, and the classifier's own
# margin is a member too. Each member turns what it sees into a p-value, one that depends on the
# margin among clean images of about the same margin; the p-values are fused, and the fusion is
# calibrated anew on clean images that neither the classifier nor a member has seen. Two noise
# defenders, which are no default, stand beside them to show what they are worth.

ensemble = MRREnsemble(
    classifier,
    defenders=default_defenders(
        classifier,
        latent=LatentDefender(
            exploration_radius="auto",
            transfer_radius="auto",
            learning_rate=3e-3,
            max_epochs=args.epochs,
        ),
        noise=True,
    ),
    clip_values=(0, 1),
    security_parameter=SP,
    calibration_fraction=0,
    random_state=0,
)
ensemble.fit(X_train, y_train)  # clean images alone, no attack
ensemble.calibrate(X_new)  # half of them for the members, half for the fusion
print(f"members: {', '.join(ensemble.member_names_)}")

# %%
# An attacker
# -----------
# The attacker knows the classifier and not the ensemble. Only attacks that succeed count: the image
# was classified rightly and no longer is.

wrapped = PyTorchClassifier(
    classifier, nn.CrossEntropyLoss(), (1, 8, 8), nb_classes=10, clip_values=(0, 1)
)
attacks = {
    "FGSM 0.1": FastGradientMethod(wrapped, eps=0.1, batch_size=512),
    "BIM 0.05": BasicIterativeMethod(wrapped, 0.05, 0.05 / 8, 20, batch_size=512, verbose=False),
    "BIM 0.1": BasicIterativeMethod(wrapped, 0.1, 0.1 / 8, 20, batch_size=512, verbose=False),
    "DeepFool": DeepFool(wrapped, 20, epsilon=0.02, batch_size=512, verbose=False),
}
decided = wrapped.predict(X_test).argmax(1)
adversarial = {}
for name, attack in attacks.items():
    X_attacked = attack.generate(X_test, y_test)
    fooled = (decided == y_test) & (wrapped.predict(X_attacked).argmax(1) != y_test)
    adversarial[name] = X_attacked[fooled]

# %%
# One risk
# --------
# The clean side is every test image, also those that the classifier gets wrong by itself.

clean_score = ensemble.score_samples(X_test)
scores = {name: ensemble.score_samples(X_attacked) for name, X_attacked in adversarial.items()}


def auc(clean, attacked):
    """AUC of scores, which are low where an image is odd."""
    return roc_auc_score(np.repeat([0, 1], [len(clean), len(attacked)]), -np.r_[clean, attacked])


print(f"classifier: {np.mean(decided == y_test):.1%} of {len(X_test)} test images right")
print("\nattack      fooled    AUC   caught at 5 % false alarms")
for name, score in scores.items():
    caught = tpr_at_fpr(clean_score, score, fpr=0.05)
    print(f"{name:10} {len(score):7} {auc(clean_score, score):7.3f}   {caught:.1%}")
low, high = false_alarm_interval(SP, len(X_test), n_calibration=len(X_new) // 2)
alarms = np.mean(ensemble.predict(X_test) == -1)
print(f"\nfalse alarms on clean test images: promised {SP:.0%}, measured {alarms:.1%}")
print(f"what chance allows (99 %), as {len(X_new) // 2} images set the threshold:")
print(f"  [{low:.1%}, {high:.1%}]")

# %%
# Risks near 1 are easier to tell apart as 1 − risk, a p-value, on a logarithmic scale. With so few
# images to calibrate on, p-values below about 1 % are extrapolated: they rank and promise nothing.

fig, axis = plt.subplots(figsize=(8, 4), layout="constrained")
attacked = np.concatenate(list(scores.values()))
RiskHistogramDisplay.from_predictions(
    np.repeat([0, -1], [len(clean_score), len(attacked)]),  # −1: adversarial
    np.r_[clean_score, attacked],
    security_parameters=[SP],
    scale="p-value",
    bins=40,
    name="all attacks",
    ax=axis,
)
axis.set_title("Risk of clean and attacked images")
fig.savefig(args.output / "plot_ensemble_risk.png", dpi=120)

# %%
# Who raised the alarm
# --------------------
# Each member by itself, at the same threshold. Two of the rows are no attacks: clean images, and
# clean images with random noise that the classifier does not mind. The dense-noise defender flags
# faint noise as readily as it flags an attack, which is why it is no default: it is for inputs of
# one clean source. The sparse-noise defender waits for changes of a few pixels, which none of these
# attacks makes.

noise = 0.02 * np.random.default_rng(0).choice([-1, 1], X_test.shape)
X_noisy = np.clip(X_test + noise, 0, 1).astype(np.float32)
unmoved = np.mean(wrapped.predict(X_noisy).argmax(1) == decided)
groups = {"clean": X_test, "clean + noise": X_noisy, **adversarial}
flagged = np.array(
    [
        [*(ensemble.member_risks(images) > 1 - SP).mean(), np.mean(ensemble.risk(images) > 1 - SP)]
        for images in groups.values()
    ]
)
judges = [*ensemble.member_names_, "fused"]
print(f"\nrandom noise of ±0.02 leaves {unmoved:.1%} of the classifier's decisions as they were")
print(f"share of images flagged at SP = {SP:.0%}")
print(f"{'':14}" + "".join(f"{judge:>11}" for judge in judges))
for name, shares in zip(groups, flagged, strict=True):
    print(f"{name:14}" + "".join(f"{share:11.1%}" for share in shares))

fig, axis = plt.subplots(figsize=(7.5, 4.2), layout="constrained")
image = axis.imshow(flagged, vmin=0, vmax=1, cmap="Blues", aspect="auto")
for (row, column), share in np.ndenumerate(flagged):
    colour = "white" if share > 0.6 else "black"
    axis.text(column, row, f"{share:.0%}", ha="center", va="center", color=colour)
axis.axvline(len(judges) - 1.5, color="white", linewidth=4)
axis.axhline(1.5, color="white", linewidth=4)
axis.set_xticks(range(len(judges)), judges)
axis.set_yticks(range(len(groups)), groups)
axis.set_title(f"Share of images flagged at SP = {SP:.0%}: no attack above, attacks below")
fig.colorbar(image, label="share flagged")
fig.savefig(args.output / "plot_ensemble_members.png", dpi=120)

# %%
# What a refusal is worth
# -----------------------
# Now half of what comes in is adversarial, in equal parts of all attacks, and what is trusted least
# is refused. The classifier's own confidence is the obvious thing to refuse by, but some attacks
# leave it high. One who knew which decisions are wrong would refuse these alone.

images = np.concatenate([X_test, *adversarial.values()])
weight = np.concatenate(
    [
        np.full(len(X_test), 0.5 / len(X_test)),
        *(np.full(len(a), 0.5 / len(adversarial) / len(a)) for a in adversarial.values()),
    ]
)
is_right = np.r_[decided == y_test, np.zeros(len(images) - len(X_test), dtype=bool)]
with torch.no_grad():
    confidence = classifier(torch.as_tensor(images)).softmax(1).amax(1).numpy()
trusts = {
    "ensemble": np.concatenate([clean_score, *scores.values()]),
    "softmax confidence": confidence,
}

print("\naccuracy on the accepted, half of all being adversarial")
print("accepted        " + "".join(f"{name:>20}" for name in trusts))
curves = {}
for name, trust in trusts.items():
    order = np.argsort(-trust, kind="stable")
    accepted = np.cumsum(weight[order])
    curves[name] = accepted, np.cumsum((weight * is_right)[order]) / accepted
for share in (0.25, 0.4, 0.5, 0.75, 1):
    accuracies = [np.interp(share, *curve) for curve in curves.values()]
    print(f"{share:8.0%}        " + "".join(f"{accuracy:20.1%}" for accuracy in accuracies))

fig, axis = plt.subplots(figsize=(7, 4.2), layout="constrained")
for name, (accepted, accuracy) in curves.items():
    axis.plot(accepted, accuracy, label=name)
best = np.mean(decided == y_test) / 2
shares = np.linspace(0.01, 1, 200)
axis.plot(shares, np.minimum(1, best / shares), "k:", label="one who knows", zorder=0)
at_threshold = np.sum(weight[trusts["ensemble"] >= ensemble.offset_])
accuracy_there = np.interp(at_threshold, *curves["ensemble"])
axis.plot(at_threshold, accuracy_there, "o", color="C0", label=f"ensemble, at SP = {SP:.0%}")
axis.set(
    xlim=(0, 1),
    ylim=(None, 1.02),
    xlabel="share of inputs accepted",
    ylabel="accuracy on the accepted",
    title="Half of the inputs are adversarial",
)
axis.legend(loc="lower left", title="refused by")
fig.savefig(args.output / "plot_ensemble_reject.png", dpi=120)

# %%
# More of the same
# ----------------
# Eight narrow defenders, a quarter of the classifier's width each, trained briefly. Frozen, they
# are fused anew by one, by two, by four: nothing is trained again. The fusion is calibrated as a
# whole, so the promise does not depend on how many there are.
#
# What they catch is another question. Trained this briefly, defenders this small see little, and a
# fusion that weighs all members alike lets them outvote the margin, which notices by itself.
# The one defender above, a copy of the whole classifier trained for longer, sees more than all
# eight.

n_epochs = max(1, args.epochs // 5)
ensemble_8 = MRREnsemble(
    classifier,
    defenders=default_defenders(
        classifier,
        latent=LatentDefender(exploration_radius="auto", learning_rate=3e-3, max_epochs=n_epochs),
        n_latent=8,
        width=0.25,
        margin=False,
    ),
    clip_values=(0, 1),
    calibration_fraction=0,
    random_state=0,
).fit(X_train, y_train)
frozen = [(name, FrozenEstimator(m)) for name, m in ensemble_8.named_defenders_.items()]
margin = ("margin", MarginDetector(), 1)
ensembles = {
    n: MRREnsemble(
        classifier,
        defenders=[margin, *((*pair, 1 / n) for pair in frozen[:n])],  # they share one weight
        clip_values=(0, 1),
        security_parameter=SP,
        random_state=0,
    ).fit(X_new, y_new)
    for n in (1, 2, 4, 8)
}


def ask_classifier(X):
    """The classifier's pass alone, in batches as large as the ensemble's."""
    with torch.no_grad():
        for batch in torch.as_tensor(X).split(ensemble.batch_size_):
            classifier(batch).argmax(1)


# In turn, so that other work on the machine is not charged to one of them; medians.
runs = {0: ask_classifier, **{n: e.score_samples for n, e in ensembles.items()}}
seconds = {n: [] for n in runs}
for _ in range(15):
    for n, run in runs.items():
        start = time.perf_counter()
        run(X_test)
        seconds[n].append(time.perf_counter() - start)
cost = {n: np.median(times) / np.median(seconds[0]) for n, times in seconds.items() if n > 0}
false_alarms = {n: np.mean(e.predict(X_test) == -1) for n, e in ensembles.items()}

print(f"\nnarrow latent defenders (epochs: {n_epochs}) beside the classifier's margin")
print("   N  false alarms  cost of scoring   mean AUC")
for n, e in ensembles.items():
    clean = e.score_samples(X_test)
    mean_auc = np.mean([auc(clean, e.score_samples(a)) for a in adversarial.values()])
    print(f"{n:4} {false_alarms[n]:13.1%} {cost[n]:15.1f}× {mean_auc:10.3f}")
clean = ensemble.member_risks(X_test)["margin"]
mean_auc = np.mean([auc(-clean, -ensemble.member_risks(a)["margin"]) for a in adversarial.values()])
print(f"the margin by itself: mean AUC {mean_auc:.3f}")
print(f"chance allows false alarms in [{low:.1%}, {high:.1%}]; cost 1× is the classifier alone")

fig, (left, right) = plt.subplots(1, 2, figsize=(10, 3.8), layout="constrained")
left.axhspan(low, high, alpha=0.2, label="what chance allows (99 %)")
left.axhline(SP, color="black", linestyle="--", label=f"promised: SP = {SP:.0%}")
left.plot(list(false_alarms), list(false_alarms.values()), "o-", label="measured")
left.set(
    ylim=(0, 1.4 * high), ylabel="clean test images flagged", title="The promise does not move"
)
left.legend()
right.plot(list(cost), list(cost.values()), "o-", label="ensemble")
right.axhline(1, color="black", linestyle="--", label="classifier alone")
right.set(ylim=(0, None), ylabel="time, in passes of the classifier", title="The cost does")
right.legend()
for axis in (left, right):
    axis.set_xscale("log", base=2)
    axis.set_xticks(list(cost), [str(n) for n in cost])
    axis.set_xlabel("narrow latent defenders N")
fig.savefig(args.output / "plot_ensemble_size.png", dpi=120)
print(f"\npictures: {args.output / 'plot_ensemble_*.png'}")

# %%
# None of these attackers knew of the ensemble. It is differentiable from end to end, and one who
# knows the defenders can search for images that fool the classifier and please them too. How often
# that succeeds is another measurement, and nothing above replaces it.
