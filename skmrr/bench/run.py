"""One run of a measurement: what all of its steps are told."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import joblib

from skmrr.bench.problems import PROBLEMS, Problem
from skmrr.bench.sizes import Sizes
from skmrr.bench.systems import Fitted, fit_all


@dataclass(frozen=True)
class Run:
    """What is measured, how large, and where intermediate results are kept."""

    dataset: str
    """Problem: "digits", "mnist", "cifar10" or "imagenette"."""
    seeds: tuple[int, ...]
    """Of splits and attacked images, and of victims and detectors where a victim is trained."""
    memory: joblib.Memory
    """Cache; an interrupted run resumes from it."""
    sizes: Sizes
    """How large the run is."""
    detectors: list[str] | None = None
    """Which detectors; all by default."""
    progress: Callable[[str], None] = print
    """Told what begins."""

    def tell(self, seed: int, text: str) -> None:
        """Say what begins."""
        self.progress(f"{self.dataset}, seed {seed}: {text}")

    def problems(self, **params) -> Iterator[Problem]:
        """Problem of each seed."""
        for seed in self.seeds:
            self.tell(seed, "victim and attacks")
            yield PROBLEMS[self.dataset](seed, self.memory, **params)

    def attacked_problems(self) -> Iterator[Problem]:
        """Problem of each seed, with the attacks of the run's size."""
        return self.problems(n_attacked=self.sizes.n_attacked, kinds=self.sizes.kinds)

    def fit(self, problem: Problem, names: list[str] | None) -> dict[str, Fitted]:
        """Fit detectors on a problem; all with None."""
        return fit_all(
            problem, self.memory, names=names, quick=self.sizes.quick, progress=self.progress
        )
