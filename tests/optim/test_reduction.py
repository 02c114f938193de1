"""Losses with units: each term's sum is divided by the whole step's count of its unit, for gradient and log alike."""

import dataclasses

import lightning
import pytest
import torch

from alignlab.data.batching.collate import collate, totals
from alignlab.errors import InputError
from alignlab.losses.logps import segment_sums
from alignlab.losses.odds_ratio import odds_ratio
from alignlab.methods.base import Method
from alignlab.methods.pairs import reference_free_pairs
from alignlab.models.scoring import token_scores
from alignlab.optim import reduction
from alignlab.types.batch import UNITS, StepTotals
from alignlab.types.loss import LossOutput, LossTerm, Ratio
from alignlab.types.rows import Preference
from tests.methods import toy
from tests.methods.toy import Rows, fit, make_loader, make_policy, rows_for


class Toy(Method):
    """The likelihood of the completions of groups, each sequence multiplied by a weight, per any unit."""

    row_kind = Preference

    def __init__(self, *, units, factories):
        super().__init__(factories=factories)
        self.units = units

    def compute_loss(self, batch):
        return LossOutput([LossTerm(weighted_nll(self.policy, batch), unit) for unit in self.units])


def weighted_nll(policy, batch):
    """Of each sequence, in nats. Shape ``[S]``."""
    logps = token_scores(policy, batch).logps
    return -segment_sums(logps, batch.sequence_ids, batch.num_sequences) * batch.columns["weight"]


def make(*units):
    return Toy(units=units, factories=toy.make_method("orpo").factories)


def weighted_rows():
    rows = rows_for("group_dpo")
    return Rows(dataclasses.replace(row, columns=row.columns | {"weight": 0.5 + i % 3}) for i, row in enumerate(rows))


def count_slowly(rows, unit):
    """One row at a time; of these rows each has one group."""
    count = 0.0
    for row in rows:
        (prompt, *completions), flags = row.groups[0], row.supervised
        chosen = flags[prompt : prompt + completions[0]]
        count += {
            "supervised_tokens": sum(flags),
            "sequences": len(completions),
            "pairs": len(completions) - 1,
            "groups": 1,
            "rows": 1,
            "tokens": len(row.tokens),
            "chosen_tokens": sum(chosen) * (len(completions) - 1),
            "weight": row.columns["weight"],
        }[unit]
    return count


@pytest.mark.parametrize("unit", [*UNITS, "weight"])
@pytest.mark.parametrize("size", [8, 2, 1])
def test_loss_and_gradient_are_divided_by_the_count_of_the_unit(unit, size):
    rows = weighted_rows()
    policy = make_policy()
    sums = sum(weighted_nll(policy, collate([row], packing=False)).sum() for row in rows[:8])
    mean = sums / count_slowly(rows[:8], unit)
    mean.backward()
    weights, (step,) = fit(spared(make(unit)), make_loader(rows, size, num_steps=1, order="as_is"))
    expected = torch.cat([(p.detach() - 1e-3 * p.grad).flatten() for p in policy.parameters()])
    start = torch.cat([p.detach().flatten() for p in make_policy().parameters()])
    assert step["train/loss"] == pytest.approx(mean.item(), rel=1e-5)
    assert (weights - expected).norm() < 1e-3 * (expected - start).norm()


def spared(method):
    """The method with a small learning rate, so that the update is small beside the weights."""
    method.factories = dataclasses.replace(
        method.factories, make_optimizer=lambda groups: torch.optim.SGD(groups, lr=1e-3)
    )
    return method


def test_several_terms_have_a_unit_each():
    """The mean per pair and the mean per token at once are the sum of the two alone."""
    rows = weighted_rows()
    losses = [
        fit(make(*units), make_loader(rows, 4, num_steps=1, order="as_is"))[1][0]["train/loss"]
        for units in (["pairs"], ["supervised_tokens"], ["pairs", "supervised_tokens"])
    ]
    assert losses[2] == pytest.approx(losses[0] + losses[1], rel=1e-6)


def test_a_unit_that_is_not_counted_is_refused_by_name():
    with pytest.raises(InputError, match=r"a loss per 'pears': a step counts no such unit. Did you mean 'pairs'"):
        fit(make("pears"), make_loader(weighted_rows(), 4, num_steps=1))


def test_a_column_with_a_value_per_completion_is_no_unit():
    rows = [dataclasses.replace(row, columns={"scores": [1.0] * (len(row.groups[0]) - 1)}) for row in weighted_rows()]
    with pytest.raises(InputError, match="scores"):
        totals(rows).count("scores")


def test_the_gradient_of_orpo_is_that_of_the_loss_that_it_logs():
    """SGD's first update equals that of token mean plus β times pair mean, written out without the reducer."""
    rows, policy = rows_for("orpo"), make_policy()
    batch = collate(rows[:8], packing=False)
    pairs = reference_free_pairs(token_scores(policy, batch).logps, batch)
    loss = -pairs.chosen.sum() / pairs.chosen_tokens.sum() + 0.5 * odds_ratio(pairs).mean()
    loss.backward()
    method = spared(toy.make_method("orpo"))
    weights, (step,) = fit(method, make_loader(rows, 2, num_steps=1, order="as_is"))
    expected = torch.cat([(p.detach() - 1e-3 * p.grad).flatten() for p in policy.parameters()])
    start = torch.cat([p.detach().flatten() for p in make_policy().parameters()])
    assert step["train/loss"] == pytest.approx(loss.item(), rel=1e-5)
    assert (weights - expected).norm() < 1e-3 * (expected - start).norm()


def test_validation_divides_by_the_counts_of_all_its_steps():
    """Steps of 8 and 5 rows: the mean of 13, not the mean of two means."""
    rows, method = weighted_rows(), make("rows")
    loaders = {"val_dataloaders": make_loader(rows, 3, num_steps=2, order="as_is")}
    seen = validate(method, **loaders)
    sums = sum(weighted_nll(make_policy(), collate([row], packing=False)).sum().item() for row in rows)
    assert seen == pytest.approx(sums / 13, rel=1e-5)


def validate(method, val_dataloaders):
    """``val/loss`` before any step."""
    silent = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    trainer = lightning.Trainer(accelerator="cpu", devices=1, enable_checkpointing=False, **silent)
    (found,) = trainer.validate(method, val_dataloaders, verbose=False)
    return found["val/loss"]


def test_a_part_of_a_step_counts_once_per_rank(monkeypatch):
    """Data-parallel strategies average over ranks: 4 ranks, 6 tokens in the step, and here a sum of 3."""
    monkeypatch.setattr(reduction, "num_ranks", lambda: 4)
    sizes = StepTotals(supervised_tokens=6, sequences=1, groups=1, tokens=6, rows=1, chosen_tokens=0)
    terms = [LossTerm(torch.tensor([1.0, 2.0]), "supervised_tokens")]
    assert reduction.step_loss(terms, sizes, counted=1) == 4 * 3 / 6
    assert reduction.step_loss(terms, sizes, counted=0) == 0


def test_ranks_lay_their_sums_out_alike_whatever_came_first(monkeypatch):
    """One table is added up over ranks, so its rows must not depend on the order of the micro-batches."""
    tables = []
    monkeypatch.setattr(reduction.dist, "is_initialized", lambda: True)
    monkeypatch.setattr(reduction.dist, "all_reduce", lambda table: tables.append(table.tolist()))
    one = LossOutput([LossTerm(torch.tensor([1.0]), "sequences")], {"b": Ratio(torch.tensor(2.0), torch.tensor(3.0))})
    other = LossOutput([LossTerm(torch.tensor([4.0]), "groups")], {"a": Ratio(torch.tensor(5.0), torch.tensor(6.0))})
    for outputs in ((one, other), (other, one)):
        means = reduction.RunningMeans()
        for output in outputs:
            means.add(output)
        means.close_step(StepTotals(supervised_tokens=1, sequences=1, groups=2, tokens=1, rows=1))
        found = means.means()
        assert found == {"loss": 1 / 1 + 4 / 2, "a": pytest.approx(5 / 6), "b": pytest.approx(2 / 3)}
    assert tables == [[4.0, 1.0, 5.0, 6.0, 2.0, 3.0]] * 2
