"""Steps that must change nothing: those without a signal, and those whose loss or gradient is not finite."""

import dataclasses
import functools
import logging
import math

import pytest
import torch
from lightning.pytorch.plugins import MixedPrecision

from alignlab.data.batching.collate import collate, totals
from alignlab.errors import RunError
from alignlab.optim.skipped_steps import MAX_SKIPPED_STEPS, SkippedSteps, describe_rows, explain_overflow
from alignlab.types.batch import StepBatch
from alignlab.types.loss import LossOutput, LossTerm
from tests.methods.prompts import SAMPLED
from tests.methods.toy import METHODS, fit, make_loader, make_method, make_rows, rows_for, spoiled

OPTIMIZERS = {
    "sgd": functools.partial(torch.optim.SGD, momentum=0.9, weight_decay=0.1),
    "adamw": functools.partial(torch.optim.AdamW, weight_decay=0.1),
}


def train(factor, optimizer="adamw", from_step=0, num_steps=3, lr=0.1, **options):
    method = make_method("sft", OPTIMIZERS[optimizer], lr=lr, clip=1.0)
    method = spoiled(method, factor, range(from_step, from_step + num_steps))
    return *fit(method, make_loader(make_rows(), 4, num_steps=num_steps), **options), method


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("factor", [0.0, math.nan, math.inf])
@pytest.mark.parametrize("from_step", [0, 2])
def test_weights_and_the_optimizer_s_state_stay_as_they_are(factor, optimizer, from_step):
    """From the first step on, and after two that filled the optimizer's momentum."""
    expected, _, before = train(1.0, optimizer, num_steps=from_step) if from_step else (initial(), [], None)
    weights, steps, method = train(factor, optimizer, from_step, num_steps=from_step + 2)
    assert torch.equal(weights, expected)
    assert [step["progress/step"] for step in steps] == list(range(1, from_step + 3))
    state = method.optimizers().optimizer.state
    kept = before.optimizers().optimizer.state if before else {}
    for mine, theirs in zip(state.values(), kept.values(), strict=True):
        assert all(torch.equal(torch.as_tensor(mine[key]), torch.as_tensor(theirs[key])) for key in theirs)


def initial():
    """The weights before training."""
    return torch.cat([p.detach().flatten() for p in make_method("sft").factories.make_policy().parameters()])


def test_a_scaler_lets_no_empty_step_through():
    plugin = MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu", init_scale=128.0))
    weights, _, _ = train(0.0, plugins=[plugin])
    assert torch.equal(weights, initial())


def scaled(factor, num_steps):
    plugin = MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu", init_scale=2.0**30))
    return *train(factor, num_steps=num_steps, plugins=[plugin])[:2], plugin.scaler


def test_a_scale_that_is_too_large_at_first_may_settle(caplog):
    caplog.set_level(logging.INFO)
    weights, _, scaler = scaled(1.0, num_steps=30)
    told = [record.message for record in caplog.records if "the scale is halved" in record.message]
    assert len(told) > MAX_SKIPPED_STEPS and scaler.get_scale() == 2.0 ** (30 - len(told))
    assert not torch.equal(weights, initial())


def test_a_gradient_that_no_scale_makes_finite_ends_the_run(monkeypatch):
    monkeypatch.setattr(torch.amp.GradScaler, "get_scale", lambda scaler: 1.0)
    with pytest.raises(RunError, match=f"last {MAX_SKIPPED_STEPS} steps"):
        scaled(math.inf, num_steps=8)


@pytest.mark.parametrize("name", ["grpo", "rloo"])
def test_completions_that_are_all_alike_good_move_nothing(name):
    """Every advantage is 0, and nothing else is asked for."""
    plain = {"kl_coef": 0.0, "entropy_coef": 0.0} if name == "grpo" else {"reward_kl_coef": 0.0}
    alike = {"reward": {"alike": lambda completions, prompts, **columns: [1.0] * len(completions)}}
    made = functools.partial(METHODS[name], **{**SAMPLED, **alike, **plain})
    method = made(factories=make_method(name, OPTIMIZERS["adamw"], lr=0.1).factories)
    weights, steps = fit(method, make_loader(rows_for(name), 8, num_steps=2))
    assert torch.equal(weights, initial())
    assert [step["train/grad_norm"] for step in steps] == [0.0, 0.0]


def test_a_loss_that_is_not_finite_is_named_at_once_with_its_rows(caplog):
    """Row 3 of 13 spoils its own micro-batch of two; the step changes nothing, the others are learned from."""
    method = make_method("sft", lr=0.1)
    compute = method.compute_loss
    method.compute_loss = lambda batch: dataclasses.replace(
        compute(batch), terms=[t * (math.nan if "row 3" in batch.origins else 1.0) for t in compute(batch).terms]
    )
    with caplog.at_level(logging.WARNING):
        weights, _ = fit(method, make_loader(make_rows(), 2, num_steps=2, order="as_is"))
    (told,) = [record.message for record in caplog.records if "not finite" in record.message]
    assert told.startswith("step 1 changed nothing: the loss of a micro-batch was not finite")
    assert "row 3" in told and told.count("row ") == 2
    assert not torch.equal(weights, initial())


def test_a_loss_that_is_not_finite_moves_nothing_though_its_gradient_is_finite():
    method = make_method("sft", lr=0.1)
    compute = method.compute_loss
    method.compute_loss = lambda batch: LossOutput([LossTerm(t.sum + math.inf, t.unit) for t in compute(batch).terms])
    weights, (step,) = fit(method, make_loader(make_rows(), 4, num_steps=1, order="as_is"))
    assert 0 < step["train/grad_norm"] < math.inf
    assert torch.equal(weights, initial())


def test_a_gradient_that_is_not_finite_is_told_with_the_rows_of_the_step(caplog):
    """The root has an infinite slope at 0."""
    method = make_method("sft", lr=0.1)
    compute = method.compute_loss

    def compute_loss(batch):
        output = compute(batch)
        (term,) = output.terms
        return dataclasses.replace(output, terms=[term, LossTerm((term.sum * 0.0).sqrt(), term.unit)])

    method.compute_loss = compute_loss
    weights, _ = fit(method, make_loader(make_rows(), 4, num_steps=1, order="as_is"))
    (told,) = [record.message for record in caplog.records if "not finite" in record.message]
    assert told.startswith("step 1 changed nothing: the gradient was not finite; its rows are row ")
    assert all(f"row {index}" in told for index in range(8))
    assert torch.equal(weights, initial())


def test_skipped_steps_in_a_row_end_the_run_and_name_the_rows():
    with pytest.raises(RunError, match=f"last {MAX_SKIPPED_STEPS} steps .* not finite; its rows are row"):
        train(math.nan, num_steps=8)


def test_a_rate_that_the_weights_cannot_hold_is_told_in_a_paragraph():
    weight = torch.nn.Parameter(torch.ones(2))
    weight.grad = torch.ones(2)
    with pytest.raises(RunError, match=r"a step at rate 1e\+38: .*Lower optimizer\.lr"), explain_overflow(1e38):
        torch.optim.AdamW([weight], lr=1e38).step()
    with pytest.raises(RuntimeError, match="a bug"), explain_overflow(1.0):
        raise RuntimeError("a bug")


@pytest.mark.parametrize(("size", "more"), [(3, ""), (8, ""), (9, " and 1 more"), (13, " and 5 more")])
def test_a_message_names_eight_rows_at_most_and_counts_the_others(size, more):
    rows = make_rows()[:size]
    step = StepBatch([collate(rows, packing=True)], totals(rows), 0.0)
    named = ", ".join(f"row {index}" for index in range(min(size, 8)))
    for loss, what in ((math.nan, "the loss of a micro-batch"), (1.0, "the gradient")):
        told = describe_rows(step, [torch.tensor(loss)])
        assert told == f"{what} was not finite; its rows are {named}{more}"


def test_only_the_first_of_skipped_steps_in_a_row_is_told(caplog):
    """Twice all but one of the steps that end a run, with a good one between."""
    rows, skipped = make_rows()[:2], SkippedSteps()
    step = StepBatch([collate(rows, packing=True)], totals(rows), 0.0)
    row = [True] * (MAX_SKIPPED_STEPS - 1)
    with caplog.at_level(logging.WARNING):
        for number, bad in enumerate([*row, False, *row], start=1):
            skipped.count(bad, step, [torch.tensor(math.nan if bad else 1.0)], number)
    told = [record.message.split(":")[0] for record in caplog.records]
    assert told == ["step 1 changed nothing", f"step {MAX_SKIPPED_STEPS + 1} changed nothing"]
    with pytest.raises(RunError, match=f"now at {2 * MAX_SKIPPED_STEPS}"):
        skipped.count(True, step, [torch.tensor(math.nan)], 2 * MAX_SKIPPED_STEPS)
