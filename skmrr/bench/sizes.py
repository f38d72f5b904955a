"""How large a run is."""

from dataclasses import dataclass, replace

from skmrr.bench.problems import KINDS, MODERN


@dataclass(frozen=True)
class Sizes:
    """Numbers of images and steps; the defaults are those of the tables."""

    n_attacked: int = 300
    """Images that attacks on the victim start from."""
    kinds: tuple[str, ...] = (*KINDS, *MODERN)
    """Attacks on the victim, by the first word of their names."""
    n_adaptive: int = 50
    """Images that attacks on victim and detector start from."""
    adaptive_steps: int = 50
    adaptive_restarts: int = 1
    n_carlini: int = 50
    """Images of table 2."""
    carlini_search: int = 6
    carlini_steps: int = 150
    numbers: tuple[int, ...] = (1, 2, 4, 8, 16)
    """Numbers of defenders in table 2."""
    member_epochs: int = 5
    """Training of each of these."""
    n_timed: int = 2000
    """Images whose scoring is timed."""
    n_changed: int = 2000
    """Images that are changed harmlessly."""
    quick: bool = False
    """Whether everything is trained for a moment only."""

    def with_effort(self, factor: int) -> "Sizes":
        """Sizes with so many times the steps of attacks that know the detector."""
        return replace(
            self,
            adaptive_steps=factor * self.adaptive_steps,
            carlini_steps=factor * self.carlini_steps,
        )


SIZES = {
    "digits": Sizes(),
    "mnist": Sizes(),
    # The black-box attacks take minutes there, and say less than white-box ones.
    "cifar10": Sizes(n_attacked=50, kinds=(*KINDS, *MODERN[:4]), n_adaptive=30, n_timed=256),
    "imagenette": Sizes(n_attacked=12, n_adaptive=10, n_carlini=10, n_timed=50, n_changed=100),
}
QUICK = Sizes(
    n_attacked=40,
    kinds=("FGSM", "BIM", "DeepFool", "CW", "PGD"),
    n_adaptive=4,
    adaptive_steps=3,
    n_carlini=6,
    carlini_search=2,
    carlini_steps=20,
    numbers=(1, 2),
    member_epochs=2,
    n_timed=200,
    n_changed=100,
    quick=True,
)
EPS = {
    "digits": (0.1, 0.2),
    "mnist": (0.1, 0.2, 0.3),
    "cifar10": (1 / 255, 2 / 255, 4 / 255, 8 / 255),
    "imagenette": (1 / 255, 2 / 255),
}
# Table 1 of Rouhani et al. 2019: AUC over all strengths of an attack.
PAPER_TABLE1 = {
    "mnist": {"FGSM": 0.996, "JSMA": 0.995, "DeepFool": 0.996, "CW": 0.989, "BIM": 0.994},
    "cifar10": {"FGSM": 0.911, "JSMA": 0.966, "DeepFool": 0.960, "CW": 0.929, "BIM": 0.907},
    "imagenette": {"FGSM": 0.881, "DeepFool": 0.908, "CW": 0.907, "BIM": 0.820},
}
# Table 2: by false-alarm rate promised and number of defenders, share of images defended, ratio
# of L2 norms, false alarms measured; and what it says of prior art.
PAPER_TABLE2 = {
    (0.01, 1): (0.43, 1.04, 0.029),
    (0.01, 2): (0.53, 1.11, 0.044),
    (0.01, 4): (0.64, 1.12, 0.061),
    (0.01, 8): (0.65, 1.31, 0.078),
    (0.01, 16): (0.66, 1.38, 0.084),
    (0.05, 1): (0.46, 1.09, 0.069),
    (0.05, 2): (0.63, 1.28, 0.112),
    (0.05, 4): (0.69, 1.28, 0.162),
    (0.05, 8): (0.81, 1.63, 0.219),
    (0.05, 16): (0.84, 1.57, 0.276),
}
PAPER_PRIOR_ART = {
    "MagNet with reformer": (0.01, 1.37),
    "Efficient Defenses as published": (0.00, 1.30),
    "APE-GAN as published": (0.00, 1.06),
}
