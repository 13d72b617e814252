"""What holds for all tests."""

import os
import signal

# A script's background job ignores Ctrl-C, and what nohup starts a closed terminal: no trap in launch.sh would hear it.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
    signal.signal(signal.SIGHUP, signal.SIG_DFL)

# The proofs are in float32 and float64 on the CPU, wherever they run; those of tests/gpu run by ./launch.sh gpu-checks.
if os.environ.get("TESTS_ON") != "gpu":
    os.environ["CUDA_VISIBLE_DEVICES"] = ""

import pytest
from hypothesis import settings

from losses import registry

settings.register_profile("untimed", deadline=None)  # how long an example takes depends on what else the machine does
settings.load_profile("untimed")


@pytest.fixture
def registered(monkeypatch):
    """The registry, and what it held before: what a test adds to it is gone afterwards."""
    for name in ("_losses", "_aliases", "_files"):
        monkeypatch.setattr(registry, name, dict(getattr(registry, name)))
