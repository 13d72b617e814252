"""Whether revised tokens alone are worth training on: what an earlier start found is not asked for again."""

import json

import pytest

from examples.miniature import revisions
from system import InputError


def test_a_record_of_the_same_command_is_gone_on_with(tmp_path, monkeypatch):
    rates = dict.fromkeys(revisions.OBJECTIVES, 1e-4)
    gains = [{"data": "clair", "loss": "dpo", "seed": seed, "best": 1.0, "mean": 0.5} for seed in range(3)]
    record = {"epochs": 18, "seeds": 3, "searched": {}, "rates": rates, "gains": gains}
    path = tmp_path / "revisions.json"
    path.write_text(json.dumps(record))
    monkeypatch.setattr(revisions.model, "base_model", lambda folder: folder)
    monkeypatch.setattr(revisions.sets, "make", lambda *_: {})  # no search and no run is left
    revisions.main([str(tmp_path / "runs"), "--record", str(path)])
    assert json.loads(path.read_text()) == record
    with pytest.raises(InputError, match=r"revisions\.json: contains results of other --epochs or --seeds"):
        revisions.main([str(tmp_path / "runs"), "--record", str(path), "--epochs", "2"])
