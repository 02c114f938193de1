"""Memory by term, against numbers worked by hand and against real tensors."""

import pytest
from rich.console import Console

from alignlab.assemble import open_model_and_data
from alignlab.cli.composition.compose import compose
from alignlab.config import schema
from alignlab.errors import InputError
from alignlab.estimate.build import Models, build_run
from alignlab.estimate.cards import CARDS, Hardware, parse_hardware
from alignlab.estimate.changes import LORA, NF4, OFFLOAD, ZERO_3, cheapest_changes
from alignlab.estimate.estimate import estimate
from alignlab.estimate.live_bytes import LiveBytes
from alignlab.estimate.memory import MIB, SAMPLING, SAVING, UPDATE, memory
from alignlab.estimate.table import WIDTH, estimate_card
from alignlab.estimate.work import step_bytes, step_flops
from alignlab.models.scoring import token_scores
from alignlab.run_folder import console as terminal

SMALL = ["data=arithmetic", "data.source.num_train=64", "data.source.num_validation=4"]
TWO = ["trainer.devices=2"]


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return f"data.cache_dir={tmp_path_factory.mktemp('tokens')}"


@pytest.fixture(scope="module")
def opened(cache):
    """Config and models of a command, each made once."""
    made = {}

    def open_(*words):
        config = schema.check(compose([*SMALL, cache, *words]))
        key = str([config["method"]["_target_"], config["model"], config["data"], config["trainer"]["max_steps"]])
        if key not in made:
            made[key] = Models(open_model_and_data(config)[1])
        return config, made[key]

    return open_


def terms(opened, *words, hardware=None):
    """Bytes by term and moment of a command."""
    return memory(build_run(*opened(*words), hardware or Hardware(None, 1))).terms


def at(found, name, moment=UPDATE):
    return found.get(name, {}).get(moment, 0)


# --- weights, gradients, optimizer ------------------------------------------------------------------------------------

NUMBERS = 574_080
"""Weights of the embedded model: 384 × 128 + 2 × (4 × 128² + 3 × 128 × 512 + 2 × 128) + 128."""


@pytest.mark.parametrize(
    ("words", "weights", "masters", "gradients", "state"),
    [
        (["strategy=single"], 4, 0, 4, 8),
        (["strategy=ddp", *TWO], 4, 0, 4, 8),
        (["strategy=fsdp", *TWO], 2, 0, 2, 4),
        (["strategy=deepspeed_z1", *TWO], 4, 2, 4, 4),
        (["strategy=deepspeed_z3", *TWO], 2, 0, 4, 4),  # with the copy of its gradients
        (["strategy=deepspeed_z1", *TWO, "trainer.precision=bf16-mixed"], 2, 2, 2, 4),
        (["optimizer=sgd"], 4, 0, 4, 4),
        (["optimizer=sgd", "optimizer.momentum=0.0"], 4, 0, 4, 0),
        (["optimizer=adamw_8bit"], 4, 0, 4, 2),
    ],
)
def test_bytes_per_weight(opened, words, weights, masters, gradients, state):
    """The table of docs/strategies.md, in bytes per weight of the model and process."""
    found = terms(opened, *words, hardware=Hardware(None, 2 if "trainer.devices=2" in words else 1))
    sizes = [at(found, name) for name in ("weights", "master weights", "gradients", "optimizer state")]
    assert sizes == [NUMBERS * per_weight for per_weight in (weights, masters, gradients, state)]


def test_an_adapter_trains_little_and_four_bits_are_half_a_byte(opened):
    lora, qlora = terms(opened, "peft=lora"), terms(opened, "peft=qlora")
    rank = 16
    trained = 2 * rank * (4 * (128 + 128) + 3 * (128 + 512))  # 2 blocks
    assert at(lora, "gradients") == 4 * trained and at(lora, "optimizer state") == 8 * trained
    linear = 2 * (4 * 128**2 + 3 * 128 * 512)
    double_quantised = 0.5 + (1 + 4 / 256) / 64
    assert at(qlora, "weights") == int(4 * (NUMBERS - linear + trained) + double_quantised * linear)


def test_references_and_critics(opened):
    copy = 4 * NUMBERS
    assert at(terms(opened, "method=dpo"), "reference") == copy
    assert at(terms(opened, "method=dpo", "peft=lora"), "reference") == 0
    assert at(terms(opened, "method=dpo", "method.precompute_reference=true"), "reference") == 0
    assert at(terms(opened, "method=grpo"), "reference") == 0
    assert at(terms(opened, "method=grpo", "method.kl_coef=0.1"), "reference") == copy
    assert at(terms(opened, "method=ppo", "method.critic=separate"), "critic") == 3 * copy


def test_the_key_value_cache(opened):
    """Two blocks of 4 heads of 32 numbers; keys and values in float32; columns double from 32 to 64."""
    words = ["method=grpo", "data.global_batch_size=2", "method.num_completions=3"]
    words += ["rollout.max_completion_tokens=40", "method.steps_per_rollout=1"]
    config, models = opened(*words)
    run = build_run(config, models, Hardware(None, 1))
    prompt = run.batches.sampling.prompt_tokens
    tokens = 6 * 64 + 2 * prompt
    layer_copied = 6 * 64 // 2
    assert at(memory(run).terms, "key-value cache", SAMPLING) == (tokens + layer_copied) * 2 * 2 * 4 * 32 * 4


# --- activations ------------------------------------------------------------------------------------------------------


def test_tensors_without_data_count_as_real_ones_do(opened):
    """The same forward and backward of the embedded model with numbers in its tensors."""
    config, models = opened("method=sft")
    run = build_run(config, models, Hardware(None, 1))
    model, batch = open_model_and_data(config)[0].load_model(models.data.tokenizer).train(), run.batches.largest
    marks = []
    for parameter in model.parameters():
        parameter.register_post_accumulate_grad_hook(lambda parameter: setattr(parameter, "grad", None))
    with LiveBytes([*model.parameters(), *model.buffers()]) as live:
        model.get_decoder().register_forward_hook(lambda *_: marks.append(live.now))
        token_scores(model, batch).logps.sum().backward()
    assert marks[0] == pytest.approx(run.micro_batch.activations, rel=0.02)
    assert live.peak == pytest.approx(run.micro_batch.peak, rel=0.02)


DEEP = ["model=scratch", "model.config.num_hidden_layers=8"]


def test_deep_decoders_follow_from_a_few_blocks(opened, monkeypatch):
    config, models = opened(*DEEP)
    few = build_run(config, models, Hardware(None, 1)).micro_batch
    monkeypatch.setattr("alignlab.estimate.live_bytes.SOME", 8)
    whole = build_run(config, Models(models.data), Hardware(None, 1)).micro_batch
    assert few == pytest.approx(whole, rel=0.01)


def test_checkpointing_and_sixteen_bits_need_less(opened):
    plain, recomputed, narrow = (
        build_run(*opened(*DEEP, *words), Hardware(None, 1)).micro_batch
        for words in ([], ["model.gradient_checkpointing=true"], ["trainer.precision=bf16-mixed"])
    )
    assert recomputed.activations < plain.activations / 5 and recomputed.peak < plain.peak / 2
    assert plain.peak / 2 < narrow.peak < plain.peak


# --- work -------------------------------------------------------------------------------------------------------------


def test_operations_are_those_that_pytorch_counts(opened):
    """Of the largest micro-batch of a step, forward and backward, by PyTorch's counter; within 5 %."""
    from torch.utils.flop_counter import FlopCounterMode

    config, models = opened("method=sft", "data.global_batch_size=16", "data.batch_size_per_device=16")
    run = build_run(config, models, Hardware(None, 1))
    with models.mode, FlopCounterMode(display=False) as counter:
        token_scores(models.policy(config), run.batches.largest).logps.sum().backward()
    per_token = step_flops(run) / run.batches.tokens
    assert counter.get_total_flops() / run.batches.largest.num_tokens == pytest.approx(per_token, rel=0.05)


def test_bytes_sent(opened):
    """With two ranks a sum for all sends its whole size once, a gathering half of it."""
    half = 4 * NUMBERS / 2
    words = [*TWO, "data.global_batch_size=16", "data.batch_size_per_device=4"]  # two micro-batches per rank

    def sent(*more):
        return step_bytes(build_run(*opened(*words, *more), Hardware(None, 2)))

    assert sent("strategy=ddp") == sent("strategy=deepspeed_z2") == 2 * half
    assert sent("strategy=fsdp") == (1 + 2 * 2) * half
    assert sent("strategy=deepspeed_z3") == (2 + 2 * 2) * half


# --- verdict ----------------------------------------------------------------------------------------------------------


def test_hardware_words():
    assert parse_hardware("h100x8") == Hardware(CARDS["h100"], 8)
    assert parse_hardware("b200").number == 1
    assert parse_hardware("h100x64").trainer == {"devices": 8, "num_nodes": 8}
    assert parse_hardware("h100x64").link == 50e9 < parse_hardware("h100x8").link == 450e9
    for word, why in (("h1000x8", "h100"), ("h100x9", "equally")):
        with pytest.raises(InputError, match=why):
            parse_hardware(word)


def test_changes_are_the_cheapest_that_fit(opened):
    config, models = opened("method=dpo", "data.batch_size_per_device=8")
    hardware = Hardware(None, 1)
    before = estimate(config, models, hardware, 0.4).memory.peak
    found = cheapest_changes(config, models, hardware, before - 20 * MIB, 0.4)
    assert 1 <= len(found) <= 3 and found[0][0].words.startswith("data.batch_size_per_device=")
    for change, after in found:
        assert after.memory.peak <= before - 20 * MIB
        again = [word for word in change.words.split() if "=" in word]
        config, models = opened("method=dpo", "data.batch_size_per_device=8", *again)
        assert estimate(config, models, hardware, 0.4).memory.peak == after.memory.peak


def test_what_changes_set_is_what_their_options_set():
    lora, zero = compose(["peft=qlora"]).peft, compose(["strategy=deepspeed_z3_offload"]).strategy.config
    assert {key: lora[key] for key in LORA} == LORA
    assert {key: lora.quantization[key] for key in NF4} == NF4
    kept = {key: zero.zero_optimization[key] for key in {**ZERO_3, **OFFLOAD}}
    assert kept == {**ZERO_3, **OFFLOAD}


def test_seventy_billion_weights_take_no_memory_here(opened):
    config, models = opened(
        *("model=scratch", "model.config.hidden_size=8192", "model.config.intermediate_size=28672"),
        *("model.config.num_hidden_layers=80", "model.config.num_attention_heads=64"),
        *("model.config.num_key_value_heads=8", "model.config.vocab_size=128256"),
        *("strategy=fsdp", "model.config.tie_word_embeddings=false"),
    )
    hardware = parse_hardware("h100x64")
    found = estimate(config, models, hardware, 0.4)
    assert found.run.policy.numbers == pytest.approx(70.6e9, rel=0.01)
    assert at(found.memory.terms, "optimizer state") == pytest.approx(8 * 70.6e9 / 64, rel=0.01)
    blocks = found.run.policy.root_bytes + found.run.policy.block_bytes  # no card has room for all at once
    assert at(found.memory.terms, "copies to save", SAVING) == blocks
    assert found.fits and blocks < 0.05 * found.run.policy.num_bytes
    assert found.work.seconds > found.work.flops / (64 * 989e12 * 0.4)


def test_the_table_fits_80_columns(opened, capsys):
    config, models = opened("method=grpo")
    found = estimate(config, models, parse_hardware("h100"), 0.4)
    Console(width=terminal.PIPE_WIDTH).print(estimate_card(found, [], 0.4))
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, map(str.rstrip, lines))) <= WIDTH
    assert any("key-value cache" in line for line in lines) and any("fits" in line for line in lines)
