"""Own answers that are drawn in this process: what was cut goes on from where it was cut."""

import pytest

from revise.client import answered, open_store
from revise.prompts import Prompts
from revise.recipes import ClairConfig
from revise.target import Target
from tests import tiny
from tests.revise.commands import write_rows


def bare(folder, n):
    return write_rows(folder / "prompts.jsonl", [{"prompt": f"Name bird {i}."} for i in range(n)])


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    """A tiny Llama that rarely stops."""
    folder = tmp_path_factory.mktemp("model") / "tiny-llama"
    tiny.write_model(folder, texts=["Name a bird of the marsh.", "The heron."], max_position_embeddings=96)
    return folder


def test_an_answer_that_is_drawn_here_goes_on_from_where_it_was_cut(tmp_path, llama):
    """With the same random numbers: the longer answer begins with the shorter one. The context ends it at last."""
    bare(tmp_path, 40)
    shared = {"prompts": str(tmp_path / "prompts.jsonl"), "out": str(tmp_path / "o.jsonl"), "model": "m",
              "store": str(tmp_path / "s.sqlite"), "endpoint": ("http://127.0.0.1:9/v1",)}  # fmt: skip
    config = ClairConfig(**shared, target_model=str(llama), target_max_tokens=12, target_temperature=3.0)
    target, prompts = Target(config, config, n=1, seed=0), Prompts(config)
    with open_store(tmp_path / "s.sqlite") as store:
        drawn = target.fill(lambda: prompts, store, len(prompts))
        assert drawn.first.n_stored == 40 and 0 < drawn.again.n_stored < 40
        n_cut = n_ended = n_whole = 0
        for item in prompts:
            (request,) = target.requests(item)
            (found,) = target.answers(item, store)
            first = answered(store, request)
            if not first.is_cut:
                assert found == first
                continue
            begun = first.text.rstrip("\ufffd")  # of half a character
            assert found.text.startswith(begun) and len(found.text) > len(begun) and found.row.tokens_out > 12
            n_cut, n_whole = n_cut + 1, n_whole + (found.completion is not None)
            if found.is_cut:
                assert found.fault == "truncated: at 12 tokens, and again at 24; raise --target-max-tokens"
            else:  # nonsense may hold half characters, too, and then it is set aside for them
                n_ended += 1
                assert found.row.tokens_out < 24
        assert 0 < n_ended < n_cut < 40
        assert drawn.said == (
            f"{n_cut} own answers were cut at 12 tokens: asked for again with 24, {n_whole} are whole, "
            f"{n_cut - n_whole} are set aside"
        )
        again = target.fill(lambda: prompts, store, len(prompts))
        assert (again.first.n_stored, again.again.n_stored, again.said) == (0, 0, drawn.said)


def test_an_answer_that_fills_the_context_is_not_drawn_twice(tmp_path, llama):
    rows = [{"prompt": "Name a bird of the marsh. " * 5}]
    write_rows(tmp_path / "prompts.jsonl", rows)
    shared = {"prompts": str(tmp_path / "prompts.jsonl"), "out": str(tmp_path / "o.jsonl"), "model": "m",
              "store": str(tmp_path / "s.sqlite"), "endpoint": ("http://127.0.0.1:9/v1",)}  # fmt: skip
    config = ClairConfig(**shared, target_model=str(llama), target_max_tokens=60, target_temperature=1.0)
    target, prompts = Target(config, config, n=1, seed=0), Prompts(config)
    with open_store(tmp_path / "s.sqlite") as store:
        drawn = target.fill(lambda: prompts, store, 1)
        (found,) = target.answers(next(iter(prompts)), store)
    assert (drawn.first.n_stored, drawn.again.n_stored) == (1, 0)
    assert found.fault == "truncated: the model's context is full"
