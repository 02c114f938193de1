"""Compose any alignment method, model, adapter, strategy and data from one line."""

import os

# Read when torch is loaded, so it stands here. A thread that waits by spinning takes the core from whom it waits for:
# beside one other busy process on two cores, training was 25 times slower than with threads that sleep.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
