"""Means of loss terms, taken by the reducer itself."""

from alignlab.optim.reduction import step_loss
from alignlab.types.batch import StepTotals


def step_mean(*terms, tokens=1, sequences=1, groups=0, chosen_tokens=1):
    """The loss of a step that has these terms and counts; pairs are the sequences beyond the groups."""
    counts = {"tokens": tokens, "rows": groups, "chosen_tokens": chosen_tokens}
    totals = StepTotals(supervised_tokens=tokens, sequences=sequences, groups=groups, **counts)
    return step_loss(terms, totals, counted=1)
