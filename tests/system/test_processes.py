"""How a process leaves on a signal."""

import signal
import subprocess
import sys

import pytest

SCRIPT = """
import os
from alignlab.system.processes import leaving_on_signals
with leaving_on_signals(while_importing={importing}):
    try:
        os.kill(os.getpid(), {signum})
    finally:
        print("cleaned up", flush=True)
"""


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("importing", [True, False])
def test_a_signal_raises_only_after_imports(signum, importing):
    """A C++ module that meets an exception while it is imported would end the process with SIGABRT."""
    script = SCRIPT.format(importing=importing, signum=int(signum))
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 128 + signum
    assert done.stdout == ("" if importing else "cleaned up\n") and not done.stderr
