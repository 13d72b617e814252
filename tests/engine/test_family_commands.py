"""engine.score and engine.generate, by their commands, on other families: the numbers of transformers."""

import json
import sys

import pytest
import torch

from data.rows import Example
from tests import forks, tiny
from tests.families import lifted, load_peer, peer_logps, write_peer
from tests.family_table import VARIANTS

NAMED = {variant.name: variant for variant in VARIANTS}
# Prompts below and beyond windows of 7 and the original context of 16; answers of some grow past it.
PROMPTS = [[5, 9, 2], list(range(3, 15)), list(range(40, 60))]
RESPONSES = ([7, 8], [11, 12, 13, 14, 15, 16])
N_NEW = 6


def command(module, folder, *flags):
    """Runs it, in a process of its own."""
    given = [sys.executable, "-m", module, "--model", folder, *flags]
    done = forks.run(given, env=tiny.environment(), timeout=300)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("name", ["gemma3 plain", "phi3 longrope"])
def test_the_commands_give_what_transformers_does(name, tmp_path):
    variant, folder = NAMED[name], write_peer(tmp_path / "m", NAMED[name])
    pairs = [{"prompt_ids": p, "chosen_ids": RESPONSES[0], "rejected_ids": RESPONSES[1]} for p in PROMPTS]
    rows = tiny.write_rows(tmp_path / "rows.jsonl", pairs)
    command("engine.score", folder, "--data", rows, "--out", tmp_path / "s.jsonl", "--dtype", "float32")
    told = ["--temperature", 0, "--max-new-tokens", N_NEW, "--prefill-tokens", 4, "--dtype", "float32"]
    command("engine.generate", folder, "--prompts", rows, "--out", tmp_path / "a.jsonl", *told)
    scores, answers = (
        [json.loads(line) for line in (tmp_path / file).read_text().splitlines()] for file in ("s.jsonl", "a.jsonl")
    )
    examples = [
        Example("", torch.tensor(p).numpy(), tuple(torch.tensor(r).numpy() for r in RESPONSES)) for p in PROMPTS
    ]
    with lifted(), torch.no_grad():
        peer = load_peer(folder, variant, torch.float64)
        expected = peer_logps(peer, examples).view(-1, 2).tolist()
        for prompt, answer in zip(PROMPTS, answers, strict=True):
            ids = list(prompt)
            for _ in range(N_NEW):  # the whole sequence anew: with a cache transformers' own LongRoPE is another thing
                ids.append(int(peer(input_ids=torch.tensor([ids])).logits[0, -1].argmax()))
            assert answer["response_ids"] == ids[len(prompt) :]
    found = [[line["logps/chosen"], line["logps/rejected"]] for line in scores]
    assert found == [pytest.approx(pair, rel=5e-6) for pair in expected]
