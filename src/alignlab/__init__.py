"""Compose any alignment method, model, adapter, strategy and data from one line."""

import logging
import os

# Read when torch is loaded, so it stands here. Threads wait for each other by spinning, and by default so long that on
# two cores shared with another such job training was 25 times slower. A thirtieth of it costs nothing measurable alone.
os.environ.setdefault("GOMP_SPINCOUNT", "10000")

# bitsandbytes warns when it is imported of a speed-up that it did not find.
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
