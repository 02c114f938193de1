"""Work of an optimizer step: floating-point operations, bytes sent, and time at an assumed utilisation."""

from typing import NamedTuple

from alignlab.estimate.memory import Run
from alignlab.estimate.weights import Weights


class Work(NamedTuple):
    """Work of an optimizer step.

    Args:
        flops: Operations over all ranks.
        sent: Bytes that a rank sends.
        seconds: Time; ``None`` without a card.
    """

    flops: float
    sent: float
    seconds: float | None


def work(run: Run, mfu: float) -> Work:
    """Work of a step, and its time if it computes at a share of the peak, and then sends at the speed of the link.

    Args:
        run: See ``Run``.
        mfu: Model FLOPs utilisation in training and scoring.
    """
    flops, sent, card = step_flops(run), step_bytes(run), run.hardware.card
    if card is None:
        return Work(flops, sent, None)
    computing = flops / (run.num_ranks * card.flops * mfu)
    return Work(flops, sent, computing + sent / run.hardware.link + sampling_seconds(run))


def step_flops(run: Run) -> float:
    """Operations of an optimizer step (Kaplan et al. 2020, arXiv 2001.08361, section 2.1).

    2 P per token in the forward, 2 P for the gradient of the inputs, 2 T for that of the T trained weights; the head
    only at supervised tokens; attention 4 × blocks × hidden size per token and token attended to, thrice. Recomputing
    adds a forward; a reference, and each score of a rollout, too.
    """
    batches = run.batches
    forward = _forward(run, run.policy)
    trained = min(run.policy.trained, run.policy.multiplied + run.policy.head)
    training = (3 if run.recomputes else 2) * forward + 2 * trained * batches.tokens
    training += _attention(run, run.policy)  # its backward has two products for each of the forward
    training += 3 * _forward(run, run.critic) if run.critic else 0
    reference = _forward(run, run.reference or run.policy) if run.scores_reference else 0
    passes = batches.sampling.steps if batches.sampling else 1
    return training + reference + run.scores_before * forward / passes


def _forward(run: Run, model: Weights) -> float:
    batches = run.batches
    return 2 * model.multiplied * batches.tokens + 2 * model.head * batches.supervised + _attention(run, model)


def _attention(run: Run, model: Weights) -> float:
    return 4 * model.num_blocks * model.hidden_size * run.batches.context * run.batches.tokens


def step_bytes(run: Run) -> float:
    """Bytes that a rank sends in a step, by ring collectives (ZeRO, arXiv 1910.02054, section 7).

    A sum over all ranks that each of them gets sends 2 (n - 1) / n of its size; gathering shards, or a sum of which
    each rank gets its shard, half of that. DDP sums gradients; ZeRO-1 and -2 divide the sum and gather weights. Stage 3
    gathers weights for each forward and backward; FSDP2 sums gradients once per step, ZeRO-3 once per micro-batch.
    """
    part = (run.num_ranks - 1) / run.num_ranks
    gradients = run.policy.trained_bytes + (run.critic.trained_bytes if run.critic else 0)
    weights = run.policy.num_bytes + (run.critic.num_bytes if run.critic else 0)
    if not run.division.divides_weights:
        return 2 * part * gradients
    sums = run.batches.per_step if run.division.engine == "zero" else 1
    reference = (run.reference.num_bytes if run.reference else run.policy.num_bytes) if run.scores_reference else 0
    gathers = run.batches.per_step * (2 * weights + reference)
    sampling = run.policy.num_bytes / run.batches.sampling.steps if run.batches.sampling else 0
    return part * run.gathered_share * (sums * gradients + gathers + sampling)


def sampling_seconds(run: Run) -> float:
    """Time to sample, per step: every token reads the weights and the cached keys and values from the card's memory."""
    sampling = run.batches.sampling
    if sampling is None or not sampling.rows:
        return 0.0
    rounds = -(-sampling.completions // (run.num_ranks * sampling.rows))
    itemsize = run.converted_itemsize or run.policy.num_bytes / run.policy.numbers
    cached = sampling.rows * sampling.completion_tokens / 2 + sampling.prompts * sampling.prompt_tokens
    read = run.policy.numbers * itemsize + cached * run.policy.cached_numbers * run.cache_itemsize
    seconds = rounds * sampling.completion_tokens * read / run.hardware.card.bandwidth
    return seconds / sampling.steps
