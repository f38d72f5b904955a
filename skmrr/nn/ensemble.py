"""Many detectors as one differentiable torch module, for which the classifier is asked once."""

from typing import cast

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from skmrr.nn.detector import Asked, DetectorModule, against_best_other
from skmrr.nn.fusion import Fusion
from skmrr.nn.hooks import as_input, captured, module_device
from skmrr.nn.members import Member
from skmrr.nn.stacking import MarginStack


class MemberStatistics(nn.Module):
    """Statistics of all members, in their order.

    Parameters
    ----------
    members : list of Member
        The members.
    classifier : nn.Module, optional
        Rows → logits.
    with_margin : bool
        Whether the classifier's own margin max_{j≠ŷ} z_j − z_ŷ comes first, as one member more.
    """

    def __init__(self, members: list[Member], classifier: nn.Module | None, with_margin: bool):
        super().__init__()
        self.members = nn.ModuleList(members)
        self.classifier = classifier
        self.with_margin = with_margin
        taps = [member.tap for member in members if member.tap is not None]
        self.tapped = sorted({name for tap in taps for name in tap.names})
        self.stacked, self.stack = MarginStack.of(members)

    @property
    def needs_classifier(self) -> bool:
        """Whether the classifier has to run even where its decisions are given."""
        return self.with_margin or bool(self.tapped)

    def forward(
        self,
        x: Tensor,
        labels: Int[Tensor, " batch"],
        columns: Int[Tensor, " batch"],
        logits: Tensor | None,
        outputs: dict[str, Tensor],
    ) -> Float[Tensor, "batch members"]:
        """Return each member's statistic of each row under its label, high = odd.

        `logits` and `outputs` are those of `ask`, where it was needed.
        """
        values: dict[int, Tensor] = {}
        if self.stack is not None:
            together = self.stack.at(x, columns)  # batch stacked
            values.update(zip(self.stacked, together.unbind(1), strict=True))
        for k, member in enumerate(self.members):
            if k not in values:
                values[k] = cast(Member, member).at(x, labels, outputs)
        in_order = [values[k].double() for k in range(len(values))]
        if self.with_margin:
            assert logits is not None
            margins = against_best_other(logits.double())
            in_order.insert(0, margins.gather(1, labels[:, None])[:, 0])
        return torch.stack(in_order, dim=1)

    def ask(self, x: Tensor) -> tuple[Float[Tensor, "batch classes"], dict[str, Tensor]]:
        """Classifier's logits, and the outputs of its layers that members tap, in one pass."""
        assert self.classifier is not None
        with captured(self.classifier, self.tapped) as outputs:
            logits = self.classifier(as_input(x, self.classifier, module_device(self.classifier)))
        return logits, outputs


class EnsembleModule(DetectorModule):
    """A fitted ensemble: ``forward(x, labels)`` is the calibrated log-survival.

    Parameters
    ----------
    statistic : MemberStatistics
        The members.
    classes : Tensor of shape (classes,)
        Sorted class labels.
    member_calibration : nn.Module, optional
        (members' statistics, class index) → members' log-survivals.
    fusion : Fusion, optional
        Members' log-survivals → one oddness.
    calibration : nn.Module, optional
        (fused oddness, class index) → log-survival.
    """

    def __init__(self, statistic, classes, member_calibration=None, fusion=None, calibration=None):
        super().__init__(statistic, classes, calibration)
        self.member_calibration = member_calibration
        self.fusion: Fusion | None = fusion

    def statistic_at(self, x, labels=None, asked=None):
        """Return the fused oddness of each row under its label, and the label's column.

        `labels` are the classifier's decisions; without them the module asks its classifier, and
        without a classifier takes the nearest class by the first member.
        """
        assert self.fusion is not None
        log_survivals, columns = self.log_survivals(x, labels, asked)
        return self.fusion(log_survivals), columns

    def log_survivals(
        self, x: Tensor, labels: Int[Tensor, " batch"] | None = None, asked: Asked | None = None
    ) -> tuple[Float[Tensor, "batch members"], Int[Tensor, " batch"]]:
        """Return each member's calibrated log-survival, and the label's column."""
        assert self.member_calibration is not None
        values, columns = self.member_statistics(x, labels, asked)
        return self.member_calibration(values, columns), columns

    def member_statistics(
        self, x: Tensor, labels: Int[Tensor, " batch"] | None = None, asked: Asked | None = None
    ) -> tuple[Float[Tensor, "batch members"], Int[Tensor, " batch"]]:
        """Return each member's statistic before calibration, and the label's column."""
        statistic = cast(MemberStatistics, self.statistic)
        if asked is None and self.asks and (labels is None or statistic.needs_classifier):
            asked = statistic.ask(x)
        logits, outputs = (None, {}) if asked is None else asked
        if labels is None and logits is not None:
            labels = logits.argmax(1)
        elif labels is None:
            labels = self.classes[statistic.members[0](x, outputs).argmin(1)]
        columns = self.columns_of(labels)
        return statistic(x, labels, columns, logits, outputs), columns
