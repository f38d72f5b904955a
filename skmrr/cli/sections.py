"""What a report says: numbers of `Measures` and of the detector's history, in words."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from skmrr.base import BaseDetector
from skmrr.cli import history, pictures
from skmrr.cli.measures import Effort, Measures, are_images
from skmrr.cli.page import Section, Table
from skmrr.cli.scoring import Verdict, verdicts
from skmrr.cli.settings import Settings
from skmrr.evaluation import false_alarm_interval
from skmrr.evaluation.metrics import exact_interval
from skmrr.joining import detector_of, member_names
from skmrr.monitor import RiskMonitor

RATES = (0.01, 0.05)  # shown beside the detector's own
SEVERITY = ("mild", "moderate", "strong")
PLAIN = (bool, int, float, str)


@dataclass(frozen=True)
class Subject:
    """What is reported on."""

    detector: BaseDetector
    file: Path
    settings: Settings
    settings_file: Path
    classes: Sequence[str]
    steps: dict[str, Any]
    """Its history."""
    data: Path
    names: Sequence[str]
    """Of the rows that it is measured on."""
    X: np.ndarray
    y: np.ndarray


def sections_of(subject: Subject, measures: Measures, effort: Effort) -> list[Section]:
    """All parts of a report."""
    return [
        protected(subject, measures),
        made(subject),
        false_alarms(subject, measures),
        risks(subject, measures),
        harmless(measures),
        roc(measures, effort),
        adaptive(subject, measures, effort),
        alarming(subject, measures),
        origin(subject),
    ]


def protected(subject: Subject, measures: Measures) -> Section:
    """Classifier and rows."""
    settings, n = subject.settings, len(subject.y)
    source = settings.program or f"{settings.factory}, weights {settings.weights or 'its own'}"
    right = int((measures.answers == subject.y).sum())
    low, high = settings.bounds
    rows = [
        ("Classifier", source),
        ("Classes", ", ".join(subject.classes)),
        ("Rows", f"shape {subject.X.shape[1:]}, values from {low:g} to {high:g}"),
        ("Measured on", f"{n} rows of {subject.data}"),
        ("Right by itself", _share(right, n)),
    ]
    return Section("What is protected", table=Table((), rows))


def made(subject: Subject) -> Section:
    """How the detector was fitted and calibrated."""
    detector, steps = subject.detector, subject.steps
    warnings = []
    if not {history.FIT, history.CALIBRATE} <= steps.keys():
        warnings.append(
            "How it was fitted or calibrated is not known, so rows that it has seen may be among "
            "those that it is measured on, and flatter it."
        )
    text = []
    for name, step in steps.items():
        left_out = step["n_unreadable"] and f" ({step['n_unreadable']} more could not be read)"
        text.append(
            f"{name.capitalize()}: {step['n_rows']} rows of {step['data']}, {step['date']}, by "
            f"{step['command']}{left_out or ''}."
        )
    if not warnings:
        text.append("None of these rows is among those that it is measured on.")
    if detector.harmless:
        text.append(f"Harmless: {', '.join(map(repr, detector.harmless))}.")
    members = getattr(detector, "named_defenders_", {type(detector).__name__: detector})
    rows = [(name, type(detector_of(m)).__name__, _parameters(m)) for name, m in members.items()]
    table = Table(("Member", "Kind", "Parameters that are not the default"), rows)
    return Section("How it was fitted and calibrated", text, table, warnings=warnings)


def false_alarms(subject: Subject, measures: Measures) -> Section:
    """Promised, measured, and what chance allows."""
    n, own = len(measures.scores), subject.detector.security_parameter
    calibrated_on = min(RiskMonitor.of(subject.detector).n_calibration)
    rows, warnings = [], []
    for rate in sorted({*RATES, own}):
        if rate * (calibrated_on + 1) < 1:
            continue  # so few rows promise no such rate
        low, high = false_alarm_interval(rate, n, n_calibration=calibrated_on)
        hits = int((measures.scores < np.log(rate)).sum())
        mark = " (the threshold in use)" if rate == own else ""
        rows.append((f"{rate:.3g}{mark}", _share(hits, n), f"{low:.2%} to {high:.2%}"))
        if hits > high * n:
            warnings.append(
                f"{hits / n:.2%} of clean rows are flagged where {rate:.2%} were promised, more "
                "than chance explains: these rows are not like those that calibrated."
            )
    text = [
        f"The threshold was set by {calibrated_on} calibration rows. The last column is where the "
        "share of flagged clean rows lies in 99 of 100 cases, if the promise is kept; with more "
        "calibration rows it is narrower.",
    ]
    header = ("Promised", "Clean rows flagged (95 % interval)", "Chance allows")
    return Section("False alarms", text, Table(header, rows), warnings=warnings)


def risks(subject: Subject, measures: Measures) -> Section:
    """Histogram of the risk."""
    picture = pictures.risk_histogram(measures, subject.detector.security_parameter)
    text = "Clean rows should be level: a share p of them has a risk above 1 − p."
    return Section(
        "Risk", [text if picture else "No attack fooled the classifier."], picture=picture
    )


def harmless(measures: Measures) -> Section:
    """How often harmless changes raise an alarm."""
    title, frame = "Harmless changes", measures.harmless
    if frame is None:
        return Section(title, ["Rows are no images, so no harmless changes of them are known."])
    rows = []
    for change, part in frame.groupby("change", sort=False):
        cells = [f"{row.flagged:.1%} ({row.still_right:.0%})" for row in part.itertuples()]
        rows.append((str(change), *cells, *[""] * (len(SEVERITY) - len(cells))))
    text = [
        "Share flagged of the changed rows that are still classified rightly, and in brackets how "
        "many of all are. A change named by calibrate --harmless is promised to raise no more "
        "alarms than clean rows do.",
    ]
    return Section(title, text, Table(("Change", *SEVERITY), rows))


def roc(measures: Measures, effort: Effort) -> Section:
    """Attacks on the classifier alone."""
    title = "Attacks on the classifier"
    if measures.detection is None:
        return Section(title, [f"No attack on {effort.n_attacked} rows fooled the classifier."])
    flagged = measures.detection.flagged.set_index("rows")["flagged"]
    rows = [
        (
            row.attack,
            str(row.n_rows),
            f"{row.success_rate:.0%}",
            _area(row.auc, row.auc_low, row.auc_high),
            f"{flagged[row.attack]:.1%}" if row.attack in flagged.index else "–",
        )
        for row in measures.detection.detection.itertuples()
    ]
    text = [
        f"The attacker knows the classifier alone, and begins from {effort.n_attacked} rows that "
        "it gets right, or as many as there are. Only what fools it counts. The suite is small and "
        "brief: skmrr.evaluation.evaluate_detection takes any other.",
    ]
    header = ("Attack", "Rows that fool it", "Success", "AUC (95 % interval)", "Flagged")
    return Section(title, text, Table(header, rows), pictures.roc_curves(measures))


def adaptive(subject: Subject, measures: Measures, effort: Effort) -> Section:
    """Attacks on classifier and detector."""
    rows = [
        (f"{row.eps:g}", f"{row.success_rate:.0%} ({row.low:.0%} to {row.high:.0%})")
        for row in measures.adaptive.success.itertuples()
    ]
    floor = measures.adaptive.success["impostor_rate"].iloc[0]
    text = [
        "The attacker knows the detector too, and succeeds where a row is misclassified and not "
        f"flagged at SP {subject.detector.security_parameter:g}. "
        f"{len(measures.adaptive.rows)} rows, {effort.steps} steps: who tries longer succeeds more "
        "often.",
        f"For {floor:.0%} of these rows a wrong class passes without any change: the floor of "
        "attackers who can make the classifier name any class.",
    ]
    table = Table(("ε", "Success (95 % interval)"), rows)
    title = "Attacks on classifier and detector"
    return Section(title, text, table, pictures.success_curve(measures))


def alarming(subject: Subject, measures: Measures, n_shown: int = 12) -> Section:
    """Clean rows of the highest risk, and who raised the alarm."""
    detector = subject.detector
    worst = np.argsort(measures.scores, kind="stable")[:n_shown]
    names = [subject.names[k] for k in worst]
    found = verdicts(detector, names, subject.X[worst], subject.classes)
    lines = {
        int(k): _words(verdict, subject.classes[subject.y[k]])
        for k, verdict in zip(worst, found, strict=True)
    }
    title, text = "Most alarming clean rows", [f"Members: {', '.join(member_names(detector))}."]
    if not are_images(subject.X):
        return Section(title, text, Table((), list(lines.values())))
    gallery = [
        pictures.shown(subject.X[k], subject.settings.bounds, words[0], words)
        for k, words in lines.items()
    ]
    return Section(title, text, gallery=gallery)


def origin(subject: Subject) -> Section:
    """Command, versions and hashes."""
    settings = subject.settings
    files = [subject.file, subject.settings_file]
    files += [settings.path(name) for name in (settings.weights, settings.program) if name]
    rows = [("Command", history.typed()), ("Date", history.today())]
    rows += [(f"SHA-256 of {path.name}", history.sha256_of(path)) for path in files]
    rows += [(name, number) for name, number in history.versions().items()]
    return Section("Where this comes from", table=Table((), rows))


def _words(verdict: Verdict, true_class: str) -> list[str]:
    alarm = ", ".join(verdict.alarm) or "no member alone"
    return [
        verdict.file,
        f"is {true_class}, answer: {verdict.label}",
        f"risk {verdict.risk:.4f}",
        f"alarm: {alarm}" if verdict.flagged else "not flagged",
    ]


def _parameters(member) -> str:
    detector = detector_of(member)
    default = type(detector)().get_params(deep=False)
    changed = {
        name: value
        for name, value in detector.get_params(deep=False).items()
        if isinstance(value, PLAIN) and value != default[name]
    }
    texts = (f"{k}={v:.4g}" if isinstance(v, float) else f"{k}={v}" for k, v in changed.items())
    return ", ".join(texts)


def _area(area: float, low: float, high: float) -> str:
    return "–" if np.isnan(area) else f"{area:.3f} ({low:.3f} to {high:.3f})"


def _share(hits: int, n: int) -> str:
    low, high = map(float, exact_interval(hits, n))
    return f"{hits / n:.2%} ({low:.2%} to {high:.2%})"
