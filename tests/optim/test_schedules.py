"""Schedules against rates worked by hand."""

import pytest
import torch

from alignlab.errors import InputError
from alignlab.optim import schedules


def rates(schedule, steps, **options):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=2.0)
    scheduler = schedule(optimizer, num_training_steps=steps, **options)
    found = []
    for _ in range(steps + 1):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return found


@pytest.mark.parametrize(
    ("schedule", "options", "expected"),
    [
        (schedules.constant, {"warmup_steps": 2}, [1, 2, 2, 2, 2, 2, 2]),
        (schedules.linear, {"warmup_steps": 2, "min_lr_ratio": 0.0}, [1, 2, 2, 1.5, 1, 0.5, 0]),
        (schedules.linear, {"warmup_steps": 2, "min_lr_ratio": 0.5}, [1, 2, 2, 1.75, 1.5, 1.25, 1]),
        (schedules.cosine, {"warmup_steps": 2, "min_lr_ratio": 0.0}, [1, 2, 2, 1 + 2**-0.5, 1, 1 - 2**-0.5, 0]),
        (schedules.cosine, {"warmup_steps": 2, "min_lr_ratio": 0.5}, [1, 2, 2, 1.5 + 8**-0.5, 1.5, 1.5 - 8**-0.5, 1]),
        (
            schedules.wsd,
            {"warmup_steps": 2, "decay_steps": 2, "min_lr_ratio": 0.0, "decay_type": "linear"},
            [1, 2, 2, 2, 2, 1, 0],
        ),
        (
            schedules.inverse_sqrt,
            {"warmup_steps": 1, "timescale_steps": None},
            [2, *(2 * n**-0.5 for n in range(1, 7))],
        ),
        (schedules.polynomial, {"warmup_steps": 2, "min_lr_ratio": 0.0, "power": 2.0}, [1, 2, 2, 1.125, 0.5, 0.125, 0]),
        (schedules.polynomial, {"warmup_steps": 2, "min_lr_ratio": 1.0, "power": 2.0}, [1, 2, 2, 2, 2, 2, 2]),
    ],
)
def test_rates_by_hand(schedule, options, expected):
    assert rates(schedule, 6, **options) == pytest.approx(expected)


def test_the_first_step_of_a_warmup_learns_something():
    assert rates(schedules.cosine, 100, warmup_steps=0.1, min_lr_ratio=0.0)[0] == pytest.approx(2.0 / 10)


@pytest.mark.parametrize(("asked", "steps"), [(0, 0), (0.1, 20), (0.0301, 7), (1, 1), (15, 15), (15.0, 15)])
def test_shares_and_steps(asked, steps):
    assert schedules.num_steps("warmup_steps", asked, 200) == steps


@pytest.mark.parametrize("asked", [1.5, 201])
def test_impossible_warmup_is_refused_with_the_field(asked):
    with pytest.raises(InputError, match=f"scheduler.warmup_steps={asked}"):
        schedules.num_steps("warmup_steps", asked, 200)


def test_wsd_refuses_more_than_the_run():
    with pytest.raises(InputError, match="10 optimizer steps"):
        rates(schedules.wsd, 10, warmup_steps=6, decay_steps=0.5, min_lr_ratio=0.0, decay_type="linear")


def test_rates_are_set_for_each_group_and_told_of_the_first():
    groups = [{"params": [torch.nn.Parameter(torch.zeros(1))], "lr": lr} for lr in (2.0, 0.5)]
    optimizer = torch.optim.SGD(groups)
    schedule = schedules.constant(optimizer, num_training_steps=4, warmup_steps=2)
    for group, other in zip(optimizer.param_groups, (7.0, 8.0), strict=True):
        group["lr"] = other
    assert schedules.set_rates(schedule) == (7.0, 1.0)
    assert [group["lr"] for group in optimizer.param_groups] == schedule.get_last_lr() == [1.0, 0.25]


def test_a_restored_schedule_goes_on_at_the_rate_of_its_new_length():
    def made(num_training_steps):
        optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=2.0)
        options = {"warmup_steps": 2, "min_lr_ratio": 0.0}
        return optimizer, schedules.linear(optimizer, num_training_steps=num_training_steps, **options)

    short_optimizer, short = made(4)
    for _ in range(4):
        short_optimizer.step()
        short.step()
    optimizer, schedule = made(8)
    optimizer.load_state_dict(short_optimizer.state_dict())
    schedule.load_state_dict(short.state_dict())
    assert schedules.set_rates(schedule) == (0.0, pytest.approx(2.0 * 4 / 6))
    assert optimizer.param_groups[0]["lr"] == schedule.get_last_lr()[0] == pytest.approx(2.0 * 4 / 6)
    assert schedules.set_rates(short) == (0.0, 0.0)


@pytest.mark.parametrize("warmup", [0, 7])
def test_factors_are_those_of_transformers_from_the_second_step_of_a_warmup(warmup):
    from transformers import optimization

    def of(made):
        """Factors after the warm-up, in which that of a step here is that of the next one there."""
        return [made.lr_lambdas[0](step) for step in range(warmup, 101)]

    def optimizer():
        return torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.3)

    run = {"num_training_steps": 100, "warmup_steps": warmup}
    cosine = schedules.cosine(optimizer(), min_lr_ratio=0.1, **run)
    theirs = optimization.get_cosine_with_min_lr_schedule_with_warmup(optimizer(), warmup, 100, min_lr_rate=0.1)
    assert of(cosine) == of(theirs)
    for kind in ("linear", "cosine", "1-sqrt"):
        wsd = schedules.wsd(optimizer(), min_lr_ratio=0.1, decay_steps=30, decay_type=kind, **run)
        theirs = optimization.get_wsd_schedule(optimizer(), warmup, 30, 100, decay_type=kind, min_lr_ratio=0.1)
        assert of(wsd) == pytest.approx(of(theirs), rel=1e-15)
        assert [wsd.lr_lambdas[0](step) for step in range(warmup)] == pytest.approx(
            [theirs.lr_lambdas[0](step + 1) for step in range(warmup)], rel=1e-15
        )
    root = schedules.inverse_sqrt(optimizer(), timescale_steps=None, **run)
    assert of(root) == of(optimization.get_inverse_sqrt_schedule(optimizer(), warmup))
    polynomial = schedules.polynomial(optimizer(), min_lr_ratio=0.1, power=2.0, **run)
    theirs = optimization.get_polynomial_decay_schedule_with_warmup(optimizer(), warmup, 100, lr_end=0.03, power=2.0)
    assert of(polynomial) == pytest.approx(of(theirs), rel=1e-14)
