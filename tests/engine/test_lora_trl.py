"""Runs of adapters against TRL's DPOTrainer with PEFT, from the same adapter folders, and what each reads of the other.

Both need one environment: pip install -e '.[dev,peer]', then pytest -m slow tests/engine/test_lora_trl.py.
"""

import pytest

from tests import tiny
from tests.engine.beside_trl import COMPARED, N_STEPS, TOLERANCE, VOCABULARY, id_rows, our_lines, their_lines
from tests.engine.peft_folders import write_adapter

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]  # the warnings are those of the peer's packages

RATE, MOST = 1e-3, 0.4  # MOST: beyond it gradients are clipped, in some steps of every run
RUNS = {  # our loss, TRL's, what the adapter is, whether the reference is the base and not where the adapter starts
    "dpo": ("dpo", "sigmoid", {}, False),
    "apo_zero": ("apo_zero", "apo_zero", {}, False),
    "apo_down": ("apo_down", "apo_down", {}, False),
    "rank-stabilised": ("apo_zero", "apo_zero", {"use_rslora": True}, False),
    "a start that is the reference": ("dpo", "sigmoid", {"b": 0.02}, False),
    "a start against the base": ("dpo", "sigmoid", {"b": 0.02}, True),
}


@pytest.mark.parametrize("name", RUNS)
def test_a_run_from_a_given_adapter_is_that_of_trl(tmp_path, name):
    """TRL takes a copy of a given adapter for the reference, where none is handed over."""
    pytest.importorskip("trl")
    pytest.importorskip("peft")
    loss, theirs, adapter, is_base = RUNS[name]
    model = tiny.write_model(tmp_path / "model", vocab_size=VOCABULARY)
    start, rows = write_adapter(tmp_path / "start", model, **adapter), id_rows()
    them = their_lines(model, rows, tmp_path, theirs, start, with_base=is_base, learning_rate=RATE, max_grad_norm=MOST)
    flags = {"adapter": str(start), "lr": RATE, "max_grad_norm": MOST} | (
        {"reference_model": "base"} if is_base else {}
    )
    for n_ranks in (1, 2):
        us = our_lines(model, rows, tmp_path / f"on-{n_ranks}", loss, flags, n_ranks)
        assert [line["step"] for line in us] == [line["step"] for line in them] == list(range(1, N_STEPS + 1))
        apart = {key: max(abs(a[key] - b[key]) for a, b in zip(us, them, strict=True)) for key in COMPARED}
        moved = {key: max(line[key] for line in us) - min(line[key] for line in us) for key in COMPARED}
        norms = [line["grad_norm"] for line in us]
        norm_apart = max(abs(a["grad_norm"] / b["grad_norm"] - 1) for a, b in zip(us, them, strict=True))
        print(f"{name}, {n_ranks} ranks: apart {apart}; moved {moved}; norms {min(norms):.3g} to {max(norms):.3g}, "
              f"apart {norm_apart:.2g}")  # fmt: skip
        assert apart["loss"] < TOLERANCE and norm_apart < 2e-3, (apart, norm_apart)
        assert max(apart[key] for key in COMPARED[1:]) < 5e-3, apart
        assert all(distance > 0.01 for distance in moved.values()), moved  # standing still, anything would agree
        assert min(norms) < MOST < max(norms)
        assert (us[0]["rewards/chosen"] == us[0]["rewards/rejected"] == 0) is not is_base
