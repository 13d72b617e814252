"""Sampling: greedy text equal to transformers' generate, and samples that depend on their seed alone."""

import json

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from engine import weights
from engine.generate import Sampling, choose, generate, main
from tests import tiny


def prompts(n=9, seed=0):
    rng = np.random.default_rng(seed)
    return [rng.integers(0, 101, rng.integers(1, 20)).tolist() for _ in range(n)]


@pytest.mark.parametrize("shape", tiny.SHAPES)
def test_greedy_answers_equal_those_of_transformers(shape, tmp_path):
    model = tiny.random_llama(shape)
    weights.save(model, tmp_path / "m")
    peer = AutoModelForCausalLM.from_pretrained(tmp_path / "m").eval()
    stop = 7
    ours = generate(model, prompts(), Sampling(temperature=0, max_new_tokens=24, batch_size=4), [stop])
    n_stopped = 0
    for prompt, answer in zip(prompts(), ours, strict=True):
        ids = torch.tensor([prompt])
        out = peer.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            do_sample=False,
            max_new_tokens=24,
            eos_token_id=stop,
            pad_token_id=0,
        )
        expected = out[0, len(prompt) :].tolist()
        assert answer.finish == ("stop" if expected[-1] == stop else "length")
        n_stopped += expected[-1] == stop
        assert answer.ids == [i for i in expected if i != stop]
    assert len({tuple(a.ids) for a in ours}) > 1


@pytest.mark.parametrize("batch_size", [1, 3, 64])
def test_a_sample_does_not_depend_on_what_it_is_batched_with(batch_size):
    model = tiny.random_llama(std=0.1)
    alone = [generate(model, [p], Sampling(n=1, max_new_tokens=12, seed=5), [7])[0].ids for p in prompts()[:1]]
    together = generate(model, prompts(), Sampling(n=3, max_new_tokens=12, seed=5, batch_size=batch_size), [7])
    assert [(a.prompt, a.sample) for a in together] == [(p, s) for p in range(9) for s in range(3)]
    assert together[0].ids == alone[0]
    assert together[0].ids != together[1].ids
    assert [a.ids for a in generate(model, prompts(), Sampling(n=3, max_new_tokens=12, seed=5), [7])] == [
        a.ids for a in together
    ]
    assert [a.ids for a in generate(model, prompts(), Sampling(n=3, max_new_tokens=12, seed=6), [7])] != [
        a.ids for a in together
    ]


def test_tokens_are_drawn_with_the_probabilities_of_the_softmax():
    logits = torch.tensor([[2.0, 0.0, 1.0, -1.0]]).expand(20_000, 4)
    draws = np.random.default_rng(0).random(20_000)
    for temperature in (1.0, 0.5):
        counts = torch.bincount(choose(logits, Sampling(temperature=temperature), draws), minlength=4) / 20_000
        torch.testing.assert_close(counts, torch.softmax(logits[0] / temperature, 0), rtol=0, atol=0.01)


def test_top_p_keeps_the_fewest_tokens_that_reach_it():
    logits = torch.log(torch.tensor([[0.5, 0.3, 0.15, 0.05]])).expand(5000, 4)
    draws = np.random.default_rng(0).random(5000)
    counts = torch.bincount(choose(logits, Sampling(top_p=0.7), draws), minlength=4) / 5000
    torch.testing.assert_close(counts, torch.tensor([0.625, 0.375, 0, 0]), rtol=0, atol=0.02)
    assert set(choose(logits, Sampling(top_p=0.1), draws).tolist()) == {0}


def test_the_command_writes_answers_in_the_order_of_the_prompts(tmp_path):
    texts = ["some words to merge and to answer with", "hello world"] * 20
    model = tiny.write_model(tmp_path / "m", texts)
    rows = tiny.write_rows(tmp_path / "p.jsonl", [{"prompt": f"hello {i}"} for i in range(5)])
    flags = ["--model", str(model), "--prompts", str(rows), "--n", "2", "--max-new-tokens", "5", "--batch-size", "3"]
    main([*flags, "--out", str(tmp_path / "a.jsonl")])
    main([*flags, "--out", str(tmp_path / "b.jsonl"), "--batch-size", "10"])
    lines = [json.loads(line) for line in (tmp_path / "a.jsonl").read_text().splitlines()]
    assert [(r["prompt"][0]["content"], r["sample"]) for r in lines] == [
        (f"hello {i}", s) for i in range(5) for s in (0, 1)
    ]
    assert all(isinstance(r["response"], str) and r["finish"] in ("stop", "length") for r in lines)
    assert (tmp_path / "a.jsonl").read_bytes() == (tmp_path / "b.jsonl").read_bytes()
