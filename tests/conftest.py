"""What holds for all tests."""

import os

# The proofs are in float32 and float64 on the CPU, wherever they run; those of tests/gpu run by ./launch.sh gpu-checks.
if os.environ.get("TESTS_ON") != "gpu":
    os.environ["CUDA_VISIBLE_DEVICES"] = ""

from hypothesis import settings

settings.register_profile("untimed", deadline=None)  # how long an example takes depends on what else the machine does
settings.load_profile("untimed")
