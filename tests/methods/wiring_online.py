"""Two updates of a method that samples, replayed one completion at a time.

The sampled tokens are taken from the run; log-probabilities, rewards, advantages and losses are computed anew from the
settings in the config and the weights before training.
"""

import itertools
import math
from dataclasses import dataclass, field

import torch

from tests.methods.wiring import END, Slow, mean, policy_of, share, sigmoid, update


@dataclass
class One:
    """A completion.

    Args:
        origin: File and line of its prompt.
        prompt: Tokens.
        tokens: Sampled tokens.
        finished: Whether it ended by itself.
        sampled: Log-probabilities that the sampler gave.
    """

    origin: str
    prompt: list[int]
    tokens: list[int]
    finished: bool
    sampled: list[float]
    rewards: dict[str, float | None] = field(default_factory=dict)
    greedy: dict[str, float | None] = field(default_factory=dict)
    total: float | None = None
    old: list[float] = field(default_factory=list)
    reference: list[float] = field(default_factory=list)
    entropies: list[float] = field(default_factory=list)
    values: list[float] = field(default_factory=list)
    returns: list[float] = field(default_factory=list)
    advantages: list[float] = field(default_factory=list)
    chosen: list[float] = field(default_factory=list)


class Replay:
    """The slow side of a run.

    Args:
        run: What was trained.
        reference: Of the first step.
        move: Moves the reference after a step.
        prefix: What every prompt opens its answer with.
    """

    def __init__(self, run, reference, move, prefix=""):
        self.run, self.reference, self.move, self.prefix = run, reference, move, prefix
        self.settings, self.sampling = run.config["method"], run.config["rollout"]
        self.name = self.settings["_target_"].rsplit(".", 1)[1]
        self.policy = policy_of(run, self.sampling["temperature"])
        self.coefficient = self.settings["reward_kl_coef"]
        self.is_exact = self.sampling["dtype"] is None
        self.is_on_policy = self.settings["num_iterations"] * self.settings["steps_per_rollout"] == 1
        self.trunk, self.head = None, []
        if self.name == "PPO":
            start = {name.removeprefix("critic."): weight for name, weight in run.start.items()}
            self.head = [start["head.weight"].clone().requires_grad_(), start["head.bias"].clone().requires_grad_()]
            if self.settings["critic"] == "separate":
                weights = {name.removeprefix("trunk."): weight for name, weight in start.items() if "trunk." in name}
                self.trunk = Slow(run.method.policy.config, weights)

    @property
    def end(self):
        """All weights by name."""
        weights = self.policy.weights
        if self.head:
            weights |= {"critic.head.weight": self.head[0].detach(), "critic.head.bias": self.head[1].detach()}
        if self.trunk:
            weights |= {f"critic.trunk.{name}": weight for name, weight in self.trunk.weights.items()}
        return weights

    def steps(self):
        """Metrics of both steps."""
        expected, per_rollout = [], self.settings["num_iterations"] * self.settings["steps_per_rollout"]
        everyone = []
        for step in range(2):
            logged = {}
            if step % per_rollout == 0:
                everyone, logged = self.roll_out(self.run.rollouts[step])
            origins = {origin for batch in self.run.batches[step].micro_batches for origin in batch.origins}
            some = [one for one in everyone if one.origin in origins]
            loss, metrics = self.loss(some)
            critic = [*self.head, *(self.trunk.parameters if self.trunk else [])]
            parameters = [*self.policy.parameters, *critic]
            factors = [1] * len(self.policy.parameters) + [self.settings.get("critic_lr_factor")] * len(critic)
            clip, lr = self.run.config["trainer"]["gradient_clip_val"], self.run.config["optimizer"]["lr"]
            expected.append(update(loss, parameters, step, clip, lr, factors) | logged | metrics)
            self.move(self.policy)
        return expected

    # --- a rollout ----------------------------------------------------------------------------------------------------

    def roll_out(self, rollout):
        """Completions that are trained on, with everything that is known before the first update; and metrics."""
        everyone = self.completions(rollout)
        for one in everyone:
            one.rewards = self.rewards(one.tokens, one.finished)
            one.total = self.weighted(one.rewards)
        metrics = self.rollout_metrics(everyone)
        kept = [one for one in everyone if one.finished or self.settings["truncated"] != "mask"]
        if self.settings["group_filter"] != "keep":
            kept = [one for group in groups_of(kept) if spread(group) > 0 for one in group]
        self.score(kept)
        metrics |= self.kl_metrics(kept)
        if not self.is_exact:
            off = [b - a for one in kept for a, b in zip(one.sampled, one.old, strict=True)]
            metrics |= {
                "rollout/parity_mean_difference": mean(abs(d) for d in off),
                "rollout/parity_largest_ratio": math.exp(max(abs(d) for d in off)),
                "rollout/parity_kl": mean(math.exp(d) - 1 - d for d in off),
            }
        metrics |= {"GRPO": self.grpo, "RLOO": self.rloo, "PPO": self.ppo}[self.name](kept) or {}
        self.adapt(kept)
        return kept, metrics

    def completions(self, rollout):
        found = []
        for prompt, one in zip(rollout.prompt_index.tolist(), rollout.completions.plain(), strict=True):
            row = rollout.prompts[prompt]
            found.append(One(row.origin, list(row.tokens), one.tokens, one.finished, one.logps))
        return found

    def rewards(self, tokens, finished):
        """Rewards of a completion by name, None where one is missing."""
        text = self.prefix + "".join(chr(ord("a") + token) for token in tokens if token < 26)
        nodes = self.settings["reward"]
        given = {name: share(text, node["letters"], node["least"]) for name, node in nodes.items()}
        if self.settings["truncated"] == "penalise":
            missing = all(value is None for value in given.values())
            given["truncation"] = None if missing else 0.0 if finished else -self.settings["truncation_penalty"]
        return given

    def weight(self, name):
        names, weights = list(self.settings["reward"]), self.settings["reward_weights"]
        return weights[names.index(name)] if weights and name in names else 1.0

    def weighted(self, rewards):
        known = [self.weight(name) * value for name, value in rewards.items() if value is not None]
        return sum(known) if known else None

    @torch.no_grad()
    def score(self, kept):
        """Log-probabilities, values and entropies before the first update; the sampler's are those of the policy."""
        for one in kept:
            predicted = self.policy.predictions(one.prompt, one.tokens)
            one.old = [x.item() for x in self.policy.logps(one.prompt, one.tokens)]
            one.entropies = [-(line.exp() * line).sum().item() for line in predicted]
            one.reference = [x.item() for x in self.reference.logps(one.prompt, one.tokens)]
            assert max(abs(a - b) for a, b in zip(one.old, one.sampled, strict=True)) < (1e-4 if self.is_exact else 0.5)
            if self.is_exact:
                one.sampled = one.old
            if self.head:
                one.values = [value.item() for value in self.values(one)]

    def values(self, one):
        hidden = (self.trunk or self.policy).hidden(one.prompt, one.tokens)
        return [(state * self.head[0][0]).sum() + self.head[1][0] for state in hidden]

    def token_kl(self, one):
        if not self.settings["reward_kl_coef"]:
            return [0.0] * len(one.tokens)
        return [a - b for a, b in zip(one.old, one.reference, strict=True)]

    def kl_metrics(self, kept):
        if not self.settings["reward_kl_coef"]:
            return {}
        return {"kl_per_completion": mean(sum(self.token_kl(one)) for one in kept), "reward_kl_coef": self.coefficient}

    def adapt(self, kept):
        """A tenth of the relative error, which is bounded to a fifth, is corrected at once."""
        target = self.settings["reward_kl_target"]
        if self.settings["reward_kl_coef"] and target is not None:
            error = mean(sum(self.token_kl(one)) for one in kept) / target - 1
            self.coefficient *= 1 + 0.1 * min(max(error, -0.2), 0.2)

    def rollout_metrics(self, everyone):
        names = ["", *(f"/{name}" for name in everyone[0].rewards)]
        metrics = {}
        for name in names:
            values = [one.rewards[name[1:]] if name else one.total for one in everyone]
            known = [value for value in values if value is not None]
            if not known:
                continue
            metrics |= {
                f"reward{name or '/mean'}": mean(known),
                f"reward{f'{name}_std' if name else '/std'}": std(known),
            }
        groups, right = groups_of(everyone), self.settings["right_reward"]
        flat = [group for group in groups if not spread(group) > 1e-8]
        known = [[one.total for one in group if one.total is not None] for group in flat]
        return metrics | {
            "reward/failed": 0.0,  # a reward without an opinion has not failed
            "completion_tokens/mean": mean(len(one.tokens) for one in everyone),
            "completion_tokens/max": max(len(one.tokens) for one in everyone),
            "truncated_fraction": mean(float(not one.finished) for one in everyone),
            "zero_std_groups": len(flat) / len(groups),
            "zero_std_groups_right": sum(bool(some) and min(some) >= right for some in known) / len(groups),
            "zero_std_groups_wrong": sum(bool(some) and max(some) < right for some in known) / len(groups),
        }

    # --- advantages ---------------------------------------------------------------------------------------------------

    def grpo(self, kept):
        settings, names = self.settings, list(kept[0].rewards)
        if settings["estimator"] == "remax":
            self.decode_greedily(kept)
        if settings["aggregation"] == "sum_then_normalize":
            totals = [self.penalised(one) for one in kept]
            greedy = [self.weighted(one.greedy) for one in kept]
            advantages = self.estimate(totals, kept, greedy)
        else:
            advantages = [0.0] * len(kept)
            for name in names:
                values, greedy = [one.rewards[name] for one in kept], [one.greedy.get(name) for one in kept]
                for place, value in enumerate(self.estimate(values, kept, greedy)):
                    advantages[place] += self.weight(name) * value
            scored = [place for place, one in enumerate(kept) if one.total is not None]
            some = [advantages[place] for place in scored]
            advantages = [
                (value - mean(some)) / (std(some) + 1e-4) if place in scored else 0.0
                for place, value in enumerate(advantages)
            ]
        self.spread_over_tokens(kept, advantages)
        top = settings["top_entropy_quantile"]
        ascending = sorted(entropy for one in kept for entropy in one.entropies)
        at = (1 - top) * (len(ascending) - 1)
        low = math.floor(at)
        limit = ascending[low] + (at - low) * (ascending[min(low + 1, len(ascending) - 1)] - ascending[low])
        for one in kept:
            one.chosen = [float(top == 1 or entropy >= limit - 1e-9) for entropy in one.entropies]

    def rloo(self, kept):
        self.spread_over_tokens(kept, self.estimate([self.penalised(one) for one in kept], kept, estimator="rloo"))

    def penalised(self, one):
        return None if one.total is None else one.total - self.coefficient * sum(self.token_kl(one))

    def spread_over_tokens(self, kept, advantages):
        for one, advantage in zip(kept, advantages, strict=True):
            one.advantages = [advantage] * len(one.tokens)

    def estimate(self, rewards, kept, greedy=None, estimator=None):
        """Advantages of completions, 0 where the reward is missing."""
        estimator, scale = estimator or self.settings["estimator"], self.settings["scale"]
        needed = greedy if estimator == "remax" else rewards
        known = [i for i, reward in enumerate(rewards) if reward is not None and needed[i] is not None]
        everything, centred, deviations = [rewards[i] for i in known], {}, {}
        for i in known:
            mates = [j for j in known if kept[j].origin == kept[i].origin]
            group = [rewards[j] for j in mates]
            deviations[i] = std(group)
            others = [rewards[j] for j in mates if j != i]
            if estimator == "pass_at_k":
                size = min(self.settings["num_picked"], len(mates))
                sets = list(itertools.combinations(mates, size))
                best = [max(rewards[j] for j in some) for some in sets]
                centred[i] = mean(b for b, some in zip(best, sets, strict=True) if i in some) - mean(best)
                deviations[i] = mean((b - mean(best)) ** 2 for b in best) ** 0.5
            else:
                centred[i] = (
                    rewards[i]
                    - {
                        "grpo": mean(group),
                        "rloo": mean(others) if others else rewards[i],
                        "reinforce_plus_plus": mean(everything),
                        "remax": greedy[i] if estimator == "remax" else None,
                    }[estimator]
                )
        found = [0.0] * len(rewards)
        for i in known:
            found[i] = {
                "group": lambda i=i: centred[i] / (deviations[i] + 1e-4),
                "batch": lambda i=i: centred[i] / (std(everything) + 1e-4),
                "whiten": lambda i=i: (centred[i] - mean(centred.values())) / (std(list(centred.values())) + 1e-4),
                "none": lambda i=i: centred[i],
            }[scale]()
        return found

    @torch.no_grad()
    def decode_greedily(self, kept):
        for group in groups_of(kept):
            tokens = []
            while len(tokens) < self.sampling["max_completion_tokens"] and END not in tokens:
                asked = torch.tensor([group[0].prompt + tokens])
                tokens.append(int(self.policy.model(input_ids=asked).logits[0, -1].argmax()))
            for one in group:
                one.greedy = self.rewards(tokens, END in tokens)

    def ppo(self, kept):
        settings, rewards = self.settings, []
        for one in kept:
            some = [-self.coefficient * kl for kl in self.token_kl(one)]
            some[-1] += one.total or 0.0
            rewards.append(some)
        if settings["whiten_rewards"]:
            deviation = (std([x for some in rewards for x in some]) ** 2 + 1e-8) ** 0.5
            middle = mean(x for some in rewards for x in some)
            rewards = [[(x - middle) / deviation + middle for x in some] for some in rewards]
        for one, some in zip(kept, rewards, strict=True):
            ahead, later, one.advantages = 0.0, 0.0, []
            for reward, value in zip(reversed(some), reversed(one.values), strict=True):
                error = reward + settings["gamma"] * later - value
                ahead = error + settings["gamma"] * settings["gae_lambda"] * ahead
                later = value
                one.advantages.insert(0, ahead)
            one.returns = [a + v for a, v in zip(one.advantages, one.values, strict=True)]
        returns = [x for one in kept for x in one.returns]
        errors = [x - v for one in kept for x, v in zip(one.returns, one.values, strict=True)]
        if settings["whiten_advantages"]:
            everything = [x for one in kept for x in one.advantages]
            deviation = (std(everything) ** 2 + 1e-8) ** 0.5
            for one in kept:
                one.advantages = [(x - mean(everything)) / deviation for x in one.advantages]
        return {"explained_variance": 1 - std(errors) ** 2 / std(returns) ** 2}

    # --- an update ----------------------------------------------------------------------------------------------------

    def loss(self, some):
        """The loss of a step, and its metrics."""
        settings, losses, seen, entropies = self.settings, [], [], []
        for one in some:
            predicted = self.policy.predictions(one.prompt, one.tokens)
            logps = [predicted[place, token] for place, token in enumerate(one.tokens)]
            entropies.append([-(line.exp() * line).sum() for line in predicted])
            old = [x.detach() for x in logps] if self.is_on_policy else [torch.tensor(x) for x in one.old]
            if self.is_on_policy:
                ratios = [x - y for x, y in zip(logps, old, strict=True)]
            else:
                ratios = [x - y for x, y in zip(logps, one.old, strict=True)]
            policy, low, high = self.policy_losses(one, logps, ratios)
            weights = self.token_weights(one, logps)
            tokens = [loss * weight for loss, weight in zip(policy, weights, strict=True)]
            kl = []
            if settings.get("kl_coef"):
                with torch.no_grad():
                    theirs = self.reference.logps(one.prompt, one.tokens)
                tokens = [
                    loss + settings["kl_coef"] * self.divergence(x, y, z)
                    for loss, x, y, z in zip(tokens, logps, theirs, old, strict=True)
                ]
                kl = [(torch.exp(y - x) - 1 - (y - x)).item() for x, y in zip(logps, theirs, strict=True)]
            losses.append(tokens)
            seen.append((low, high, [x.item() for x in ratios], kl))
        total = self.normalised(losses)
        if settings.get("entropy_coef"):
            total = total - settings["entropy_coef"] * mean(x for some in entropies for x in some)
        flat = [[x for one in seen for x in one[at]] for at in range(4)]
        metrics = {
            "clip_fraction_low": mean(flat[0]),
            "clip_fraction_high": mean(flat[1]),
            "clip_fraction": mean(max(a, b) for a, b in zip(flat[0], flat[1], strict=True)),
            "ratio": mean(math.exp(x) for x in flat[2]),
            "approx_kl": mean(math.exp(x) - 1 - x for x in flat[2]),
            "entropy": mean(x.item() for some in entropies for x in some),
        }
        if flat[3]:
            metrics["kl"] = mean(flat[3])
        if self.head:
            value_loss, value_metrics = self.value_loss(some)
            total, metrics = total + settings["value_coef"] * value_loss, metrics | value_metrics
        return total, {f"train/{name}": value for name, value in metrics.items()}

    def normalised(self, losses):
        kind, longest = self.settings["normaliser"], self.sampling["max_completion_tokens"]
        if kind == "token":
            return mean(x for some in losses for x in some)
        divisor = {"sequence": len, "constant": lambda some: longest, "sum": lambda some: 1}[kind]
        return mean(sum(some) / divisor(some) for some in losses)

    def policy_losses(self, one, logps, ratios):
        """Loss of every token, and which are clipped low and high."""
        node, advantages, n = self.settings["loss"], one.advantages, len(logps)
        kind = node["_target_"].rsplit(".", 1)[1]
        level = node.get("ratio_level", "sequence_sum" if kind == "vespo" else "token")
        if level != "token":
            ratios = [sum(ratios) / (n if level == "sequence" else 1)] * n
        r = [torch.exp(x) for x in ratios]
        nothing = [0.0] * n
        if kind == "clipped":
            losses, low, high = [], [], []
            for x, a in zip(r, advantages, strict=True):
                bounded = torch.clamp(x, 1 - node["clip_low"], 1 + node["clip_high"])
                free = x if node["dual_clip"] is None else torch.clamp(x, max=node["dual_clip"])
                losses.append(-torch.minimum(free * a, bounded * a))
                low.append(float(a < 0 and x < 1 - node["clip_low"]))
                high.append(float(a > 0 and x > 1 + node["clip_high"]))
            return losses, low, high
        if kind == "cispo":
            least = 0.0 if node["clip_low"] is None else 1 - node["clip_low"]
            most = 1 + node["clip_high"]
            losses = [
                -torch.clamp(x.detach(), least, most) * a * y for x, a, y in zip(r, advantages, logps, strict=True)
            ]
            return losses, [float(x < least) for x in r], [float(x > most) for x in r]
        if kind == "sapo":
            rates = [node["temperature_positive"] if a > 0 else node["temperature_negative"] for a in advantages]
            gates = [sigmoid(t * (x - 1)) * 4 / t for x, t in zip(r, rates, strict=True)]
            return [-gate * a for gate, a in zip(gates, advantages, strict=True)], nothing, nothing
        if kind == "gmpo":
            low, high = node["clip_low"], node["clip_high"]
            a = advantages[0]
            bounded = [torch.clamp(x, max=high) if a > 0 else torch.clamp(x, min=-low) for x in ratios]
            losses = [-torch.exp(sum(bounded) / n) * a] * n
            return losses, [float(a < 0 and x < -low) for x in ratios], [float(a > 0 and x > high) for x in ratios]
        side = "positive" if advantages[0] >= 0 else "negative"
        power, rate = node[f"power_{side}"], node[f"rate_{side}"]
        weight = (r[0] ** power * torch.exp(rate * (1 - r[0]))).detach()
        return [-weight * a * y for a, y in zip(advantages, logps, strict=True)], nothing, nothing

    def token_weights(self, one, logps):
        weights = list(one.chosen or [1.0] * len(logps))
        if self.name != "GRPO":
            return weights
        if not self.is_exact:
            cap = self.settings["importance_cap"]
            factors = [min(math.exp(a - b), cap) for a, b in zip(one.old, one.sampled, strict=True)]
            weights = [weight * factor for weight, factor in zip(weights, factors, strict=True)]
        limit = self.settings["off_policy_threshold"]
        if limit is not None:
            drift = mean(a - b.item() for a, b in zip(one.sampled, logps, strict=True))
            kept = [float(a >= 0 or drift <= limit) for a in one.advantages]
            weights = [weight * factor for weight, factor in zip(weights, kept, strict=True)]
        return weights

    def divergence(self, ours, theirs, old):
        """KL in the loss at a token."""
        d = ours - theirs
        kind, gradient = self.settings["kl_estimator"], self.settings["kl_gradient"]
        value = {"k1": d, "k2": d**2 / 2, "k3": torch.exp(-d) - 1 + d}[kind]
        if gradient == "plain":
            return value
        ratio = torch.exp(ours - (ours.detach() if gradient == "on_policy" else old))
        return (ratio.detach() if kind == "k2" else ratio) * value

    def value_loss(self, some):
        losses, clipped, limit = [], [], self.settings["clip_value"]
        for one in some:
            for value, old, target in zip(self.values(one), one.values, one.returns, strict=True):
                loss = (value - target) ** 2 / 2
                near = loss if limit is None else (torch.clamp(value, old - limit, old + limit) - target) ** 2 / 2
                clipped.append(float(near > loss))
                losses.append(torch.maximum(near, loss))
        return mean(losses), {"value_loss": mean(losses).item(), "value_clip_fraction": mean(clipped)}


def std(values):
    """Of a sample; 0 of a single value."""
    values = list(values)
    return (sum((x - mean(values)) ** 2 for x in values) / max(len(values) - 1, 1)) ** 0.5


def groups_of(completions):
    """The completions of each prompt."""
    return [list(some) for _, some in itertools.groupby(completions, key=lambda one: one.origin)]


def spread(group):
    """Largest known reward less the smallest; -inf if none is known."""
    known = [one.total for one in group if one.total is not None]
    return max(known) - min(known) if known else -math.inf
