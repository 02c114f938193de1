"""CUDA graphs for decoding: the kernels of a step are recorded once and then started together.

A step of a model with 24 layers consists of some 1,500 kernels of a few microseconds. Started one by one from Python
they take ten times as long as they run.
"""

import logging
from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor

log = logging.getLogger(__name__)


def can_replay(device: torch.device) -> bool:
    """Whether steps on a device can be recorded."""
    return device.type == "cuda"


class Replay:
    """Calls a function of a tensor; on a GPU, records it as a CUDA graph at the second call, and replays that.

    A function that cannot be recorded, because it synchronises with the device, is called as it is.

    Args:
        function: Has no result but the returned tensor and tensors that it changes in place. It must use the same
            tensors, of the same shapes, at every call with the same ``version``.
    """

    def __init__(self, function: Callable[[Tensor], Tensor]):
        self.function = function
        self.called = self.fails = False
        self.version: int | None = None
        self.graph: torch.cuda.CUDAGraph | None = None

    def __call__(self, argument: Tensor, version: int) -> Tensor:
        """The function's result, which the next call may overwrite.

        Args:
            argument: Argument of the function.
            version: Changes when the function's other tensors have been replaced.
        """
        if not can_replay(argument.device) or self.fails:
            return self.function(argument)
        if not self.called:  # libraries initialise themselves, which cannot be recorded
            self.called = True
            return _aside(argument.device, lambda: self.function(argument))
        if self.graph is None or version != self.version:
            try:
                _aside(argument.device, lambda: self._record(argument))
            except RuntimeError as error:
                log.info("sampling without a CUDA graph: %s", str(error).partition("\n")[0])
                self.fails = True
                return self.function(argument)
            self.version = version
        self.argument.copy_(argument)
        self.graph.replay()
        return self.result

    def _record(self, argument: Tensor) -> None:
        graph, self.argument = torch.cuda.CUDAGraph(), argument.clone()
        # The last graph must be there still, because it keeps the memory pool.
        graph.capture_begin(pool=self.graph.pool() if self.graph else None)
        try:
            self.result = self.function(self.argument)
        finally:
            graph.capture_end()
        self.graph = graph


def _aside(device: torch.device, call: Callable[[], Tensor | None]) -> Tensor | None:
    """Call on a stream beside the current one; the default stream cannot be recorded."""
    stream, current = _stream(device), torch.cuda.current_stream(device)
    stream.wait_stream(current)
    with torch.cuda.stream(stream):
        result = call()
    current.wait_stream(stream)
    return result


@cache
def _stream(device: torch.device) -> torch.cuda.Stream:
    """One stream for all recordings, because matrix products keep a workspace for each stream."""
    return torch.cuda.Stream(device)
