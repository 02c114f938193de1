"""All logged metrics, with unit and meaning. Logging a name that is not listed here raises an error."""

from collections.abc import Iterable, Mapping
from typing import Literal, NamedTuple

Mode = Literal["min", "max"]
"""Which value of a metric is the best one."""


class Metric(NamedTuple):
    """A logged quantity.

    Args:
        unit: Unit of the value; ``1`` for a dimensionless number.
        meaning: One line, as shown in the docs and in dashboards.
        best: Whether the smallest (``min``) or the largest (``max``) value is the best; ``None`` if that depends.
    """

    unit: str
    meaning: str
    best: Mode | None = None


METRICS: dict[str, Metric] = {
    "progress/step": Metric("optimizer steps", "steps done; the axis of every curve"),
    "progress/epoch": Metric("epochs", "passes over the training rows, fractional"),
    "progress/samples": Metric("rows", "training rows consumed, all ranks"),
    "progress/tokens": Metric("tokens", "tokens passed through the model in training, all ranks"),
    "progress/supervised_tokens": Metric("tokens", "targets of the loss so far, all ranks"),
    "train/loss": Metric("nats", "the objective of this optimizer step, over all micro-batches and ranks", "min"),
    "train/nll": Metric("nats per token", "negative log-likelihood of the supervised tokens", "min"),
    "train/token_accuracy": Metric("fraction", "supervised tokens whose most likely prediction is correct", "max"),
    "train/grad_norm": Metric("1", "global norm of the gradient before clipping"),
    "train/grad_norm_clipped": Metric("1", "global norm of the gradient after clipping"),
    "train/lr": Metric("1", "learning rate of the first parameter group in this step"),
    "train/tokens_per_second": Metric("tokens/s", "tokens passed through the model per second, all ranks"),
    "train/step_seconds": Metric("s", "wall time of this optimizer step"),
    "train/mfu": Metric("fraction", "model FLOPs utilisation: 6 N tokens/s over the device's peak, if it is known"),
    "val/loss": Metric("nats", "the objective on held-out rows", "min"),
    "val/nll": Metric("nats per token", "negative log-likelihood of the supervised held-out tokens", "min"),
    "val/perplexity": Metric("1", "exp(val/nll)", "min"),
    "val/token_accuracy": Metric(
        "fraction", "supervised held-out tokens whose most likely prediction is correct", "max"
    ),
    "val/exact_match": Metric(
        "fraction", "held-out prompts whose greedy completion gives the correct final answer", "max"
    ),
    "val/win_rate": Metric(
        "fraction", "completions that a judge prefers to those of the policy before training", "max"
    ),
    "val/reward": Metric("1", "weighted sum of the rewards, mean over sampled completions of held-out prompts", "max"),
    "rewards/chosen": Metric("1", "reward of the chosen completions: beta times the log-ratio, or the head's score"),
    "rewards/rejected": Metric("1", "reward of the rejected completions"),
    "rewards/margins": Metric("1", "reward of the chosen minus that of the rejected, mean over pairs", "max"),
    "rewards/accuracies": Metric("fraction", "pairs (groups) whose chosen completion has the highest reward", "max"),
    "rewards/margins_hardest": Metric(
        "1", "reward of the chosen minus that of the hardest rejected of its group", "max"
    ),
    "rewards/brier": Metric("1", "mean of (1 - predicted preference)^2; 0.25 for a preference of one half", "min"),
    "group/active_fraction": Metric("fraction", "groups whose loss is above 0"),
    "group/hardest_place": Metric("fraction", "position of the hardest among its rejected: 0 the first, 1 the last"),
    "group/hardest_changed": Metric("fraction", "rows seen before whose hardest rejected has changed"),
    "group/num_rejected": Metric("completions", "rejected completions per group"),
    "kto/reference_point": Metric("nats", "KTO's z_0: mean log-ratio of mismatched completions, at least 0"),
    "kto/desirable_fraction": Metric("fraction", "completions that are desirable"),
    "reward/mean": Metric("1", "weighted sum of the rewards, mean over the completions of a rollout"),
    "reward/std": Metric("1", "standard deviation of the weighted sum of the rewards"),
    "reward/failed": Metric("fraction", "completions whose reward raised an error, timed out or returned no number"),
    "completion_tokens/mean": Metric("tokens", "length of the completions of a rollout"),
    "completion_tokens/max": Metric("tokens", "longest completion of a rollout"),
    "truncated_fraction": Metric("fraction", "completions truncated at rollout.max_completion_tokens"),
    "zero_std_groups": Metric("fraction", "prompts whose completions all have the same reward"),
    "zero_std_groups_right": Metric("fraction", "prompts whose completions are all right"),
    "zero_std_groups_wrong": Metric("fraction", "prompts whose completions are all wrong"),
    "kl_per_completion": Metric("nats", "divergence from the reference, k1 summed over a completion, of a rollout"),
    "reward_kl_coef": Metric("1", "penalty in the reward per nat of divergence"),
    "value_loss": Metric("1", "half the critic's squared error, mean over tokens"),
    "value_clip_fraction": Metric("fraction", "tokens whose value loss was clipped"),
    "explained_variance": Metric("fraction", "variance of the returns that the critic explains before learning"),
    "time/rollout": Metric("s", "sampling and scoring a rollout"),
    "time/scoring": Metric("s", "scoring a rollout's tokens before the first update: log-probabilities, values"),
    "time/weights": Metric("s", "sending the weights to the sampling engine, and verifying that they arrived"),
    "rollout/arrival_difference": Metric(
        "nats per token", "mean absolute difference between engine and trainer on a fixed text after a weight update"
    ),
    "rollout/parity_mean_difference": Metric(
        "nats per token", "mean absolute difference of the samples' log-probabilities between sampler and trainer"
    ),
    "rollout/parity_largest_ratio": Metric("1", "largest ratio of the two probabilities of a sampled token"),
    "rollout/parity_kl": Metric("nats per token", "divergence of the trainer from the sampler (k3)"),
    "clip_fraction": Metric("fraction", "tokens whose ratio is clipped at one of its bounds"),
    "clip_fraction_low": Metric("fraction", "tokens whose ratio is clipped at the lower bound"),
    "clip_fraction_high": Metric("fraction", "tokens whose ratio is clipped at the upper bound"),
    "ratio": Metric("1", "probability under the policy / probability when sampled, mean over tokens"),
    "approx_kl": Metric("nats per token", "divergence of the policy from the one that sampled (k3)"),
    "entropy": Metric("nats per token", "entropy of the policy's predictions"),
    "kl": Metric("nats per token", "divergence of the policy from the reference (k3)"),
    "logps/chosen": Metric("nats", "log-probability of the chosen completions under the policy"),
    "logps/rejected": Metric("nats", "log-probability of the rejected completions under the policy"),
}


FAMILIES: dict[str, Metric] = {
    "reward/": Metric("1", "one reward by its name, mean over a rollout's completions; with _std its deviation"),
    "pass@": Metric(
        "fraction", "held-out prompts of which one of k sampled completions passes, unbiased estimate", "max"
    ),
    "task/": Metric("1", "mean of a metric of the lm-evaluation-harness over the questions of a task"),
    "mean@": Metric("fraction", "sampled completions that pass, mean over the first k of each held-out prompt", "max"),
}
"""Metrics whose names depend on the run, by prefix."""


def in_sets(known: Mapping[str, Metric], sets: Iterable[str]) -> dict[str, Metric]:
    """Metrics of named validation sets: ``val/SET/loss``, ``val/SET/rewards/margins``.

    Args:
        known: Metrics by name.
        sets: Names of the sets.
    """
    plain = {name.removeprefix("val/"): metric for name, metric in known.items() if not name.startswith(_NOT_HELD_OUT)}
    return {f"val/{one}/{name}": metric for one in sets for name, metric in plain.items()}


_NOT_HELD_OUT = ("train/", "progress/", "time/", "rollout/")


def check_names(names: Iterable[str], known: Mapping[str, Metric] = METRICS) -> None:
    """Check that every logged name has a meaning.

    Args:
        names: Logged names, as in ``known`` or with ``train/`` or ``val/`` in front.
        known: Metrics by name.

    Raises:
        KeyError: A name has no entry.
    """
    unknown = sorted(name for name in set(names) if not is_known(name, known))
    if unknown:
        instead = "declare them in the method's own_metrics, each a Metric(unit, meaning)"
        raise KeyError(f"metrics without a meaning: {', '.join(unknown)}; {instead}")


def is_known(name: str, known: Mapping[str, Metric] = METRICS) -> bool:
    """Whether a name has a meaning, as it is or without ``train/`` or ``val/`` in front."""
    return find(name, known) is not None


def find(name: str, known: Mapping[str, Metric] = METRICS) -> Metric | None:
    """Unit and meaning of a name, as it is or without ``train/`` or ``val/`` in front; None if it has none."""
    plain = name.removeprefix("val/").removeprefix("train/")
    families = (metric for prefix, metric in FAMILIES.items() if plain.startswith(prefix))
    return known.get(name) or known.get(plain) or next(families, None)


def best_mode(name: str, known: Mapping[str, Metric] = METRICS) -> Mode | None:
    """Which value of a metric is the best one; ``None`` if its entry does not say.

    Args:
        name: As it is logged, with ``train/``, ``val/`` or ``val/SET/`` in front.
        known: Metrics by name.
    """
    of_set = f"val/{name.split('/', 2)[-1]}"  # val/SET/loss
    found = find(name, known) or find(of_set, known)
    return found and found.best
