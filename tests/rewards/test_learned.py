"""A reward model as a reward: it says of a completion what it said in training, however the texts are batched."""

import math
import threading

import pytest
import torch

from alignlab.data.batching.collate import collate
from alignlab.data.settings import TokenSettings
from alignlab.data.tokenise.rows import tokenize
from alignlab.errors import InputError
from alignlab.models import export
from alignlab.models.scoring import sequence_scores
from alignlab.rewards.learned import LearnedReward
from alignlab.rewards.scorer import Limits, Scorer
from alignlab.types.rows import Preference
from tests.commands import alignlab, metrics, summary
from tests.models.test_export import disturb, pretrained, scratch

PROMPTS = [({"role": "system", "content": "be brief"}, {"role": "user", "content": "1+" * n + "1"}) for n in range(4)]
TEXTS = [["2", "two three", ""], ["<|eos|> one", " three ", "\n2"], ["1\n1", "one " * 20, "2"], ["x", "y", "z" * 9]]
FLAT_TEXTS = [text for group in TEXTS for text in group]
FLAT_PROMPTS = [list(prompt) for prompt in PROMPTS for _ in range(3)]
LINES = (
    "{% for message in messages %}{{ '<|' + message.role + '|>' + message.content + '<|eos|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
"""Ends every turn in EOS and a line break."""


@pytest.fixture(scope="module")
def tokenizer():
    return scratch("llama").load_tokenizer(lambda: ["one two three 1+1+1 be brief one two three"])


@pytest.fixture
def folder(tmp_path, tokenizer):
    """A tiny reward model with 512 positions."""
    model = disturb(scratch("llama", max_position_embeddings=512).load_model(tokenizer, head="reward"))
    export.save(model, tokenizer, tmp_path / "model")
    return tmp_path / "model"


def learned(folder, **changes):
    settings = {"batch_size": 4, "dtype": "auto", "device": None, "chat_template": "auto", "read_at": "turn_end"}
    return LearnedReward(path=str(folder), **{**settings, **changes})


@torch.no_grad()
def scores_in_training(folder, prompts=PROMPTS, texts=TEXTS):
    """By the tokens, the layout and the function that ``method=reward_model`` trains with."""
    source = pretrained(folder)
    tokenizer = source.load_tokenizer()
    settings = TokenSettings(
        chat_template="auto",
        chat_template_kwargs={},
        special_tokens=None,
        loss_on="assistant",
        loss_on_reasoning=True,
        max_tokens_per_sequence=512,
        truncation="error",
        max_cut_fraction=0.0,
        max_dropped_fraction=0.0,
        bad_rows="error",
        cross_document_attention=False,
        number_columns=(),
        weight_column=None,
        weighs_turns=False,
    )
    turns = [[({"role": "assistant", "content": text},) for text in group] for group in texts]
    rows = [
        Preference(origin="", prompt=prompt, chosen=chosen, rejected=tuple(rejected))
        for prompt, (chosen, *rejected) in zip(prompts, turns, strict=True)
    ]
    batch = collate([tokenize(row, tokenizer, settings) for row in rows], packing=True)
    return sequence_scores(source.load_model(tokenizer, head="reward").eval(), batch).tolist()


@pytest.mark.parametrize("batch_size", [1, 5, 32])
def test_scores_are_those_of_training(folder, batch_size):
    found = learned(folder, batch_size=batch_size)(FLAT_TEXTS, FLAT_PROMPTS, answer=["2"] * 12)
    assert found == pytest.approx(scores_in_training(folder), abs=1e-5)
    assert max(found) - min(found) > 1e-2


def test_equal_texts_have_equal_rewards_to_the_last_bit(folder):
    texts, prompts = ["one", "one two three", "one", "one " * 30, "one"], [list(PROMPTS[0])] * 5
    found = learned(folder, batch_size=2)(texts, prompts)
    assert found[0] == found[2] == found[4] != found[1]


def test_a_prompt_may_be_a_text(folder):
    reward, message = learned(folder), {"role": "user", "content": "1+1"}
    assert reward(["2"], ["1+1"]) == reward(["2"], [[message]])
    assert reward(["2"], ["1+1"]) != reward(["2"], ["1+1+1"])


def test_text_end_reads_behind_what_the_template_writes(tmp_path, tokenizer):
    """As Transformers scores ``apply_chat_template``: the line break behind the last turn included."""
    own = scratch("llama").load_tokenizer(lambda: ["one two three 1+1+1 be brief one two three"])
    own.chat_template = LINES
    model = disturb(scratch("llama").load_model(own, head="reward")).eval()
    export.save(model, own, tmp_path / "model")
    ids = own.apply_chat_template([*PROMPTS[1], {"role": "assistant", "content": "2"}], return_dict=False)
    with torch.no_grad():
        whole, turn = (model(torch.tensor([some])).logits.item() for some in (ids, ids[:-1]))
    for read_at, expected in {"text_end": whole, "turn_end": turn}.items():
        assert learned(tmp_path, read_at=read_at)(["2"], [list(PROMPTS[1])]) == pytest.approx([expected], abs=1e-5)
    assert abs(whole - turn) > 1e-3


@pytest.mark.parametrize("read_at", ["turn_end", "text_end"])
def test_what_is_beyond_the_context_is_told_and_counted(folder, caplog, read_at):
    limits = Limits(timeout_seconds=60, num_retries=0, default=-1.0, max_failed_rollouts=3)
    scorer = Scorer({"reward_model": learned(folder, read_at=read_at)}, None, limits)
    scores = scorer(["2", "x y " * 300, "3"], [list(PROMPTS[0])] * 3, {})
    assert scores.by_name["reward_model"][1] == -1.0 and scores.failed == [0, 1, 0]
    assert scores.failures == {"reward_model": {"not_finite": 1}}
    assert "tokens, and the model has 512 positions: lower rollout.max_completion_tokens" in caplog.text


def test_a_completion_without_a_token_list_is_told(folder, caplog):
    """Half a surrogate pair is no text."""
    found = learned(folder)(["\ud800", "2"], [list(PROMPTS[0])] * 2)
    assert math.isnan(found[0]) and math.isfinite(found[1])
    assert "1 of 2 completions cannot be read" in caplog.text


def test_calls_at_the_same_time_give_the_same(folder):
    reward, found = learned(folder), {}
    threads = [
        threading.Thread(target=lambda key=key: found.update({key: reward(FLAT_TEXTS, FLAT_PROMPTS)}))
        for key in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found[0] == found[1] == found[2] == reward(FLAT_TEXTS, FLAT_PROMPTS)


def test_it_goes_to_the_device_of_the_run_unless_another_is_asked(folder):
    follows, stays = learned(folder), learned(folder, device="cpu")
    limits = Limits(timeout_seconds=1, num_retries=0, default=None, max_failed_rollouts=3)
    Scorer({"a": follows, "b": stays, "c": lambda *texts: []}, None, limits).to("meta")
    assert next(follows.model.parameters()).device.type == "meta"
    assert next(stays.model.parameters()).device.type == "cpu"


def test_without_a_chat_template_one_must_be_named(tmp_path, folder):
    (folder / "chat_template.jinja").unlink()
    with pytest.raises(InputError, match="has no chat template") as caught:
        learned(folder)
    assert "reward_model.chat_template=chatml" in caught.value.instead
    assert math.isfinite(learned(folder, chat_template="plain")(["2"], ["1+1"])[0])


def test_a_template_that_training_would_refuse_asks_for_another_or_for_its_end(folder):
    """The answer ends in no token that generation stops on."""
    (folder / "chat_template.jinja").write_text(LINES.replace("<|eos|>", "."))
    with pytest.raises(InputError, match="generation does not stop") as caught:
        learned(folder)
    assert "reward_model.read_at=text_end" in caught.value.instead
    assert math.isfinite(learned(folder, read_at="text_end")(["2"], ["1+1"])[0])


# --- real runs --------------------------------------------------------------------------------------------------------

SMALL = ["logger=none", "callbacks.exact_match=null", "data.source.num_train=40", "data.source.num_validation=4"]
SHORT = [*SMALL, "trainer.max_epochs=-1", "trainer.max_steps=2"]
JUDGED = ["rollout.max_completion_tokens=24", "method.num_completions=4", "data.global_batch_size=2"]


@pytest.mark.slow
@pytest.mark.parametrize("peft", ["none", "lora"])
@pytest.mark.parametrize("method", ["grpo", "rloo", "ppo"])
def test_a_trained_reward_model_rewards(tmp_path, monkeypatch, peft, method):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    judge, run = tmp_path / "judge", tmp_path / "run"
    batch = ["data.global_batch_size=8", "data.batch_size_per_device=4"]
    assert alignlab("train", "method=reward_model", *SHORT, *batch, f"peft={peft}", f"run_dir={judge}") == 0
    words = ["method/reward=[exact_answer,reward_model]", "method.reward_weights=[1.0,0.5]"]
    words += [f"method.reward.reward_model.path={judge}/model"]
    assert alignlab("train", f"method={method}", *SHORT, *JUDGED, *words, f"run_dir={run}") == 0
    assert summary(run)["status"] == "done"
    steps = [row for row in metrics(run) if "reward/reward_model" in row]
    assert steps and all(row["reward/reward_model_std"] > 0 for row in steps)
    mixed = [row["reward/exact_answer"] + 0.5 * row["reward/reward_model"] for row in steps]
    assert [row["reward/mean"] for row in steps] == pytest.approx(mixed, abs=1e-5)
