"""Attacks in torch, batched."""

from skmrr.attacks.carlini import AttackResult, carlini_l2

__all__ = ["AttackResult", "carlini_l2"]
