"""A callback that ends one job of a sweep."""

import lightning


class FailFor(lightning.Callback):
    """Raises an error after the first step of one run.

    Args:
        method: Name of the method's class.
        seed: Seed of the run.
        lr: Its peak learning rate.
    """

    def __init__(self, *, method: str, seed: int, lr: float):
        self.run = (method, seed, lr)

    def on_train_batch_end(self, trainer, method, *_):
        """Fail, if it is the run."""
        rate = trainer.optimizers[0].param_groups[0]["initial_lr"]
        if (type(method).__name__, trainer.datamodule.plan.seed, rate) == self.run:
            raise RuntimeError("the disk of this job is gone")
