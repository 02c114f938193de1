"""The reference policy is what its word says, for every kind of adapter, and leaves the policy as it was.

What it must be is computed slowly: weights opened separately, one prompt + completion at a time, the model's own
forward.
"""

import copy

import pytest
import torch
from peft import AdaptionPromptConfig, IA3Config, LoraConfig, PeftModel, PrefixTuningConfig
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from alignlab.data.batching.collate import collate
from alignlab.errors import InputError
from alignlab.losses.logps import segment_sums
from alignlab.models import adapters
from alignlab.models.reference import make_reference
from alignlab.models.scoring import token_scores
from tests.methods.toy import rows_for

KINDS = {
    "full": None,
    "lora": LoraConfig(r=2, target_modules="all-linear"),
    "dora": LoraConfig(r=2, target_modules="all-linear", use_dora=True),
    "lora_with_head": LoraConfig(r=2, target_modules=["q_proj"], modules_to_save=["lm_head"]),
    "ia3": IA3Config(target_modules="all-linear", feedforward_modules=[]),
    "prefix": PrefixTuningConfig(num_virtual_tokens=3),
    "llama_adapter": AdaptionPromptConfig(adapter_len=3, adapter_layers=2),
}
CONTINUED = [f"continued_{kind}" for kind in KINDS if kind not in ("full", "lora_with_head")]
ALL = [*KINDS, *CONTINUED]
CELLS = [
    *((word, kind) for word in ("initial", "base", "ema") for kind in ALL),
    *((word, kind) for word in ("synchronised", "path") for kind in ("full", "lora", "continued_prefix")),
]
FREE = {"lora", "dora", "llama_adapter"}  # fresh, these change nothing: the base itself is the reference
PADDED = ("prefix", "llama_adapter")  # what stands before every sequence keeps them from being laid end to end


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """Folder with the weights of a tiny model for each seed."""
    folder = tmp_path_factory.mktemp("weights")
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    for seed in (0, 1):
        torch.manual_seed(seed)
        model = LlamaForCausalLM(LlamaConfig(vocab_size=64, num_key_value_heads=2, pad_token_id=0, **sizes))
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, mean=float(parameter.ndim == 1), std=0.3)
        model.save_pretrained(folder / str(seed))
    return folder


def open_base(weights, seed=0):
    return AutoModelForCausalLM.from_pretrained(weights / str(seed), attn_implementation="packed").eval()


def stir(model, seed, scale=0.3):
    """Change whatever trains, as training would."""
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in (p for p in model.parameters() if p.requires_grad):
            parameter.add_(scale * torch.randn(parameter.shape, generator=draw))


@pytest.fixture
def make(weights, tmp_path):
    """``make(kind)``: a policy as training starts, and the same opened separately (a function)."""

    def policy_of(kind):
        model = open_base(weights)
        if kind == "full":
            return model.train(), lambda: open_base(weights)
        torch.manual_seed(3)
        policy = adapters.attach(model, KINDS[kind.removeprefix("continued_")])
        if kind.startswith("continued_"):
            stir(policy, seed=7)
        policy.save_pretrained(tmp_path / "adapter")
        if kind.startswith("continued_"):
            policy = adapters.reattach(open_base(weights), str(tmp_path / "adapter"))
        return policy.train(), lambda: PeftModel.from_pretrained(open_base(weights), tmp_path / "adapter").eval()

    return policy_of


ROWS = list(rows_for("dpo", 3))


def batch_of(kind):
    return collate(ROWS, packing=not kind.endswith(PADDED))


def fast(model, batch):
    return segment_sums(token_scores(model, batch).logps, batch.sequence_ids, batch.num_sequences)


@torch.no_grad()
def slow(model):
    """Sum of the supervised log-probabilities of every completion, one forward for each."""
    found = []
    for row in ROWS:
        prompt, *lengths = row.groups[0]
        start = prompt
        for length in lengths:
            tokens = torch.tensor(row.tokens[:prompt] + row.tokens[start : start + length])
            logps = model(input_ids=tokens[None], use_cache=False).logits[0].log_softmax(-1)
            flags = row.supervised[start : start + length]
            places = [prompt + i for i in range(length) if flags[i]]
            found.append(sum(logps[place - 1, tokens[place]] for place in places))
            start += length
    return torch.stack(found)


def score(reference, policy, batch):
    with reference.scoring_model(policy) as model:
        return fast(model, batch)


@pytest.mark.parametrize(("word", "kind"), CELLS)
def test_the_reference_is_what_its_word_says(weights, make, word, kind):
    """Scored after the policy has been trained away from where it began."""
    policy, open_again = make(kind)
    typed = str(weights / "1") if word == "path" else word
    reference = make_reference(policy, typed, lambda path: open_base(weights, 1))
    stir(policy, seed=11)
    expected = {"base": lambda: open_base(weights), "path": lambda: open_base(weights, 1)}.get(word, open_again)
    found = score(reference, policy, batch_of(kind))
    torch.testing.assert_close(found, slow(expected()), atol=1e-4, rtol=1e-5)
    assert not found.requires_grad
    moved = (fast(policy.eval(), batch_of(kind)) - found).abs().max()
    assert moved > 0.01, "the policy has moved, and the reference with it"


@pytest.mark.parametrize("kind", CONTINUED)
def test_the_initial_reference_of_a_continued_adapter_is_not_the_base(weights, make, kind):
    """The adapter of the stage before belongs to the policy that this stage starts from."""
    policy, _ = make(kind)
    found = score(make_reference(policy, "initial", None), policy, batch_of(kind))
    assert (found - slow(open_base(weights))).abs().max() > 0.1


@pytest.mark.parametrize("kind", ALL)
@pytest.mark.parametrize("word", ["initial", "ema"])
def test_what_a_reference_costs(make, kind, word):
    """Full weights: a copy. An adapter that changes nothing yet: no number at all. Any other: the adapter once more."""
    policy, _ = make(kind)
    before = sum(p.numel() for p in policy.parameters())
    trained = sum(adapters.trainable(policy).values())
    reference = make_reference(policy, word, None)
    added = sum(p.numel() for p in (*policy.parameters(), *reference.parameters())) - before
    whole = kind == "full" or (kind.endswith("llama_adapter") and (kind in CONTINUED or word == "ema"))
    free = kind in FREE and word == "initial"
    assert added == (0 if free else before if whole else trained)


@pytest.mark.parametrize("kind", ALL)
@pytest.mark.parametrize("word", ["initial", "base", "ema"])
def test_the_policy_is_left_as_it_was(make, kind, word):
    """What trains, each module's mode, the forward, the saved tensors and the switches: before, and after an error."""
    policy, _ = make(kind)
    batch = batch_of(kind)
    before, expected = picture(policy), fast(policy, batch)
    reference = make_reference(policy, word, None)
    score(reference, policy, batch)
    with pytest.raises(ZeroDivisionError), reference.scoring_model(policy):
        raise ZeroDivisionError
    assert picture(policy) == before
    assert torch.equal(fast(policy, batch), expected)
    stir(policy, seed=11)
    fast(policy, batch).sum().backward()
    frozen = [p for name, p in policy.named_parameters() if ".reference" in name]
    assert all(p.is_leaf for p in policy.parameters())
    assert all(p.grad is None and not p.requires_grad for p in (*frozen, *reference.parameters()))
    assert {name for name, p in policy.named_parameters() if p.grad is not None} == set(before["trainable"])


def picture(policy):
    """All of a policy that another reader could see, the frozen copy of its adapter left out."""
    modules = {name: module.training for name, module in policy.named_modules() if "reference" not in name.split(".")}
    switches = {
        name: (getattr(module, "_active_adapter", None), getattr(module, "_disable_adapters", None))
        for name, module in policy.named_modules()
        if "reference" not in name.split(".")
    }
    return {
        "trainable": adapters.trainable(policy),
        "modes": modules,
        "switches": switches,
        "adapter": getattr(policy, "active_adapter", None),
        "disabled": getattr(policy, "_adapters_disabled", None),
    }


@pytest.mark.parametrize("kind", ["full", "lora", "continued_dora", "continued_prefix", "continued_llama_adapter"])
def test_a_moving_reference_follows_by_the_share_it_is_told(make, kind):
    """θ_ref ← 0.75 θ_ref + 0.25 θ, twice, then a copy; only what trains moves."""
    policy, _ = make(kind)
    reference = make_reference(policy, "ema", None)
    by_hand = trained(policy)
    for seed in (1, 2):
        stir(policy, seed=seed)
        reference.move_towards(policy, 0.25)
        by_hand = {name: 0.75 * old + 0.25 * trained(policy)[name] for name, old in by_hand.items()}
    found = followers(reference, policy)
    assert found.keys() == by_hand.keys()
    for name, expected in by_hand.items():
        torch.testing.assert_close(found[name], expected, atol=1e-7, rtol=1e-6)
    reference.move_towards(policy, 1.0)
    for name, expected in trained(policy).items():
        assert torch.equal(followers(reference, policy)[name], expected)


def trained(policy):
    return {name: p.detach().clone() for name, p in policy.named_parameters() if p.requires_grad}


def followers(reference, policy):
    """The reference's tensors by the names that they have in the policy."""
    if reference.model is not None:
        tensors = dict(reference.model.named_parameters())
        return {name: tensors[name].detach() for name in trained(policy)}
    tensors = dict(policy.named_parameters())
    return {name: tensors[name.replace(".default", ".reference")].detach() for name in trained(policy)}


def test_a_fingerprint_changes_with_any_weight_of_the_reference(make, weights):
    """The same weights give the same digits; one weight changed gives others, where the reference uses it."""
    policy, _ = make("continued_lora")
    digits = {word: make_reference(copy.deepcopy(policy), word, None).fingerprint for word in ("initial", "base")}
    assert digits["initial"] != digits["base"]
    assert make_reference(copy.deepcopy(policy), "initial", None).fingerprint == digits["initial"]
    with torch.no_grad():
        next(p for p in policy.parameters() if p.requires_grad).view(-1)[0].add_(1e-6)
    assert make_reference(copy.deepcopy(policy), "initial", None).fingerprint != digits["initial"]
    assert make_reference(copy.deepcopy(policy), "base", None).fingerprint == digits["base"]


def test_weights_of_another_vocabulary_are_refused(weights):
    other = LlamaForCausalLM(
        LlamaConfig(vocab_size=65, hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2)
    )
    with pytest.raises(InputError, match="has 65 tokens and that of the policy 64"):
        make_reference(open_base(weights), "somewhere", lambda path: other)


def test_a_reference_stays_in_eval_mode(weights):
    """Whoever puts the whole method into train mode."""
    reference = make_reference(open_base(weights), "initial", None)
    torch.nn.ModuleList([reference]).train()
    assert not any(module.training for module in reference.modules())


BASE_CHANGING = ["pissa", "olora"]


@pytest.mark.parametrize("init", BASE_CHANGING)
def test_an_adapter_taken_out_of_the_base_is_taken_once(weights, init):
    policy = adapters.attach(open_base(weights), LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=init))
    batch = batch_of("lora")
    before = fast(policy, batch)
    reference = make_reference(policy, "initial", None)
    torch.testing.assert_close(fast(policy, batch), before)
    stir(policy, 3)
    torch.testing.assert_close(score(reference, policy, batch), before)
    assert policy.active_peft_config.init_lora_weights == init


@pytest.mark.parametrize("init", BASE_CHANGING)
def test_the_base_without_what_was_taken_out_of_it_is_no_reference(weights, init):
    policy = adapters.attach(open_base(weights), LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=init))
    with pytest.raises(InputError, match=r"method\.reference=initial"):
        make_reference(policy, "base", None)


@pytest.fixture
def with_biases():
    """A policy that trains biases of the base with its adapter."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = LlamaConfig(vocab_size=64, num_key_value_heads=2, pad_token_id=0, attention_bias=True, **sizes)
    model = LlamaForCausalLM._from_config(config, attn_implementation="packed").eval()
    model.name_or_path = "somewhere"
    return lambda bias: adapters.attach(model, LoraConfig(r=2, target_modules=["q_proj"], bias=bias))


@pytest.mark.parametrize("bias", ["all", "lora_only"])
def test_biases_that_train_do_not_train_the_reference(with_biases, bias):
    policy, batch = with_biases(bias), batch_of("lora")
    reference, before = make_reference(policy, "initial", None), fast(policy, batch)
    stir(policy, 3)
    assert not torch.allclose(fast(policy, batch), before)
    torch.testing.assert_close(score(reference, policy, batch), before)
    reference = make_reference(policy, "ema", None)
    stir(policy, 4)
    reference.move_towards(policy, 1.0)
    torch.testing.assert_close(score(reference, policy, batch), fast(policy, batch))


def test_a_base_whose_biases_train_is_no_reference(with_biases):
    with pytest.raises(InputError, match=r"method\.reference=initial"):
        make_reference(with_biases("all"), "base", None)
