"""One pair of processes on the CPU that stays: work is sent to both ranks and their answers come back."""

import os
import queue
import traceback

import torch
import torch.multiprocessing as mp


def _serve(rank, num_ranks, port, inbox, outbox):
    os.environ.update(
        MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), RANK=str(rank), LOCAL_RANK=str(rank),
        WORLD_SIZE=str(num_ranks), LOCAL_WORLD_SIZE=str(num_ranks), TORCHELASTIC_RUN_ID="test", GROUP_RANK="0",
    )  # fmt: skip
    torch.set_num_threads(1)
    while True:
        function, arguments, options = inbox.get()
        try:
            outbox.put((rank, function(*arguments, **options), None))
        except BaseException as error:
            outbox.put((rank, None, (error if _travels(error) else None, traceback.format_exc())))


def _travels(error):
    return type(error).__module__.startswith("alignlab")


class RankError(RuntimeError):
    """A rank failed; carries its traceback."""


class Pair:
    """Ranks that answer until one fails; then they are started anew for the next piece of work."""

    def __init__(self, port, num_ranks=2):
        self.port, self.num_ranks, self.ranks = port, num_ranks, []

    def run(self, function, *arguments, seconds=120, **options):
        """What the function returned on each rank."""
        if not self.ranks:
            self._start()
        for inbox in self.inboxes:
            inbox.put((function, arguments, options))
        answers = {}
        try:
            while len(answers) < self.num_ranks:
                rank, answer, failure = self.outbox.get(timeout=seconds)
                if failure is not None:
                    self.stop()
                    error, text = failure
                    raise error or RankError(text)
                answers[rank] = answer
        except queue.Empty:
            self.stop()
            raise RankError(f"no answer from {self.num_ranks - len(answers)} rank(s) within {seconds} s") from None
        return [answers[rank] for rank in range(self.num_ranks)]

    def _start(self):
        context = mp.get_context("spawn")
        self.inboxes, self.outbox = [context.Queue() for _ in range(self.num_ranks)], context.Queue()
        for rank, inbox in enumerate(self.inboxes):
            arguments = (rank, self.num_ranks, self.port, inbox, self.outbox)
            self.ranks.append(context.Process(target=_serve, args=arguments, daemon=True))
            self.ranks[-1].start()

    def stop(self):
        """End both ranks; the port may still be held for a moment, so the next pair takes another."""
        for rank in self.ranks:
            rank.kill()
            rank.join()
        self.ranks, self.port = [], self.port + 1
