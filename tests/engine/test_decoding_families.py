"""Sampling from every kind of family: what the cache gives is what the whole sequence, computed anew, gives."""

import numpy as np
import pytest
import torch

from engine.sampling import Sampling, generate
from engine.sampling.decoding import Answer, Running, Slots
from tests.engine.adapted import logits_of
from tests.engine.variants import model_of

FAMILIES = [
    "mistral with a window",
    "gemma2 with caps",
    "gemma3 a cap of logits",
    "phi3 longrope",
    "phi3 longrope, part of a head, a window",
    "smollm3 no_rope_layers",
    "ministral3 ",
]
LENGTHS = (15, 3, 17, 12, 16, 1)  # prompts within windows of 7 and original contexts of 16, and beyond
N_NEW = 9
QUICK = {("gemma2 with caps", 0.0), ("phi3 longrope, part of a head, a window", 1.0)}
WHOLE = [
    pytest.param(name, temperature, marks=() if (name, temperature) in QUICK else pytest.mark.slow)
    for name in FAMILIES
    for temperature in (0.0, 1.0)
]
WAYS = [(1, 5), (4, 3), (12, 1024)]  # batch_size, prefill_tokens


@pytest.mark.parametrize(("name", "temperature"), WHOLE)
def test_logits_of_every_token_are_those_of_its_whole_sequence(name, temperature, monkeypatch):
    """In float64, of two samples of each prompt, however many answers share a pass and in whatever pieces prompts are
    read; what is greedy takes the likeliest of these.
    """
    model, plain = model_of(name), Slots.step
    rng = np.random.default_rng(2)
    prompts = [rng.integers(0, 101, n).tolist() for n in LENGTHS]
    seen: list[tuple[tuple[int, ...], torch.Tensor]] = []

    def noted(self, prefill_tokens):
        due, logits = plain(self, prefill_tokens)
        seen.extend(((*r.prompt, *r.answer.ids), row.clone()) for r, row in zip(due, logits, strict=True))
        return due, logits

    monkeypatch.setattr(Slots, "step", noted)
    texts = []
    for batch_size, prefill_tokens in WAYS:
        sampling = Sampling(
            n=2, temperature=temperature, batch_size=batch_size, prefill_tokens=prefill_tokens, max_new_tokens=N_NEW
        )
        found = generate(model, prompts, sampling, ())
        texts.append([answer.ids for answer in found])
    assert texts[0] == texts[1] == texts[2] and {len(ids) for ids in texts[0]} == {N_NEW}
    assert len(seen) == len(WAYS) * 2 * len(LENGTHS) * N_NEW
    anew = {ids: logits_of(model, ids)[-1] for ids in {ids for ids, _ in seen}}
    for ids, row in seen:
        torch.testing.assert_close(row, anew[ids], rtol=0, atol=1e-9)
    if temperature == 0:
        for i, ids in enumerate(texts[0]):
            prompt = prompts[i // 2]
            assert ids == [int(anew[(*prompt, *ids[:k])].argmax()) for k in range(N_NEW)]


def test_an_answer_that_grows_past_the_original_context_is_read_anew_once(monkeypatch):
    """A prompt of 15 and five tokens: with the second there are 17, one more than 16."""
    plain, sizes = Slots._next_pieces, []

    def noted(self, prefill_tokens):
        pieces, tokens = plain(self, prefill_tokens)
        sizes.append([p.size for p in pieces])
        return pieces, tokens

    monkeypatch.setattr(Slots, "_next_pieces", noted)
    sampling = Sampling(temperature=0, max_new_tokens=5)
    generate(model_of("phi3 longrope"), [list(range(15))], sampling, ())
    assert sizes == [[15], [1], [17], [1], [1]]
    sizes.clear()
    generate(model_of("phi3 plain"), [list(range(15))], sampling, ())
    assert sizes == [[15], [1], [1], [1], [1]]


def test_another_sample_copies_no_keys_of_one_that_has_grown_past_it_and_does_not_wait_for_it():
    slots, prompt = Slots(model_of("phi3 longrope"), 3, 40), list(range(15))
    first = Running(Answer(0, 0), prompt, np.random.default_rng(0))
    slots.add(first)
    assert slots.is_read(0)
    with torch.no_grad():
        slots.step(100)
    second = Running(Answer(0, 1), prompt, np.random.default_rng(1))
    slots.add(second)
    assert not slots.is_read(0) and (second.n_held, len(second.todo)) == (14, 1)
    first.answer.ids += [5, 6]
    slots.grow(first, 6)
    assert not slots.is_read(0) and (first.n_held, len(first.todo)) == (0, 17)
    with torch.no_grad():
        slots.step(100)
    slots.remove(second)
    third = Running(Answer(0, 2), prompt, np.random.default_rng(2))
    slots.add(third)
    assert (third.n_held, len(third.todo)) == (0, 15)
