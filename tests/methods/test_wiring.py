"""Every method and each of its options, from the config to the weights after two updates.

What is expected is computed one sequence at a time in float64, with the formulas of the papers written out; see
``wiring``. The tests of ``losses`` hold the formulas; these hold what calls them.
"""

import math

import lightning
import pytest
import torch

from alignlab.errors import InputError
from tests.methods.wiring import (
    END,
    compare,
    ids,
    log_sigmoid,
    make,
    mean,
    policy_of,
    reward_model_of,
    save_tokenizer,
    sigmoid,
    texts,
    train,
    update,
)
from tests.methods.wiring_online import Replay


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with the tokenizer, and another model with the same one, which would drop out in train mode."""
    folder = tmp_path_factory.mktemp("wiring")
    save_tokenizer(folder / "tokenizer")
    other = ["model.seed=9", "model.config.attention_dropout=0.4"]
    _, method, data = make(folder, [{"text": "abc"}], "method=pretrain", *other)
    method.factories.make_policy().save_pretrained(folder / "other")
    data.tokenizer.save_pretrained(folder / "other")
    return folder


def references(folder, run, decay=0.0, temperature=1.0):
    """The reference in the two steps, as a function of the weights after the first."""
    kind = run.config["method"]["reference"]
    reference = policy_of(run, temperature)
    if kind.endswith("other"):
        model = type(run.method.policy).from_pretrained(kind)
        reference.set({name: weight.detach().double() for name, weight in model.named_parameters()})

    def move(policy):
        if kind == "ema":
            old, new = reference.weights, policy.weights
            reference.set({name: decay * old[name] + (1 - decay) * new[name] for name in old})
        if kind == "synchronised":
            reference.set(policy.weights)

    return reference, move


# --- demonstrations and texts -----------------------------------------------------------------------------------------


def tokens_of(messages):
    """Tokens of a dialogue, and whether each is one of the assistant."""
    tokens, ours = [], []
    for message in messages:
        new = ids(message["content"]) + [END] * (message["role"] == "assistant")
        tokens += new
        ours += [message["role"] == "assistant"] * len(new)
    return tokens, ours


def dialogues():
    """Dialogues of one or two turns."""
    said = iter(texts(1, 32))
    return [
        {"messages": [{"role": role, "content": next(said)} for role in ("user", "assistant") * (1 + index % 2)]}
        for index in range(8)
    ]


def supervised(policy, tokens, ours):
    """Log-probabilities of the supervised tokens, and how many are the most likely."""
    predicted = policy.predictions([], tokens)
    places = [place for place in range(1, len(tokens)) if ours[place]]
    right = sum(int(predicted[place - 1].argmax()) == tokens[place] for place in places)
    return [predicted[place - 1, tokens[place]] for place in places], right


def token_metrics(scored):
    count = sum(len(logps) for logps, _ in scored)
    return {
        "train/nll": -sum(sum(logps) for logps, _ in scored).item() / count,
        "train/token_accuracy": sum(right for _, right in scored) / count,
    }


@pytest.mark.parametrize("packing", ["true", "false"])
@pytest.mark.parametrize("reduction", ["token", "sequence"])
@pytest.mark.parametrize("loss", ["nll", "dft"])
def test_sft(folder, loss, reduction, packing):
    rows = dialogues()
    words = [f"method/loss={loss}", f"method.reduction={reduction}", f"data.packing={packing}"]
    run = train(folder, rows, "method=sft", *words)
    policy, expected = policy_of(run), []
    for step in range(2):
        scored = [supervised(policy, *tokens_of(row["messages"])) for row in rows[4 * step : 4 * step + 4]]
        losses = [[-(x.detach().exp() if loss == "dft" else 1) * x for x in logps] for logps, _ in scored]
        total = mean(map(mean, losses)) if reduction == "sequence" else mean(x for some in losses for x in some)
        expected.append(update(total, policy.parameters, step) | token_metrics(scored))
    compare(run, expected, policy.weights)


WORTH = (0.5, 2.0, 0.0, 1.25, 3.0, 0.1, 1.0, 0.7)
"""Weights of eight rows, one of them 0."""


@pytest.mark.parametrize("packing", ["true", "false"])
@pytest.mark.parametrize("reduction", ["token", "sequence"])
@pytest.mark.parametrize("kinds", ["rows", "turns", "rows and turns"])
def test_sft_with_weights(folder, kinds, reduction, packing):
    """Σ weight · loss / Σ weight, the weights those of rows, of turns (fractions too, and 0), or their products."""
    rows = [row | {"worth": worth} for row, worth in zip(dialogues(), WORTH, strict=True)]
    if "turns" in kinds:
        for index, row in enumerate(rows):
            answers = [message for message in row["messages"] if message["role"] == "assistant"]
            for place, message in enumerate(answers[index // 6 :]):
                message["weight"] = (0.25, 0, 1, 3.5)[(index + place) % 4] if len(answers) > 1 else 0.75
    words = [f"method.reduction={reduction}", f"data.packing={packing}"]
    run = train(folder, rows, "method=sft", *words, *["method.weight_column=worth"] * ("rows" in kinds))
    policy, expected = policy_of(run), []
    for step in range(2):
        scored, parts = [], []
        for row in rows[4 * step : 4 * step + 4]:
            weights, answered = [], []
            for message in row["messages"]:
                weight = message.get("weight", 1.0) if message["role"] == "assistant" else 0.0
                tokens = ids(message["content"]) + [END] * (message["role"] == "assistant")
                weights += [weight] * len(tokens)
                answered += tokens
            logps, right = supervised(policy, answered, [weight > 0 for weight in weights])
            scored.append((logps, right))
            worth = row["worth"] if "rows" in kinds else 1.0
            parts.append((worth, [(w, -x) for w, x in zip(filter(None, weights), logps, strict=True)]))
        if reduction == "sequence":
            means = [(worth, sum(w * x for w, x in some) / sum(w for w, _ in some)) for worth, some in parts]
        else:
            means = [(worth * w, x) for worth, some in parts for w, x in some]
        total = sum(w * x for w, x in means) / sum(w for w, _ in means)
        expected.append(update(total, policy.parameters, step) | token_metrics(scored))
    compare(run, expected, policy.weights)


# Every answer begins with x; the last also with z, which the template leaves out once the dialogue goes on.
FORGETFUL = (
    "{%- for m in messages %}{% if m.role == 'assistant' %}{{ 'x' ~ ('z' if loop.last else '') ~ m.content ~ '<end>' }}"
    "{%- else %}{{ 'y' ~ m.content }}{% endif %}{% endfor %}{% if add_generation_prompt %}x{% endif %}"
)


def forgetful_turns(messages, first=0):
    """Context and answer of each turn from a message on, as ``FORGETFUL`` renders the dialogue that ends with it."""
    context, turns = [], []
    for number, message in enumerate(messages):
        if message["role"] == "user":
            context = [*context, *ids("y" + message["content"])]
        else:
            if number >= first:
                turns.append(([*context, *ids("x")], [*ids("z" + message["content"]), END]))
            context = [*context, *ids("x" + message["content"]), END]
    return turns


@pytest.mark.parametrize("packing", ["true", "false"])
@pytest.mark.parametrize("reduction", ["token", "sequence"])
def test_sft_of_a_template_that_rewrites_earlier_turns(folder, reduction, packing):
    said = iter(texts(6, 64))
    rows = [
        {"messages": [{"role": role, "content": next(said)} for role in ("user", "assistant") * (1 + index % 3)]}
        for index in range(8)
    ]
    (folder / "forgetful.jinja").write_text(FORGETFUL)
    words = [f"data.chat_template={folder}/forgetful.jinja", f"method.reduction={reduction}", f"data.packing={packing}"]
    run = train(folder, rows, "method=sft", *words)
    policy, expected = policy_of(run), []
    for step in range(2):
        scored, right = [], []
        for row in rows[4 * step : 4 * step + 4]:
            turns = forgetful_turns(row["messages"])
            predicted = torch.cat([policy.predictions(context, answer) for context, answer in turns])
            answers = [token for _, answer in turns for token in answer]
            scored.append([predicted[place, token] for place, token in enumerate(answers)])
            right.append(int((predicted.argmax(-1) == torch.tensor(answers)).sum()))
        losses = [[-x for x in logps] for logps in scored]
        total = mean(map(mean, losses)) if reduction == "sequence" else mean(x for some in losses for x in some)
        metrics = token_metrics(list(zip(scored, right, strict=True)))
        expected.append(update(total, policy.parameters, step) | metrics)
    compare(run, expected, policy.weights)


def test_dpo_of_completions_with_several_turns_of_such_a_template(folder):
    said, rows = iter(texts(7, 96)), []
    for index in range(8):
        roles = ("assistant", "user", "assistant") if index % 2 else ("assistant",)
        rows.append(
            {"prompt": [{"role": "user", "content": next(said)}]}
            | {name: [{"role": role, "content": next(said)} for role in roles] for name in ("chosen", "rejected")}
        )
    (folder / "forgetful.jinja").write_text(FORGETFUL)
    words = [f"data.chat_template={folder}/forgetful.jinja", f"method.reference={folder}/other", "optimizer.lr=0.02"]
    run = train(folder, rows, "method=dpo", "method.beta=0.3", *dpo_words(["sigmoid"]), *words)
    policy, expected = policy_of(run), []
    reference, _ = references(folder, run)
    for step in range(2):
        pairs = []
        for row in rows[4 * step : 4 * step + 4]:
            pair = []
            for name in ("chosen", "rejected"):
                turns = forgetful_turns([*row["prompt"], *row[name]], first=1)
                sums = [sum(sum(model.logps(*turn)) for turn in turns) for model in (policy, reference)]
                pair.append((sums[0], sums[1].detach(), sum(len(answer) for _, answer in turns)))
            pairs.append(pair)
        total = step_mean("sigmoid", preference_losses("sigmoid", pairs, 0.3), pairs)
        expected.append(update(total, policy.parameters, step, lr=0.02) | pair_metrics(pairs, 0.3))
    compare(run, expected, policy.weights)


def test_pretraining(folder):
    """All tokens but the first of each document, each document on its own; two of eight tokens in each row."""
    rows = [{"text": text} for text in texts(2, 16, 7, 7)]
    words = ["data.max_tokens_per_sequence=16", "trainer.gradient_clip_val=0.5"]
    run = train(folder, rows, "method=pretrain", *words)
    policy, expected = policy_of(run), []
    for step in range(2):
        documents = [[*ids(row["text"]), END] for row in rows[8 * step : 8 * step + 8]]
        scored = [supervised(policy, document, [True] * len(document)) for document in documents]
        total = -mean(x for logps, _ in scored for x in logps)
        expected.append(update(total, policy.parameters, step, clip=0.5) | token_metrics(scored))
    assert expected[0]["train/grad_norm"] > 0.5
    compare(run, expected, policy.weights)


# --- comparisons ------------------------------------------------------------------------------------------------------


def comparisons(number=8):
    """One chosen and one to three rejected completions, with scores, a margin and a weight."""
    said, rows = iter(texts(3, 64)), []
    for index in range(number):
        prompt, chosen, *rejected = (next(said) for _ in range(3 + index % 3))
        scores = [4.0, *(float((index + 2 * place) % 4) for place in range(len(rejected)))]
        rows.append(
            {"prompt": prompt, "chosen": chosen, "rejected": rejected, "scores": scores}
            | {"gap": 0.3 * index - 0.5, "worth": 0.5 + 0.25 * index}
        )
    return rows


def completions_of(row):
    """Prompt, and the completions with the chosen first."""
    return ids(row["prompt"]), [[*ids(text), END] for text in (row["chosen"], *row["rejected"])]


def scored(model, row):
    """Log-probabilities of the tokens of every completion of a row."""
    prompt, completions = completions_of(row)
    return [model.logps(prompt, completion) for completion in completions]


def pairs_of(rows, policy, reference=None, share=1.0):
    """Chosen and rejected of every pair as (log π, log π_ref, length); tokens beyond the shorter weigh less."""
    found = []
    for row in rows:
        ours = scored(policy, row)
        with torch.no_grad():
            theirs = scored(reference, row) if reference else [[torch.zeros(())] * len(some) for some in ours]
        for other in range(1, len(ours)):
            shared, pair = min(len(ours[0]), len(ours[other])), []
            for at in (0, other):
                sums = [sum(x[:shared]) + share * sum(x[shared:]) for x in (ours[at], theirs[at])]
                pair.append((*sums, len(ours[at])))
            found.append(pair)
    return found


def pair_metrics(pairs, beta):
    chosen, rejected = ([beta * (one[at][0] - one[at][1]).item() for one in pairs] for at in (0, 1))
    return {
        "rewards/chosen": mean(chosen),
        "rewards/rejected": mean(rejected),
        "rewards/margins": mean(chosen) - mean(rejected),
        "rewards/accuracies": mean(float(a > b) for a, b in zip(chosen, rejected, strict=True)),
        "logps/chosen": mean(c[0].item() for c, _ in pairs),
        "logps/rejected": mean(r[0].item() for _, r in pairs),
    }


DIVERGENCES = {
    "reverse_kl": lambda r: r,
    "forward_kl": lambda r: -torch.exp(-r),
    "js_divergence": lambda r: torch.log(2 * torch.exp(r) / (1 + torch.exp(r))),
    "alpha_divergence": lambda r: (torch.exp(r) ** (0.3 - 1) - 1) / (0.3 - 1),
}


def smoothed(logits, share):
    return -(1 - share) * log_sigmoid(logits) - share * log_sigmoid(-logits)


def exo(logits, smooth=0.05):
    """KL of the policy's preference from the smoothed label."""
    p = sigmoid(logits)
    return p * (torch.log(p) - math.log(1 - smooth)) + (1 - p) * (torch.log(1 - p) - math.log(smooth))


def discopop(logits, temperature=0.5):
    """Logistic and exponential loss, mixed by the logits."""
    share = sigmoid(logits / temperature)
    return (1 - share) * -log_sigmoid(logits) + share * torch.exp(-logits)


# Losses of a pair, of the log-ratios and lengths of chosen and rejected, with β and the score of a log-ratio.
PAIR_LOSSES = {
    "sigmoid": lambda c, r, m, n, b, f: smoothed(b * (f(c) - f(r)), 0.2),
    "sigmoid_norm": lambda c, r, m, n, b, f: smoothed(b * (f(c) / m - f(r) / n), 0.0),
    "robust": lambda c, r, m, n, b, f: (
        (-0.9 * log_sigmoid(b * (f(c) - f(r))) + 0.1 * log_sigmoid(b * (f(r) - f(c)))) / 0.8
    ),
    "ipo": lambda c, r, m, n, b, f: (f(c) / m - f(r) / n - 1 / (2 * b)) ** 2,
    "hinge": lambda c, r, m, n, b, f: torch.clamp(1 - b * (f(c) - f(r)), min=0),
    "exo_pair": lambda c, r, m, n, b, f: exo(b * (f(c) - f(r))),
    "nca_pair": lambda c, r, m, n, b, f: -log_sigmoid(b * c) - 0.5 * log_sigmoid(-b * c) - 0.5 * log_sigmoid(-b * r),
    "bco_pair": lambda c, r, m, n, b, f: -log_sigmoid(b * c) - log_sigmoid(-b * r),
    "sppo_hard": lambda c, r, m, n, b, f: (c - 1 / (2 * b)) ** 2 + (r + 1 / (2 * b)) ** 2,
    "apo_zero": lambda c, r, m, n, b, f: (1 - sigmoid(b * c)) + sigmoid(b * r),
    "apo_down": lambda c, r, m, n, b, f: sigmoid(b * c) + 1 - sigmoid(b * (c - r)),
    "discopop": lambda c, r, m, n, b, f: discopop(b * (f(c) - f(r))),
}
SETTINGS = {
    "sigmoid": "sigmoid.label_smoothing=0.2",
    "exo_pair": "exo_pair.label_smoothing=0.05",
    "discopop": "discopop.temperature=0.5",
    "aot": "aot.label_smoothing=0.1",
    "aot_unpaired": "aot_unpaired.label_smoothing=0.1",
}


def preference_losses(name, pairs, beta, score=DIVERGENCES["reverse_kl"]):
    """Loss of every pair of one micro-batch, and the mean of the step in units of what ``sft`` counts."""
    if name == "aot":
        policy = sorted((c[0] - r[0] for c, r in pairs), key=torch.Tensor.item)
        reference = sorted((c[1] - r[1] for c, r in pairs), key=torch.Tensor.item)
        return [smoothed(beta * (a - b), 0.1) for a, b in zip(policy, reference, strict=True)]
    if name == "aot_unpaired":
        chosen = sorted((c[0] - c[1] for c, _ in pairs), key=torch.Tensor.item)
        rejected = sorted((r[0] - r[1] for _, r in pairs), key=torch.Tensor.item)
        return [smoothed(beta * (a - b), 0.1) for a, b in zip(chosen, rejected, strict=True)]
    if name == "sft":
        return [-c[0] for c, _ in pairs]
    return [PAIR_LOSSES[name](c[0] - c[1], r[0] - r[1], c[2], r[2], beta, score) for c, r in pairs]


def step_mean(name, losses, pairs, worths=None):
    """Over pairs, or for imitation over the tokens of the chosen; each pair by the weight of its row."""
    worths = worths or [1.0] * len(pairs)
    counts = [w * (c[2] if name == "sft" else 1) for w, (c, _) in zip(worths, pairs, strict=True)]
    return sum(w * x for w, x in zip(worths, losses, strict=True)) / sum(counts)


def worth_of_pairs(rows):
    """The weight of the row of each pair."""
    return [row["worth"] for row in rows for _ in row["rejected"]]


def dpo_words(losses):
    given = [f"method.loss.{SETTINGS[name]}" for name in losses if name in SETTINGS]
    return [f"method/loss=[{','.join(losses)}]", *given]


DPO = {
    **{name: ([name], {}) for name in [*PAIR_LOSSES, "aot", "aot_unpaired"]},
    "several with weights": (["sigmoid", "sft", "bco_pair"], {"loss_weights": [0.8, 0.3, 0.5]}),
    "several without weights": (["sft", "hinge"], {}),
    "forward": (["sigmoid"], {"divergence": "forward_kl"}),
    "js": (["sigmoid"], {"divergence": "js_divergence"}),
    "alpha": (["hinge"], {"divergence": "alpha_divergence"}),
    "desensitised": (["sigmoid"], {"length_desensitisation": 0.4}),
    "weighted": (["sigmoid", "sft"], {"weighting": "wpo", "loss_weights": [1.5, 0.5]}),
    "initial": (["sigmoid"], {"reference": "initial"}),
    "ema": (["sigmoid"], {"reference": "ema"}),
    "synchronised": (["sigmoid"], {"reference": "synchronised"}),
    "no reference": (["sigmoid"], {"reference": "none"}),
    "precomputed": (["sigmoid"], {"precompute_reference": "true"}),
    "padded": (["sigmoid"], {"packing": "false"}),
    "rows with weights": (["sigmoid", "sft"], {"weight_column": "worth", "loss_weights": [1.0, 0.4]}),
    "rows and pairs with weights": (["hinge"], {"weight_column": "worth", "weighting": "wpo"}),
}


@pytest.mark.parametrize("case", DPO)
def test_dpo(folder, case):
    names, options = DPO[case]
    options = {"reference": str(folder / "other"), **options}
    words = ["method=dpo", "method.beta=0.3", *dpo_words(names), f"data.packing={options.pop('packing', 'true')}"]
    divergence = options.pop("divergence", "reverse_kl")
    words += [f"method/divergence={divergence}"] + ["method.divergence.alpha=0.3"] * (divergence[0] == "a")
    words += [f"method.{key}={value}".replace(" ", "") for key, value in options.items()]
    words += ["method.reference_decay=0.7", "method.reference_every_n_steps=1", "data.batch_size_per_device=4"]
    lr = 0.0005 if case == "forward" else 0.02
    words += [f"optimizer.lr={lr}"]
    rows = comparisons()
    run = train(folder, rows, *words)
    policy, expected = policy_of(run), []
    reference, move = references(folder, run, 0.7)
    weights = dict(zip(names, options.get("loss_weights", [1.0] * len(names)), strict=True))
    for step in range(2):
        some = rows[4 * step : 4 * step + 4]
        against = None if options["reference"] == "none" else reference
        pairs = pairs_of(some, policy, against, options.get("length_desensitisation", 1.0))
        factors = pair_weights(policy, some) if "weighting" in options else [1.0] * len(pairs)
        worths = worth_of_pairs(some) if "weight_column" in options else [1.0] * len(pairs)
        total = 0.0
        for name, weight in weights.items():
            losses = preference_losses(name, pairs, 0.3, DIVERGENCES[divergence])
            losses = [x * y for x, y in zip(losses, factors, strict=True)]
            total = total + weight * step_mean(name, losses, pairs, worths)
        expected.append(update(total, policy.parameters, step, lr=lr) | pair_metrics(pairs, 0.3))
        move(policy)
    compare(run, expected, policy.weights)


@torch.no_grad()
def pair_weights(policy, rows):
    """WPO: the geometric mean over tokens of p(token) / Σ p², of the chosen times that of the rejected."""
    found = []
    for row in rows:
        prompt, completions = completions_of(row)
        excess = []
        for completion in completions:
            predicted = policy.predictions(prompt, completion)
            some = [(line[t] - line.exp().square().sum().log()) for line, t in zip(predicted, completion, strict=True)]
            excess.append(mean(some))
        found += [(excess[0] + one).exp() for one in excess[1:]]
    return found


@pytest.mark.parametrize("names", [["sigmoid"], ["hinge", "ipo"]], ids="+".join)
@pytest.mark.parametrize(("sft_weight", "column"), [(0.0, "null"), (0.7, "null"), (0.7, "worth")])
def test_cpo(folder, names, sft_weight, column):
    rows = comparisons()
    words = [*dpo_words(names), "method.beta=0.3", f"method.sft_weight={sft_weight}", f"method.weight_column={column}"]
    run = train(folder, rows, "method=cpo", *words)
    policy, expected = policy_of(run), []
    for step in range(2):
        some = rows[4 * step : 4 * step + 4]
        pairs, worths = pairs_of(some, policy), worth_of_pairs(some) if column == "worth" else None
        total = sum(step_mean(name, preference_losses(name, pairs, 0.3), pairs, worths) for name in names)
        total = total + sft_weight * step_mean("sft", preference_losses("sft", pairs, 0.3), pairs, worths)
        expected.append(update(total, policy.parameters, step) | pair_metrics(pairs, 0.3))
    compare(run, expected, policy.weights)


@pytest.mark.parametrize(
    "options",
    [{}, {"margin": 0.2}, {"alpha": 0.25}, {"label_smoothing": 0.1}, {"sft_weight": 0.6}, {"weight_column": "worth"}],
    ids=lambda options: "".join(options) or "plain",
)
def test_simpo(folder, options):
    rows, given = comparisons(), {"margin": 0.5, "alpha": 0.0, "label_smoothing": 0.0, "sft_weight": 0.0, **options}
    run = train(folder, rows, "method=simpo", "method.beta=1.5", *(f"method.{k}={v}" for k, v in given.items()))
    policy, expected = policy_of(run), []
    for step in range(2):
        some, losses = rows[4 * step : 4 * step + 4], []
        pairs, worths = pairs_of(some, policy), worth_of_pairs(some) if "weight_column" in options else None
        for (chosen, _, m), (rejected, _, n) in pairs:
            ours, theirs = chosen / m, rejected / n
            if given["alpha"]:
                ours, theirs = ((1 - torch.exp(x) ** -given["alpha"]) / given["alpha"] for x in (ours, theirs))
            losses.append(smoothed(1.5 * (ours - theirs) - given["margin"], given["label_smoothing"]))
        imitation = step_mean("sft", preference_losses("sft", pairs, 1.0), pairs)
        total = step_mean("", losses, pairs, worths) + given["sft_weight"] * imitation
        expected.append(update(total, policy.parameters, step) | pair_metrics(pairs, 1.5))
    compare(run, expected, policy.weights)


@pytest.mark.parametrize("column", ["null", "worth"])
def test_orpo(folder, column):
    rows = comparisons()
    run = train(folder, rows, "method=orpo", "method.beta=0.4", f"method.weight_column={column}")
    policy, expected = policy_of(run), []
    for step in range(2):
        some, losses = rows[4 * step : 4 * step + 4], []
        pairs, worths = pairs_of(some, policy), worth_of_pairs(some) if column == "worth" else None
        for (chosen, _, m), (rejected, _, n) in pairs:
            ours, theirs = torch.exp(chosen / m), torch.exp(rejected / n)
            losses.append(-log_sigmoid(torch.log(ours / (1 - ours)) - torch.log(theirs / (1 - theirs))))
        total = step_mean("sft", preference_losses("sft", pairs, 1.0), pairs, worths)
        total = total + 0.4 * step_mean("", losses, pairs, worths)
        expected.append(update(total, policy.parameters, step) | pair_metrics(pairs, 0.4))
    compare(run, expected, policy.weights)


# --- groups -----------------------------------------------------------------------------------------------------------


def hardest(rewards, sharpness):
    """The largest reward, or a mean in which larger ones weigh more."""
    if sharpness is None:
        return max(rewards, key=torch.Tensor.item)
    weights = [torch.exp(sharpness * reward) for reward in rewards]
    return sum(w * r for w, r in zip(weights, rewards, strict=True)) / sum(weights)


def ranking_loss(rewards, order):
    """-log Π over the places of e^r / Σ e^r of this and all later ones."""
    total = 0.0
    for place in range(len(order)):
        later = sum(torch.exp(rewards[at]) for at in order[place:])
        total = total - torch.log(torch.exp(rewards[order[place]]) / later)
    return total


def group_loss(kind, rewards, scores, options):
    chosen, *rejected = rewards
    sharpness, margin = options.get("loss.inverse_temperature"), options.get("loss.margin", 0.0)
    if kind == "group_hinge":
        return torch.clamp(hardest(rejected, sharpness) - chosen + margin, min=0)
    if kind == "group_logistic":
        return -log_sigmoid(chosen - hardest(rejected, sharpness))
    if kind == "group_softmax":
        return -torch.log(torch.exp(chosen) / sum(torch.exp(reward) for reward in rewards))
    if kind == "all_pairs":
        return mean(-log_sigmoid(chosen - reward - margin) for reward in rejected)
    return ranking_loss(rewards, sorted(range(len(rewards)), key=lambda at: -scores[at]))


GROUPS = {
    "hinge": ("group_hinge", {"loss.margin": 0.6}),
    "smooth hinge": ("group_hinge", {"loss.margin": 0.6, "loss.inverse_temperature": 2.0}),
    "logistic": ("group_logistic", {}),
    "smooth logistic": ("group_logistic", {"loss.inverse_temperature": 2.0}),
    "softmax": ("group_softmax", {}),
    "all pairs": ("all_pairs", {"loss.margin": 0.4}),
    "ranking": ("plackett_luce", {}),
    "ranking without scores": ("plackett_luce", {}),
    "per token": ("group_logistic", {"length_normalised": "true"}),
    "initial": ("group_hinge", {"loss.margin": 0.6, "reference": "initial"}),
    "synchronised": ("group_softmax", {"reference": "synchronised"}),
    "precomputed": ("group_softmax", {"precompute_reference": "true"}),
    "padded": ("group_softmax", {}),
    "rows with weights": ("group_softmax", {"weight_column": "worth"}),
}


@pytest.mark.parametrize("case", GROUPS)
def test_group_dpo(folder, case):
    """Four rows, which are seen again in the second step."""
    kind, options = GROUPS[case]
    options = {"reference": str(folder / "other"), **options}
    words = ["method=group_dpo", "method.beta=0.3", f"method/loss={kind}", "method.reference_every_n_steps=1"]
    words += [f"method.{key}={value}" for key, value in options.items()] + ["data.packing=false"] * (case == "padded")
    rows = comparisons(4)
    if case.endswith("without scores"):
        rows = [{key: value for key, value in row.items() if key != "scores"} for row in rows]
    run = train(folder, rows, *words)
    policy, expected, before = policy_of(run), [], None
    reference, move = references(folder, run)
    for step in range(2):
        losses, values, now = [], [], []
        for row in rows:
            with torch.no_grad():
                theirs = scored(reference, row)
            rewards = [0.3 * (sum(a) - sum(b)) for a, b in zip(scored(policy, row), theirs, strict=True)]
            if "length_normalised" in options:
                rewards = [reward / len(some) for reward, some in zip(rewards, theirs, strict=True)]
            losses.append(group_loss(kind, rewards, row.get("scores", [0.0] * len(rewards)), options))
            chosen, *rejected = (reward.item() for reward in rewards)
            now.append(rejected.index(max(rejected)))
            values.append(
                {
                    "rewards/chosen": chosen,
                    "rewards/rejected": mean(rejected),
                    "rewards/margins": chosen - mean(rejected),
                    "rewards/margins_hardest": chosen - max(rejected),
                    "rewards/accuracies": float(chosen > max(rejected)),
                    "group/active_fraction": float(losses[-1] > 0),
                    "group/hardest_place": now[-1] / max(len(rejected) - 1, 1),
                    "group/num_rejected": len(rejected),
                }
            )
        logged = {name: mean(some[name] for some in values) for name in values[0]}
        if before:
            logged["group/hardest_changed"] = mean(float(a != b) for a, b in zip(before, now, strict=True))
        before = now
        worths = [row["worth"] if "weight_column" in options else 1.0 for row in rows]
        total = sum(w * x for w, x in zip(worths, losses, strict=True)) / sum(worths)
        expected.append(update(total, policy.parameters, step) | logged)
        move(policy)
    compare(run, expected, policy.weights)


# --- verdicts ---------------------------------------------------------------------------------------------------------


KTO = {
    "kto": ("kto", {}),
    "apo": ("apo_zero_unpaired", {}),
    "initial": ("kto", {"reference": "initial"}),
    "ema": ("kto", {"reference": "ema"}),
    "precomputed": ("kto", {"precompute_reference": "true"}),
    "padded": ("kto", {}),
    "rows with weights": ("kto", {"weight_column": "worth"}),
}


@pytest.mark.parametrize("case", KTO)
def test_kto(folder, case):
    kind, options = KTO[case]
    options = {"reference": str(folder / "other"), "desirable_weight": 0.7, "undesirable_weight": 1.6, **options}
    words = ["method=kto", "method.beta=0.2", f"method/loss={kind}", "method.reference_decay=0.7"]
    words += [f"method.{key}={value}" for key, value in options.items()] + ["data.packing=false"] * (case == "padded")
    said = texts(4, 16)
    rows = [
        {"prompt": said[2 * at], "completion": said[2 * at + 1], "label": at % 3 != 1, "worth": WORTH[at]}
        for at in range(8)
    ]
    run = train(folder, rows, *words)
    policy, expected = policy_of(run), []
    reference, move = references(folder, run, 0.7)

    def ratio(prompt, completion):
        prompt, completion = ids(prompt), [*ids(completion), END]
        with torch.no_grad():
            theirs = sum(reference.logps(prompt, completion))
        return sum(policy.logps(prompt, completion)) - theirs

    for step in range(2):
        losses, values, verdicts = [], [], []
        places = range(4 * step, 4 * step + 4)
        with torch.no_grad():
            mixed = [ratio(rows[at]["prompt"], rows[(at + 1) % 8]["completion"]).item() for at in places]
        point = max(0.0, mean(mixed))
        against = point if kind == "kto" else 0.0
        for at in places:
            r = ratio(rows[at]["prompt"], rows[at]["completion"])
            if rows[at]["label"]:
                losses.append(options["desirable_weight"] * (1 - sigmoid(0.2 * (r - against))))
            else:
                losses.append(options["undesirable_weight"] * (1 - sigmoid(0.2 * (against - r))))
            values.append(0.2 * r.item())
            verdicts.append(rows[at]["label"])
        logged = {
            "rewards/chosen": mean(v for v, good in zip(values, verdicts, strict=True) if good),
            "rewards/rejected": mean(v for v, good in zip(values, verdicts, strict=True) if not good),
            "kto/reference_point": point,
            "kto/desirable_fraction": mean(map(float, verdicts)),
        }
        worths = [rows[at]["worth"] if "weight_column" in options else 1.0 for at in places]
        total = sum(w * x for w, x in zip(worths, losses, strict=True)) / sum(worths)
        expected.append(update(total, policy.parameters, step) | logged)
        move(policy)
    assert case == "initial" or expected[0]["kto/reference_point"] + expected[1]["kto/reference_point"] > 0
    compare(run, expected, policy.weights)


# --- rewards ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [{}, {"margin_column": "gap"}, {"weight_column": "worth"}, {"centring": 0.3}],
    ids=lambda options: "".join(options) or "plain",
)
@pytest.mark.parametrize("packing", ["true", "false"])
def test_reward_model(folder, options, packing):
    rows = comparisons()
    words = [f"data.packing={packing}", *(f"method.{key}={value}" for key, value in options.items())]
    run = train(folder, rows, "method=reward_model", *words)
    model, expected = reward_model_of(run), []
    for step in range(2):
        losses, weights, values = [], [], []
        for row in rows[4 * step : 4 * step + 4]:
            prompt, completions = completions_of(row)
            last = [
                model.model.model(input_ids=torch.tensor([prompt + one])).last_hidden_state[0, -1]
                for one in completions
            ]
            chosen, *rejected = (model.model.score(state)[0] for state in last)
            for other in rejected:
                margin = row["gap"] if "margin_column" in options else 0.0
                weight = row["worth"] if "weight_column" in options else 1.0
                loss = -log_sigmoid(chosen - other - margin) + options.get("centring", 0.0) * (chosen + other) ** 2
                losses.append(weight * loss)
                weights.append(weight)
                values.append((chosen.item(), other.item()))
        logged = {
            "rewards/chosen": mean(a for a, _ in values),
            "rewards/rejected": mean(b for _, b in values),
            "rewards/margins": mean(a - b for a, b in values),
            "rewards/accuracies": mean(float(a > b) for a, b in values),
            "rewards/brier": mean((1 - 1 / (1 + math.exp(b - a))) ** 2 for a, b in values),
        }
        expected.append(update(sum(losses) / sum(weights), model.parameters, step) | logged)
    compare(run, expected, model.weights)


# --- methods that sample ----------------------------------------------------------------------------------------------

REWARDS = [
    "method/reward=[]", "method.reward.early._target_=tests.methods.wiring.Share",
    "method.reward.early.letters=abcdefghijk", "method.reward.early.least=4",
    "method.reward.vowels._target_=tests.methods.wiring.Share", "method.reward.vowels.letters=aeiou",
    "method.reward.vowels.least=5", "method.reward_weights=[0.4,1.7]", "rollout.max_completion_tokens=5",
    "rollout.temperature=0.7", "method.num_completions=4", "method.reference_decay=0.7",
    "method.reference_every_n_steps=1", "data.global_batch_size=2", "data.batch_size_per_device=1",
]  # fmt: skip
ANY = ["method.reward.early.least=1", "method.reward.vowels.least=1"]
TWICE, HALVES = ["method.num_iterations=2"], ["method.steps_per_rollout=2"]


def check_online(folder, *words, prefix=""):
    """Replay a method that samples, perhaps with prompts that open the answer."""
    rows = [{"prompt": text} for text in texts(5, 12)]
    if prefix:
        opened = {"role": "assistant", "content": prefix, "prefix": True}
        rows = [{"prompt": [{"role": "user", "content": row["prompt"]}, opened]} for row in rows]
    words = [word.replace("OTHER", str(folder / "other")) for word in (*REWARDS, "method.reference=OTHER", *words)]
    run = train(folder, rows, *words)
    temperature = run.config["rollout"]["temperature"]
    replay = Replay(run, *references(folder, run, 0.7, temperature), prefix)
    expected = replay.steps()
    compare(run, expected, replay.end)
    return run, expected


GRPO = {
    "on policy": [],
    "twice": TWICE,
    "halves": HALVES,
    "warm": ["rollout.temperature=1.0", *TWICE],
    "one weight each": ["method.reward_weights=null", *TWICE],
    **{f"scale {scale}": [f"method.scale={scale}", *TWICE] for scale in ("batch", "whiten", "none")},
    **{
        f"{estimator} {scale}": [f"method.estimator={estimator}", f"method.scale={scale}", "method.num_picked=2"]
        for estimator, scale in (
            ("rloo", "none"),
            ("reinforce_plus_plus", "batch"),
            ("remax", "none"),
            ("pass_at_k", "none"),
            ("pass_at_k", "group"),
        )
    },
    "each reward apart": ["method.aggregation=normalize_then_sum", *TWICE],
    "each apart, greedy": ["method.aggregation=normalize_then_sum", "method.estimator=remax", "method.scale=none"],
    **{
        f"kl {kind} {gradient}": ["method.kl_coef=0.2", f"method.kl_estimator={kind}", f"method.kl_gradient={gradient}"]
        + (TWICE if gradient == "importance" else HALVES)
        for kind in ("k1", "k2", "k3")
        for gradient in ("plain", "on_policy", "importance")
    },
    "kl on policy": ["method.kl_coef=0.2"],
    "kl to itself": ["method.kl_coef=0.2", "method.reference=initial", *TWICE],
    "kl to an average": ["method.kl_coef=0.2", "method.reference=ema", *TWICE],
    "kl to a copy": ["method.kl_coef=0.2", "method.reference=synchronised"],
    "kl in the reward": ["method.reward_kl_coef=0.3"],
    "kl in the reward, greedy": ["method.reward_kl_coef=0.3", "method.estimator=remax", "method.scale=none"],
    "kl in the reward to a target": ["method.reward_kl_coef=0.3", "method.reward_kl_target=2.0"],
    "kl in both": ["method.reward_kl_coef=0.3", "method.kl_coef=0.2", *HALVES],
    "entropy": ["method.entropy_coef=0.1", *TWICE],
    "few tokens": ["method.top_entropy_quantile=0.3", *TWICE],
    "few tokens, greedy": ["method.top_entropy_quantile=0.6", "method.estimator=remax", "method.scale=none"],
    "left behind": ["method.off_policy_threshold=0.02", *TWICE],
    "another engine": ["rollout.dtype=bfloat16", "method.importance_cap=1.01", *TWICE],
    "another engine, on policy": ["rollout.dtype=bfloat16", "method.importance_cap=1.01"],
    "truncated masked": ["method.truncated=mask", *ANY, *TWICE],
    "truncated penalised": ["method.truncated=penalise", "method.truncation_penalty=0.3", *TWICE],
    "flat dropped": ["method.group_filter=drop", "method.num_completions=2", "data.global_batch_size=4"],
    "flat replaced": ["method.group_filter=resample", "method.num_completions=2", "data.global_batch_size=4"],
    "right": ["method.right_reward=0.1", "method.num_completions=2"],
    "padded": ["data.packing=false", *TWICE],
    "clipped norm": ["trainer.gradient_clip_val=0.05"],
    "dapo": ["method/loss=dapo", "method.loss.clip_low=0.01", "method.loss.clip_high=0.02", *TWICE],
    "narrow": ["method.loss.clip_low=0.02", "method.loss.clip_high=0.01", *TWICE],
    "dual": ["method.loss.dual_clip=1.02", *TWICE],
    "dr_grpo": ["method/loss=dr_grpo", *TWICE],
    "gspo": ["method/loss=gspo", *TWICE],
    "luspo": ["method/loss=luspo", *TWICE],
    "cispo": ["method/loss=cispo", "method.loss.clip_low=0.02", "method.loss.clip_high=0.01", *TWICE],
    "cispo without a lower bound": ["method/loss=cispo", "method.loss.clip_high=0.01", *HALVES],
    "sapo": ["method/loss=sapo", "method.loss.temperature_negative=2.0", *TWICE],
    "gmpo": ["method/loss=gmpo", "method.loss.clip_low=0.02", "method.loss.clip_high=0.01", *TWICE],
    "vespo": ["method/loss=vespo", *TWICE],
}  # fmt: skip


@pytest.mark.parametrize("case", GRPO)
def test_grpo(folder, case):
    check_online(folder, "method=grpo", *GRPO[case])


def test_grpo_of_answers_that_the_prompt_opens(folder):
    """The prefix is in the prompt, and the rewards judge it with what is sampled."""
    run, _ = check_online(folder, "method=grpo", *TWICE, prefix="aeb")
    assert [row.tokens for row in run.rollouts[0].prompts] == [ids(text) + ids("aeb") for text in texts(5, 12)[:2]]


RLOO = {
    "on policy": [],
    "twice": TWICE,
    "halves": HALVES,
    "batch": ["method.scale=batch"],
    "whiten": ["method.scale=whiten", *TWICE],
    "kl": ["method.reward_kl_coef=0.3", *TWICE],
    "kl to a target": ["method.reward_kl_coef=0.3", "method.reward_kl_target=30.0"],
    "kl to an average": ["method.reward_kl_coef=0.3", "method.reference=ema"],
    "another engine": ["rollout.dtype=bfloat16", "method.reward_kl_coef=0.3", *TWICE],
    **{
        f"normaliser {kind}": [f"method.normaliser={kind}", "optimizer.lr=0.1", *TWICE]
        for kind in ("token", "constant", "sum")
    },
    "ratio of tokens": ["method.loss.ratio_level=token", *TWICE],
    "truncated masked": ["method.truncated=mask", *ANY],
    "truncated penalised": ["method.truncated=penalise", "method.truncation_penalty=0.3"],
}


@pytest.mark.parametrize("case", RLOO)
def test_rloo(folder, case):
    check_online(folder, "method=rloo", *RLOO[case])


PPO = {
    "on policy": [],
    "twice": TWICE,
    "halves": HALVES,
    "separate": ["method.critic=separate", *TWICE],
    "separate, on policy": ["method.critic=separate"],
    "values free": ["method.clip_value=null", *TWICE],
    "values tight": ["method.clip_value=0.01", "method.value_coef=0.7", *TWICE],
    "discounts": ["method.gamma=0.8", "method.gae_lambda=0.5", *TWICE],
    "rewards whitened": ["method.whiten_rewards=true", *TWICE],
    "advantages as they are": ["method.whiten_advantages=false", *TWICE],
    "entropy": ["method.entropy_coef=0.1", *TWICE],
    "kl": ["method.reward_kl_coef=0.3", *TWICE],
    "kl to a target": ["method.reward_kl_coef=0.3", "method.reward_kl_target=2.0"],
    "kl to an average": ["method.reward_kl_coef=0.3", "method.reference=ema"],
    "another engine": ["rollout.dtype=bfloat16", "method.reward_kl_coef=0.3", *TWICE],
    **{
        f"normaliser {kind}": [f"method.normaliser={kind}", "optimizer.lr=0.1", *TWICE]
        for kind in ("sequence", "constant", "sum")
    },
    "narrow": ["method.loss.clip_low=0.02", "method.loss.clip_high=0.01", *TWICE],
    "truncated masked": ["method.truncated=mask", *ANY],
    "truncated penalised": ["method.truncated=penalise", "method.truncation_penalty=0.3"],
    "padded": ["data.packing=false", *TWICE],
}


@pytest.mark.parametrize("case", PPO)
def test_ppo(folder, case):
    check_online(folder, "method=ppo", "method.value_coef=0.2", *PPO[case])


# --- completions of the data ------------------------------------------------------------------------------------------


def as_data(run, with_logps=False):
    """The completions that two steps sampled and their rewards, as rows of a file."""
    rows = []
    for rollout in run.rollouts:
        for number, prompt in enumerate(rollout.prompts):
            ones = [i for i, index in enumerate(rollout.prompt_index.tolist()) if index == number]
            plain, total = rollout.completions.plain(), rollout.columns["reward"].tolist()
            row = {
                "prompt": prompt.record["prompt"],
                "completions": [plain[i].tokens for i in ones],
                "rewards": [None if math.isnan(total[i]) else total[i] for i in ones],
            }
            rows.append(row | ({"logps": [plain[i].logps for i in ones]} if with_logps else {}))
    return rows


OFFLINE = ["rollout=data", "method/reward=[given]", "method.reward_weights=null"]
OFFLINE += [word for word in REWARDS if not word.startswith(("method.reward", "method/reward"))]


@pytest.mark.parametrize("with_logps", [False, True])
@pytest.mark.parametrize("name", ["grpo", "rloo", "ppo"])
def test_completions_of_the_data_train_as_if_they_were_sampled(folder, tmp_path, name, with_logps):
    """Equal losses and weights, also where the second update is off the policy that sampled."""
    rows, words = [{"prompt": text} for text in texts(5, 12)], [f"method={name}", *HALVES, "data.global_batch_size=4"]
    online = train(folder, rows, *REWARDS, *words)
    (rollout,) = {id(one): one for one in online.rollouts}.values()
    online.rollouts = [rollout]
    offline = train(folder, as_data(online, with_logps), *OFFLINE, *words)
    assert torch.equal(offline.rollouts[0].completions.tokens, rollout.completions.tokens)
    for ours, theirs in zip(offline.steps, online.steps, strict=True):
        for metric in ("train/loss", "train/grad_norm", "train/ratio", "train/clip_fraction"):
            assert ours[metric] == pytest.approx(theirs[metric], rel=1e-4, abs=1e-6), metric
        assert ours["train/grad_norm"] > 0
    for weight, value in online.end.items():
        torch.testing.assert_close(offline.end[weight], value, rtol=1e-4, atol=1e-6)


def test_log_probs_of_the_data_are_those_of_another_sampler(folder):
    """GRPO weighs a token by its probability now over that when it was sampled: here by e⁻¹."""
    rows, words = [{"prompt": text} for text in texts(5, 12)], ["method=grpo", "method.normaliser=token"]
    online = train(folder, rows, *REWARDS, *words)
    given = as_data(online, with_logps=True)
    for row in given:
        row["logps"] = [[value + 1 for value in logps] for logps in row["logps"]]
    offline = train(folder, given, *OFFLINE, *words)
    ratio = offline.steps[0]["train/grad_norm"] / online.steps[0]["train/grad_norm"]
    assert ratio == pytest.approx(math.exp(-1), rel=1e-4)
    assert offline.steps[0]["rollout/parity_mean_difference"] == pytest.approx(1.0, rel=1e-4)


def test_groups_of_the_data_may_have_any_size(folder):
    """Without its last completion a group has the mean of the others, which is subtracted."""
    online = train(folder, [{"prompt": text} for text in texts(5, 12)], *REWARDS, "method=rloo")
    given = as_data(online)
    given[0] = {"prompt": given[0]["prompt"]} | {name: given[0][name][:-1] for name in ("completions", "rewards")}
    given[0]["rewards"] = [1.0, 2.0, 6.0]
    given[1]["rewards"] = [0.0, 0.0, 1.0, 3.0]
    offline = train(folder, given, *OFFLINE, "method=rloo")
    rollout = offline.rollouts[0]
    assert rollout.prompt_index.tolist() == [0, 0, 0, 1, 1, 1, 1]
    assert rollout.columns["reward"].tolist() == [1, 2, 6, 0, 0, 1, 3]
    (advantages,) = [
        [value for row in batch.micro_batches for value in row.columns["advantages"].tolist()]
        for batch in offline.batches[:1]
    ]
    assert sorted(advantages) == pytest.approx(sorted([-3, -1.5, 4.5, -4 / 3, -4 / 3, 0, 8 / 3]))


@pytest.mark.parametrize(
    ("row", "why"),
    [
        ({}, "the row has no completions"),
        ({"completions": ["a" * 6], "rewards": [1]}, r"completions\[0\]: it has 7 tokens, and rollout.max_compl"),
        ({"completions": [[3, 99]], "rewards": [1]}, "it holds the token 99, and the tokenizer has 28"),
    ],
)
def test_rows_that_cannot_be_trained_on_are_refused_before_training(folder, row, why):
    first = {"prompt": "abc", "completions": ["ab"], "rewards": [1.0]}
    with pytest.raises(InputError, match=why) as caught:
        make(folder, [first, {"prompt": "abc", **row}], *OFFLINE, "method=rloo")
    assert "rows.jsonl:2" in str(caught.value)


@pytest.mark.parametrize("completion", ["abcd", [3, 4, 5, 6, 7]])
def test_completions_beyond_the_positions_of_the_model_are_refused_before_training(folder, completion):
    """Ids count as they are, and a text has its end token too."""
    rows = [{"prompt": "abc", "completions": ones} for ones in (["ab"], ["a", completion])]
    rows = [{**row, "rewards": [1.0] * len(row["completions"])} for row in rows]
    words = [*OFFLINE, "method=rloo"]
    needed = len(make(folder, rows, *words)[2].train[1].tokens) + 5
    for positions in (needed, needed - 1):
        _, method, _ = make(folder, rows, *words, f"model.config.max_position_embeddings={positions}")
        if positions == needed:
            method.factories.make_policy()
    why = rf"rows.jsonl:2: completions\[1\]: with its prompt it has {needed} tokens, and the model has {positions} pos"
    with pytest.raises(InputError, match=why):
        method.factories.make_policy()


def test_rewards_of_the_data_are_refused_for_samples(folder):
    """As many rewards in a row as samples of its prompt would be taken for theirs."""
    row = {"prompt": "abc", "completions": ["ab", "a"], "rewards": [1.0, 0.0]}
    with pytest.raises(InputError, match="others are sampled"):
        make(folder, [row], *OFFLINE[1:], "method=rloo", "method.num_completions=2")


# --- what two updates do not show -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["dpo", "kto", "group_dpo"])
@pytest.mark.parametrize("kind", ["initial", "ema", "OTHER", "adapter"])
def test_a_reference_has_no_dropout(folder, name, kind):
    """What it says of a batch is what it says one sequence at a time."""
    rows = comparisons(4)
    words = [f"method={name}"]
    if name == "kto":
        rows = [{"prompt": row["prompt"], "completion": row["chosen"], "label": True} for row in rows]
    seen = []

    class Keep(lightning.Callback):
        def on_train_batch_start(self, trainer, method, batch, batch_index):
            if batch_index == 0:
                seen.extend(method.reference.logps(micro).tolist() for micro in batch.micro_batches)
                seen.append(method.policy.training)

    kind = kind.replace("OTHER", str(folder / "other"))
    adapter = ["method.reference=initial", f"init_from={folder}/other", "peft=lora", "peft.lora_dropout=0.4"]
    words += adapter if kind == "adapter" else [f"method.reference={kind}"]
    words += ["model.config.attention_dropout=0.4"]
    run = train(folder, rows, *words, callbacks=[Keep()])
    reference, _ = references(folder, run)
    texts_of = [(row["prompt"], text) for row in rows for text in text_list(row)]
    expected = [sum(reference.logps(ids(prompt), [*ids(text), END])).item() for prompt, text in texts_of]
    assert seen.pop() is True, "the policy itself is trained with dropout"
    found = [value for values in seen for value in values]
    assert sorted(found) == pytest.approx(sorted(expected), abs=1e-3)


def text_list(row):
    """The completions of a row."""
    return [row["completion"]] if "completion" in row else [row["chosen"], *row["rejected"]]


def drawn(folder, *words):
    """Tokens of the rollouts of two steps without learning, over the same two prompts."""
    rows = [{"prompt": text} for text in texts(5, 2)]
    run = train(folder, rows, *REWARDS, "method=rloo", "optimizer.lr=1.0e-9", *words)
    return [rollout.completions.tokens.tolist() for rollout in run.rollouts]


def test_completions_are_drawn_by_the_seed_and_anew_in_every_rollout(folder):
    first, second = drawn(folder, "seed=1")
    assert first != second
    assert drawn(folder, "seed=1") == [first, second]
    assert first not in drawn(folder, "seed=2") and second not in drawn(folder, "seed=2")


def test_the_prompts_of_a_rollout_are_drawn_apart(folder):
    """Two equal prompts get different completions."""
    rows = [{"prompt": "abc"}] * 4
    run = train(folder, rows, *REWARDS, "method=rloo", "optimizer.lr=1.0e-9")
    assert len({tuple(one.tokens) for one in run.rollouts[0].completions.plain()}) > 4


def test_rows_are_shuffled_by_the_seed(folder):
    rows = [{"text": text} for text in texts(2, 16, 7, 7)]
    words = ["method=pretrain", "data.max_tokens_per_sequence=16", "data.order=shuffled", "optimizer.lr=1.0e-9"]
    losses = [[step["train/loss"] for step in train(folder, rows, *words, f"seed={seed}").steps] for seed in (1, 1, 2)]
    assert losses[0] == losses[1] != losses[2]
    as_is = train(folder, rows, *words, "data.order=as_is").steps
    assert losses[0] != [step["train/loss"] for step in as_is]


@pytest.mark.parametrize("packing", ["true", "false"])
def test_noise_on_the_embeddings_is_scaled_and_for_training_only(folder, packing):
    """At most alpha / sqrt(tokens of the document times width), and nearly that much somewhere."""
    seen = []

    class Keep(lightning.Callback):
        def on_train_batch_start(self, trainer, method, batch, batch_index):
            table = method.policy.get_input_embeddings()
            for training in (True, False):
                method.policy.train(training)
                heard = []
                hook = table.register_forward_hook(lambda module, args, out, heard=heard: heard.append((args[0], out)))
                for micro in batch.micro_batches:
                    method.compute_loss(micro)
                hook.remove()
                noise = [(out - table.weight[tokens]).abs().max().item() for tokens, out in heard]
                seen.append((training, max(noise)))
            method.policy.train()

    rows = [{"messages": [{"role": "user", "content": "abc"}, {"role": "assistant", "content": "defgh"}]}] * 8
    train(folder, rows, "method=sft", "method.neftune_alpha=0.9", f"data.packing={packing}", callbacks=[Keep()])
    limit = 0.9 / math.sqrt(9 * 16)
    for training, most in seen:
        assert 0.9 * limit < most <= limit * 1.001 if training else most == 0
