"""Suites of attacks: those of the paper, and stronger ones of later years."""

from art.attacks.evasion import (
    AutoProjectedGradientDescent,
    BasicIterativeMethod,
    DeepFool,
    FastGradientMethod,
    ProjectedGradientDescent,
    SaliencyMapMethod,
    SquareAttack,
)

from skmrr.art._methods import StartedHopSkipJump, auto_attack
from skmrr.art.suite_runs import Attack
from skmrr.attacks import carlini_l2


def paper_attacks(
    *,
    fgsm: tuple = (0.05, 0.1, 0.2),
    bim: tuple = (0.05, 0.1, 0.2),
    bim_steps: tuple[float, int] = (8, 20),
    deepfool: float | None = 0.02,
    jsma: tuple = (0.1,),
    carlini: tuple = (0, 10),
    **carlini_params,
) -> dict[str, Attack]:
    """Attacks that Rouhani et al. measure, each at several strengths, as a suite.

    Parameters
    ----------
    fgsm, bim : tuple of float, default=(0.05, 0.1, 0.2)
        Largest change ε of a value, in the units of X: one step, or several, along the signs of
        the gradient.
    bim_steps : (float, int), default=(8, 20)
        Steps of BIM: ε over the length of one, and how many.
    deepfool : float or None, default=0.02
        Share by which DeepFool's least L2 change is prolonged; None leaves DeepFool out.
    jsma : tuple of float, default=(0.1,)
        Largest share γ of the values that the saliency map attack sets to 1. It is slow on rows of
        many values.
    carlini : tuple of float, default=(0, 10)
        Confidence κ, in logits, of the L2 attack by Carlini and Wagner.
    **carlini_params : dict
        More of what `skmrr.attacks.carlini_l2` takes.

    Returns
    -------
    dict of str to Attack
        The first word of a name is FGSM, BIM, DeepFool, JSMA or CW, the second the strength.

    Examples
    --------
    >>> from skmrr.art import paper_attacks
    >>> list(paper_attacks(fgsm=(0.1,), bim=(), jsma=(0.05,), carlini=(0,)))
    ['FGSM 0.1', 'DeepFool', 'JSMA γ=0.05', 'CW κ=0']
    """
    ratio, steps = bim_steps
    quiet = {"verbose": False}
    suite = {f"FGSM {eps:g}": Attack(FastGradientMethod, {"eps": eps}) for eps in fgsm}
    for eps in bim:
        params = {"eps": eps, "eps_step": eps / ratio, "max_iter": steps, **quiet}
        suite[f"BIM {eps:g}"] = Attack(BasicIterativeMethod, params)
    if deepfool is not None:
        suite["DeepFool"] = Attack(DeepFool, {"max_iter": 50, "epsilon": deepfool, **quiet})
    for gamma in jsma:
        params = {"theta": 1.0, "gamma": gamma, **quiet}
        suite[f"JSMA γ={gamma:g}"] = Attack(SaliencyMapMethod, params)
    for kappa in carlini:
        params = {"confidence": float(kappa), **carlini_params}
        suite[f"CW κ={kappa:g}"] = Attack(carlini_l2, params)
    return suite


def modern_attacks(
    *,
    eps: tuple = (0.05, 0.1, 0.2),
    steps: int = 50,
    restarts: int = 2,
    square_steps: int = 500,
    hop_steps: tuple[int, int] | None = (10, 100),
) -> dict[str, Attack]:
    """Attacks that came after the paper, each at several strengths, as a suite.

    Parameters
    ----------
    eps : tuple of float, default=(0.05, 0.1, 0.2)
        Largest change ε of a value, in the units of X, of all attacks but HopSkipJump.
    steps : int, default=50
        Steps of PGD and of each APGD.
    restarts : int, default=2
        Random starts of PGD and of each APGD.
    square_steps : int, default=500
        Squares that the Square attack tries, a query or more each. X must be images.
    hop_steps : (int, int) or None, default=(10, 100)
        Steps of HopSkipJump, and queries for the direction of the first one. It seeks the least L2
        change by the classifier's decisions alone, one row at a time. None leaves it out.

    Returns
    -------
    dict of str to Attack
        The first word of a name is PGD, APGD, APGD-DLR, AutoAttack, Square or HopSkipJump, the
        second the strength. APGD climbs the cross-entropy, APGD-DLR the difference of logits ratio,
        which takes three classes. AutoAttack runs both and then Square, each on the rows that are
        left.

    References
    ----------
    A. Madry, A. Makelov, L. Schmidt, D. Tsipras, A. Vladu, "Towards Deep Learning Models Resistant
    to Adversarial Attacks", ICLR 2018.

    F. Croce, M. Hein, "Reliable Evaluation of Adversarial Robustness with an Ensemble of Diverse
    Parameter-Free Attacks", ICML 2020.

    M. Andriushchenko, F. Croce, N. Flammarion, M. Hein, "Square Attack", ECCV 2020.

    J. Chen, M. I. Jordan, M. J. Wainwright, "HopSkipJumpAttack", IEEE S&P 2020.

    Examples
    --------
    >>> from skmrr.art import modern_attacks
    >>> list(modern_attacks(eps=(0.1,)))
    ['PGD 0.1', 'APGD 0.1', 'APGD-DLR 0.1', 'AutoAttack 0.1', 'Square 0.1', 'HopSkipJump']
    """
    suite: dict[str, Attack] = {}
    for size in map(float, eps):
        shared = {"eps": size, "verbose": False}
        # Steps as their papers advise: they cross the ball 2.5 times, or begin with its width.
        pgd = {"eps_step": 2.5 * size / steps, "max_iter": steps, "num_random_init": restarts}
        apgd = {"eps_step": 2 * size, "max_iter": steps, "nb_random_init": restarts, **shared}
        auto = {"steps": steps, "restarts": restarts, "square_steps": square_steps}
        suite |= {
            f"PGD {size:g}": Attack(ProjectedGradientDescent, {**pgd, **shared}),
            f"APGD {size:g}": Attack(
                AutoProjectedGradientDescent, {"loss_type": "cross_entropy", **apgd}
            ),
            f"APGD-DLR {size:g}": Attack(
                AutoProjectedGradientDescent, {"loss_type": "difference_logits_ratio", **apgd}
            ),
            f"AutoAttack {size:g}": Attack(auto_attack, {"eps": size, **auto}),
            f"Square {size:g}": Attack(SquareAttack, {"max_iter": square_steps, **shared}),
        }
    if hop_steps is not None:
        n_steps, n_queries = hop_steps
        params = {"max_iter": n_steps, "init_eval": n_queries, "norm": 2, "verbose": False}
        suite["HopSkipJump"] = Attack(StartedHopSkipJump, params)
    return suite
