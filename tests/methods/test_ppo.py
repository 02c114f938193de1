"""PPO as a method: what its critic says of a rollout."""

import functools

import pytest
import torch
from transformers import AutoTokenizer, LlamaConfig, LlamaForSequenceClassification

from alignlab.errors import InputError
from alignlab.methods.ppo import PPO
from alignlab.models.critic import Critic
from alignlab.models.export import save
from alignlab.models.locations import POCKET
from alignlab.models.reward import open_reward_model
from alignlab.types.adapted import base_model
from tests.commands import alignlab
from tests.methods.toy import METHODS, fit, make_loader, make_method, make_policy, rows_for
from tests.models.test_export import scratch
from tests.rollout.test_rollout import make_rollout


def test_values_before_learning_are_without_dropout():
    """Two looks at the same rollout agree, and the critic trains on with dropout."""
    dropping = functools.partial(make_policy, dropout=0.5)
    method, seen = make_method("ppo_separate", lr=0.1, policy=dropping), []
    score = method.score

    def look_twice(batch):
        seen.extend(score(batch)["values"] for _ in range(2))
        return score(batch)

    method.score = look_twice
    torch.manual_seed(0)
    fit(method, make_loader(rows_for("ppo_separate"), 8, num_steps=4), weights=False)
    assert any(values.any() for values in seen), "a critic that expects nothing would prove nothing"
    assert all(torch.equal(*seen[start : start + 2]) for start in range(0, len(seen), 2))
    assert method.critic.trunk.training


# --- a critic from a reward model -------------------------------------------------------------------------------------

SMALL = ["logger=none", "callbacks.exact_match=null", "data.source.num_train=40", "data.source.num_validation=4"]
SHORT = [*SMALL, "trainer.max_epochs=-1", "trainer.max_steps=1", "data.global_batch_size=4"]
SAMPLED = ["method=ppo", *SHORT, "rollout.max_completion_tokens=8", "method.num_completions=2"]
SAMPLED += ["method.group_filter=keep", "method.steps_per_rollout=1"]


def test_the_explained_variance_does_not_depend_on_the_size_of_rewards():
    """With λ = 1 a return is the reward of its completion; values of half of it leave a quarter of the variance."""
    method = METHODS["ppo"](gae_lambda=1.0, reward_kl_coef=0.0, factories=make_method("ppo").factories)
    rollout = make_rollout(rewards=((0.02, 0.0, 0.01),))
    returns = rollout.columns["reward"][rollout.sequence_ids]
    rollout = method.advantages(rollout.with_token_columns(values=returns / 2))
    torch.testing.assert_close(rollout.token_columns["returns"], returns)
    assert rollout.metrics["explained_variance"] == pytest.approx(0.75)


@pytest.mark.parametrize("peft", ["none", pytest.param("lora", marks=pytest.mark.slow)])
def test_a_critic_starts_as_the_reward_model_of_a_run(tmp_path, monkeypatch, peft):
    """The first value of each token is the score that Transformers' own class gives to what comes before it."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    judge, run, seen = tmp_path / "judge", tmp_path / "run", []
    fast = ["optimizer.lr=0.02", "scheduler.warmup_steps=0"]  # so that one step leaves the initial policy behind
    assert alignlab("train", "method=reward_model", *SHORT, *fast, f"peft={peft}", f"run_dir={judge}") == 0
    advantages = PPO.advantages
    monkeypatch.setattr(PPO, "advantages", lambda self, rollout: seen.append(rollout) or advantages(self, rollout))
    fit = PPO.on_fit_start
    monkeypatch.setattr(PPO, "on_fit_start", lambda self: seen.append(self.critic) or fit(self))
    assert alignlab("train", *SAMPLED, f"method.critic={judge}", f"run_dir={run}") == 0
    (critic, rollout), (model, _) = seen, open_reward_model(str(judge), "auto", "path")
    found = rollout.token_columns["values"].split(rollout.completions.lengths.tolist())
    for index, values, tokens in zip(rollout.prompt_index, found, rollout.completions.token_lists(), strict=True):
        before = [*rollout.prompts[index].tokens, *tokens]
        sizes = range(len(before) - len(tokens), len(before))
        expected = torch.cat([base_model(model)(input_ids=torch.tensor([before[:size]])).logits[0] for size in sizes])
        assert torch.allclose(values.float(), expected, atol=1e-4)
    assert torch.cat(found).std() > 0.01
    frozen = [name for name, weight in critic.named_parameters() if not weight.requires_grad]
    assert frozen == ["trunk.score.weight"], "an adapter is merged, and then all of the decoder is trained"
    assert not torch.allclose(critic.head.weight, base_model(model).score.weight, atol=1e-7)


def test_a_critic_that_does_not_fit_is_refused(tmp_path):
    """A word that is no path, a language model, fewer positions."""
    save(scored(), AutoTokenizer.from_pretrained(POCKET), tmp_path / "short")
    for name, why in {
        "seperate": r"no config\.json",
        str(POCKET): "it holds LlamaForCausalLM, which does not score sequences",
        str(tmp_path / "short"): "it has 64 positions, and the policy has 2048",
    }.items():
        with pytest.raises(InputError, match=why) as caught:
            Critic(name, 1.0, lambda path: scored()).build(make_policy())
        assert caught.value.asked == f"method.critic={name}"
        assert caught.value.instead.endswith("or type method.critic=separate")


def test_a_critic_with_other_tokens_is_refused_before_training(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    tokenizer = scratch("llama").load_tokenizer(lambda: ["one two three"])
    save(scored(vocab_size=300), tokenizer, tmp_path / "others")
    words = [f"method.critic={tmp_path / 'others'}", f"run_dir={tmp_path / 'run'}"]
    assert alignlab("train", *SAMPLED, *words) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert f"Refused. {words[0]}: it has other tokens: " in said and "is missing in its own" in said
    assert not (tmp_path / "run").exists()


def scored(**keys):
    """A small reward model of 64 positions."""
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}
    keys = {"vocab_size": 384, "max_position_embeddings": 64, "num_labels": 1, **keys}
    return LlamaForSequenceClassification(LlamaConfig(**sizes, **keys))
