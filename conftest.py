"""Settings of every test run. Being here, this file also makes the root modules importable without an installation."""

import os


# Small models gain nothing from several threads, and lose much where other processes want the cores.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Tests never reach the network.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
