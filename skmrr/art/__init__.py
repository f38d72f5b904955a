"""Detectors in the Adversarial Robustness Toolbox, and its attacks on a defended classifier."""

try:
    import art.attacks  # noqa: F401
except ImportError as error:
    raise ImportError(
        "skmrr.art needs the Adversarial Robustness Toolbox: pip install 'skmrr[art]'"
    ) from error

from skmrr.art._modules import as_module
from skmrr.art.classifier import defended_classifier
from skmrr.art.evasion_detector import MRRDetector
from skmrr.art.suite_runs import Attack, judge_transfer, run_attacks
from skmrr.art.suites import modern_attacks, paper_attacks
from skmrr.art.victim import as_art_classifier

__all__ = [
    "Attack",
    "MRRDetector",
    "as_art_classifier",
    "as_module",
    "defended_classifier",
    "judge_transfer",
    "modern_attacks",
    "paper_attacks",
    "run_attacks",
]
