"""A sweeper that reads the values of its jobs when all of a batch have been started, as Optuna's does."""

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper


class Searching(BasicSweeper):
    """Runs a list of jobs, and keeps their values."""

    values: list[float]

    def __init__(self, direction, max_batch_size=None, params=None):
        super().__init__(max_batch_size, params)
        self.direction = direction

    def sweep(self, arguments):
        returns = super().sweep(arguments)
        Searching.values = [float(one.return_value) for batch in returns for one in batch]
        return returns
