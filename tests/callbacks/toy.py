"""A stand-in for a method and its data: manual optimisation, dropout, a stateful loader."""

import random
from types import SimpleNamespace

import lightning
import numpy as np
import torch
from torch.utils.data import DataLoader

from alignlab.callbacks.checkpoint import Checkpoint
from alignlab.methods.step_log import log_step
from alignlab.run_folder import storage

ROWS = torch.arange(40.0).view(10, 4) / 40


class Loader:
    """Ten batches an epoch in a seeded order; its position and its epoch are its state.

    Lightning asks a loader that it resumed at an epoch's end for the next epoch, once or twice, so a position at the
    end means the start of the next epoch, and the turn is made when the first batch is asked for.
    """

    def __init__(self):
        self.epoch, self.position = 0, 0

    def __len__(self):
        return len(ROWS)

    def __iter__(self):
        if self.position == len(ROWS):
            self.epoch, self.position = self.epoch + 1, 0
        order = np.random.default_rng(self.epoch).permutation(len(ROWS))
        while self.position < len(ROWS):
            self.position += 1
            yield ROWS[order[self.position - 1]]

    def state_dict(self):
        return {"epoch": self.epoch, "position": self.position}

    def load_state_dict(self, state):
        self.epoch, self.position = state["epoch"], state["position"]


class Toy(lightning.LightningModule):
    """Dropout, noise from every generator, Adam, a schedule; one loader batch is one optimizer step."""

    def __init__(self, frozen=False, on_step=None, width=8):
        super().__init__()
        self.automatic_optimization = False
        self.base = torch.nn.Linear(4, width)
        self.base.requires_grad_(not frozen)
        self.head = torch.nn.Sequential(torch.nn.Dropout(0.5), torch.nn.Linear(width, 1))
        self.on_step = on_step
        self.losses = []

    @property
    def progress(self):
        return SimpleNamespace(epoch=self.trainer.global_step / len(ROWS))

    def configure_optimizers(self):
        optimizer = torch.optim.AdamW([weight for weight in self.parameters() if weight.requires_grad], lr=0.05)
        return [optimizer], [torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (1 + step))]

    def training_step(self, batch, batch_idx):
        optimizer, schedule = self.optimizers(), self.lr_schedulers()
        noise = random.random() + float(np.random.rand())
        loss = (self.head(self.base(batch)) - noise).square().mean()
        optimizer.zero_grad()
        self.manual_backward(loss)
        optimizer.step()
        schedule.step()
        self.losses.append(loss.item())
        step = self.trainer.global_step
        tokens = {
            "progress/step": float(step),
            "progress/tokens": 100.0 * step,
            "progress/supervised_tokens": 50.0 * step,
        }
        log_step(self.trainer, {"train/loss": loss.item(), "train/tokens_per_second": 1000.0, **tokens}, step)
        if self.on_step:
            self.on_step(step)

    def validation_step(self, batch, batch_idx):
        noise = torch.rand(()) + random.random()  # a sampling evaluation
        self.log("val/loss", (self.head(self.base(batch)).mean() + 0 * noise), batch_size=1)


def make_trainer(folder, *, callbacks=(), loggers=(), **options):
    return lightning.Trainer(
        default_root_dir=folder,
        accelerator="cpu",
        callbacks=list(callbacks),
        logger=list(loggers),
        enable_model_summary=False,
        log_every_n_steps=1,
        **{"enable_progress_bar": False, "num_sanity_val_steps": -1, **options},
    )


def train(
    folder, steps, *, every=100, every_epoch=None, keep_last=3, seed=0, make=Toy, resume=None, validate=4,
    callbacks=(), additions=(), **options,
):  # fmt: skip
    """A run as a fresh process would make it: everything new, global random states from the seed."""
    lightning.seed_everything(seed, verbose=False)
    model = make()
    checkpoint = Checkpoint(
        folder=folder, every_n_steps=every, every_n_epochs=every_epoch, keep_last=keep_last, additions=additions
    )
    trainer = make_trainer(
        folder,
        callbacks=[checkpoint, *callbacks],
        max_steps=steps,
        val_check_interval=validate,
        check_val_every_n_epoch=None,
        **options,
    )
    loaders = {"train_dataloaders": Loader(), "val_dataloaders": DataLoader(ROWS, batch_size=5, shuffle=True)}
    trainer.fit(model, **loaders, ckpt_path=resume and resume.state, weights_only=True)
    return model


def newest(folder):
    return storage.newest_valid(folder)[0]
