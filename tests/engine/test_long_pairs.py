"""Pairs of many thousand tokens: the same log-probs, and memory that grows with the length, not with its square."""

import json
import re
import subprocess
import sys

import numpy as np
import pytest
import torch

from data.forest import pack
from engine import plan
from engine.model import FusedForward, attention
from system import InputError, malloc
from tests import tiny
from tests.engine.padded import padded_logps
from tests.gpu.checks import LONG_PAIRS, SPLIT

MEASURED = """
import json, sys
from engine.bench.measure import measure
from engine.config import TrainConfig
folder, n = sys.argv[1], int(sys.argv[2])
config = TrainConfig(
    model=folder + "/m", data=(f"{folder}/{n}.jsonl",), out=f"{folder}/run-{n}", epochs=1, batch_size=1,
    max_prompt_tokens=n, max_response_tokens=n, state_every=0, reference="precompute", recompute_blocks=4,
)
found = measure(config)
print(json.dumps([found["peak_bytes"], sum(found["plan"]["bytes"].values())]))
"""


@pytest.mark.slow
@pytest.mark.parametrize(("prompt", "chosen", "rejected"), [(2000, 3200, 2992), (6000, 1200, 992)])
def test_a_pair_of_8192_tokens_is_the_same_in_one_piece_and_padded_in_float64(prompt, chosen, rejected):
    """The first's branch is computed whole, causally; the second's, short after a long prompt, in chunks."""
    assert prompt + chosen + rejected == 8192
    model = tiny.random_llama(num_hidden_layers=2, max_position_embeddings=8192, dtype=torch.float64)
    examples = tiny.random_examples([(prompt, chosen, rejected)])
    forest = pack(examples)
    assert forest.n_tokens == 8192 - 2
    calls = {name: [] for name in ("causal", "masked")}

    def watched(name, real):
        def call(q, k, *given):
            calls[name].append((len(q), len(k)))
            return real(q, k, *given)

        return call

    with torch.no_grad(), pytest.MonkeyPatch.context() as patched:
        for name in calls:
            patched.setattr(attention, name, watched(name, getattr(attention, name)))
        ours = FusedForward(model)(forest, with_reference=False).logps
    whole = (prompt + chosen - 1, prompt + chosen - 1)
    assert whole in calls["causal"] and ((prompt + rejected - 1,) * 2 in calls["causal"]) == (prompt == 2000)
    assert all(n_queries <= attention.CHUNK for n_queries, _ in calls["masked"])
    with torch.no_grad():
        torch.testing.assert_close(ours, padded_logps(model, examples), rtol=0, atol=1e-9)


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_a_pair_of_16384_tokens_takes_the_memory_that_is_planned_and_nothing_grows_with_the_square(tmp_path):
    shape = {"hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 4, "num_attention_heads": 8}
    tiny.write_model(tmp_path / "m", vocab_size=400, max_position_embeddings=16384, num_key_value_heads=4, **shape)
    found, rng = {}, np.random.default_rng(0)
    for n in (8192, 16384):
        prompt, response = n // 4, 3 * n // 8
        ids = {"prompt_ids": prompt, "chosen_ids": response, "rejected_ids": response}
        rows = [{name: rng.integers(2, 400, size).tolist() for name, size in ids.items()} for _ in range(2)]
        tiny.write_rows(tmp_path / f"{n}.jsonl", rows)
        code = [sys.executable, "-c", MEASURED, str(tmp_path), str(n)]
        env = tiny.environment() | {malloc.VARIABLE: malloc.TUNABLE}  # as a command has it
        done = subprocess.run(code, env=env, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        found[n] = json.loads(done.stdout.splitlines()[-1])
    peak, planned = found[16384]
    assert peak == pytest.approx(planned, rel=0.1), found
    assert peak < 2.1 * found[8192][0], found  # a square would have made four times as much of it


def test_the_plan_says_that_a_pair_of_16384_tokens_of_an_8b_fits_80_gb_and_how(capsys):
    """What ./launch.sh gpu-checks long-pairs measures; no square is kept, and most blocks are computed again."""
    plan.main([*LONG_PAIRS, "--json"])
    chosen = json.loads(capsys.readouterr().out)["chosen"]
    assert " ".join(SPLIT) in chosen["flags"] and 70e9 < chosen["memory_bytes"] < 80e9
    assert int(re.search(r"--recompute-blocks (\d+)", chosen["flags"])[1]) in range(20, 36)
    with pytest.raises(InputError, match=r"(?s)the run needs .*--lora-rank 16"):  # a step of 16, in one pass
        plan.main([*LONG_PAIRS, "--batch-size", "16"])
    capsys.readouterr()
    shorter = ["--shape", "qwen3-8b", "--gpu-memory", "80", "--json"]
    plan.main([*shorter, "--lengths", "162", "348", "349"])
    given = json.loads(capsys.readouterr().out)["chosen"]
    plan.main(shorter)
    assert given["flops"] == pytest.approx(json.loads(capsys.readouterr().out)["chosen"]["flops"], rel=1e-9)


@pytest.mark.parametrize("lengths", [["4096"], ["4096", "0", "1"], ["100000", "1", "1"]])
def test_lengths_that_are_none_are_one_sentence(tmp_path, lengths):
    model = tiny.write_model(tmp_path / "m", ["hello world"] * 9)
    with pytest.raises(InputError, match="--lengths: "):
        plan.main(["--model", str(model), "--lengths", *lengths])
