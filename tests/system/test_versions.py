"""What a reporter is asked for: nothing that the program needs is left out, and nothing has to be there."""

import configparser
import re
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace

import torch

from system import versions

ROOT = Path(__file__).parents[2]


def test_everything_that_the_program_needs_is_named():
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    needed = setup["options"]["install_requires"].split("\n")
    assert len(needed) > 10
    assert {re.split(r"[ <>=]", line)[0] for line in needed if line} <= set(versions.PACKAGES)


def test_a_missing_package_is_said_to_be_missing(monkeypatch):
    monkeypatch.setattr(versions, "PACKAGES", ("torch", "no-such-package"))
    found = versions.report("1.2.3")
    assert found["program"] == "1.2.3"
    assert found["torch"] == metadata.version("torch") and found["no-such-package"] == "not installed"


def test_each_gpu_has_a_line(monkeypatch):
    gpu = SimpleNamespace(name="A card", total_memory=80 * 10**9, major=9, minor=0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: gpu)
    found = versions.report("1.2.3")
    assert found["GPU 0"] == found["GPU 1"] == "A card, 80.0 GB, compute capability 9.0"


def test_the_table_has_names_and_values_in_columns():
    assert versions.table({"a": "1", "long": "2"}) == "a     1\nlong  2"
