"""Compose any alignment method, model, adapter, strategy and data from one line."""

import logging

# bitsandbytes warns when it is imported, in every rank, of a speed-up that it did not find.
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
