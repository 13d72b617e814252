"""Sampling: greedy text equal to transformers' generate, and samples that depend on their seed alone."""

import errno
import fcntl
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from importlib import metadata
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from engine import weights
from engine.generate import Answerer, Partial, Sampling, generate, main
from engine.sampling import decoding
from engine.sampling.decoding import Answer, Running, Slots
from engine.sampling.sampling import choose, noise_size
from engine.sampling.stops import check_stops, ids_of_stops, says_stop
from revise.loopback import Reply, serve
from system.errors import InputError
from tests import tiny
from tests.proofs import counted

ATTENTION = "scaled_dot_product_attention"


def prompts(n=9, seed=0):
    rng = np.random.default_rng(seed)
    return [rng.integers(0, 101, rng.integers(1, 20)).tolist() for _ in range(n)]


def test_neighbours_of_about_one_length_share_a_call(monkeypatch):
    """And those of very unequal ones do not, whose padding would cost more than the call."""
    model, calls = tiny.random_llama(max_position_embeddings=2048), counted(monkeypatch, decoding, ATTENTION)
    for lengths, n_calls in (([9, 8, 7], 1), ([1200, 8, 7], 2)):
        slots, n_layers = Slots(model, 3, 1300), model.config.n_layers
        for i, n in enumerate(lengths):
            slots.add(Running(Answer(i, 0), [1] * n, np.random.default_rng(i)))
        with torch.no_grad():
            while any(len(r.todo) > 1 for r in slots.running):
                due, _ = slots.step(10**6)
            for running in due:
                running.todo = [1]
            calls.clear()
            slots.step(10**6)
        assert len(calls) == n_calls * n_layers


def turns(monkeypatch):
    """A list that gets, for every pass from now on, how many tokens each slot in use runs."""
    plain, found = Slots._next_pieces, []

    def noted(self, prefill_tokens):
        pieces, tokens = plain(self, prefill_tokens)
        found.append([p.end - p.start for p in pieces])
        return pieces, tokens

    monkeypatch.setattr(Slots, "_next_pieces", noted)
    return found


@pytest.mark.parametrize("batch_size", [1, 4, 9])
@pytest.mark.parametrize("shape", tiny.SHAPES)
def test_greedy_answers_equal_those_of_transformers(shape, batch_size, tmp_path, monkeypatch):
    model = tiny.random_llama(shape)
    weights.save(model, tmp_path / "m")
    peer = AutoModelForCausalLM.from_pretrained(tmp_path / "m").eval()
    stop = 7
    sampling = Sampling(temperature=0, max_new_tokens=24, batch_size=batch_size, prefill_tokens=7)
    seen = turns(monkeypatch)
    ours = generate(model, prompts(), sampling, [stop])
    assert min(batch_size, 8) <= max(map(len, seen)) <= batch_size and max(map(sum, seen)) <= 7 + batch_size
    assert max(n for turn in seen for n in turn) == 7 < max(map(len, prompts()))  # in pieces
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
def test_a_sample_does_not_depend_on_what_it_is_batched_with(batch_size, monkeypatch):
    model = tiny.random_llama(std=0.1)
    seen = turns(monkeypatch)
    alone = [generate(model, [p], Sampling(n=1, max_new_tokens=12, seed=5), [7])[0].ids for p in prompts()[:1]]
    assert max(map(len, seen)) == 1
    seen.clear()
    together = generate(model, prompts(), Sampling(n=3, max_new_tokens=12, seed=5, batch_size=batch_size), [7])
    assert max(map(len, seen)) == min(batch_size, 9 * 3)
    assert [(a.prompt, a.sample) for a in together] == [(p, s) for p in range(9) for s in range(3)]
    assert together[0].ids == alone[0]
    assert together[0].ids != together[1].ids
    assert [a.ids for a in generate(model, prompts(), Sampling(n=3, max_new_tokens=12, seed=5), [7])] == [
        a.ids for a in together
    ]
    assert [a.ids for a in generate(model, prompts(), Sampling(n=3, max_new_tokens=12, seed=6), [7])] != [
        a.ids for a in together
    ]


@pytest.mark.parametrize("prefill_tokens", [1, 5, 1024])
def test_logits_with_the_cache_equal_those_of_a_pass_without(prefill_tokens, tmp_path, monkeypatch):
    seen = turns(monkeypatch)
    model = tiny.random_llama("llama3.1")
    weights.save(model, tmp_path / "m")
    peer = AutoModelForCausalLM.from_pretrained(tmp_path / "m").eval()
    slots, rng = Slots(model, 6, 110), np.random.default_rng(1)
    many = prompts(30)
    n_compared = 0
    for _ in range(80):
        while many and slots.has_room and rng.random() < 0.7:
            slots.add(Running(Answer(len(many), 0), many.pop(), rng))
        with torch.no_grad():
            due, logits = slots.step(prefill_tokens) if slots.running else ([], torch.zeros(0))
        for running, row in zip(due, logits, strict=True):
            whole = torch.tensor([[*running.prompt, *running.answer.ids]])
            with torch.no_grad():
                torch.testing.assert_close(row, peer(whole).logits[0, -1], rtol=0, atol=1e-4)
            n_compared += 1
            running.answer.ids.append(int(rng.integers(101)))
            running.todo = running.answer.ids[-1:]
            if rng.random() < 0.2:
                slots.remove(running)
        slots.close_ranks()
    assert n_compared > 30 and 3 < max(map(len, seen)) <= 6
    longest = max(n for turn in seen for n in turn)
    assert longest == min(prefill_tokens, max(map(len, prompts(30))))


def test_samples_of_a_prompt_read_it_once(monkeypatch):
    seen = turns(monkeypatch)
    model, prompt = tiny.random_llama(std=0.1), list(range(50))
    answers = generate(model, [prompt], Sampling(n=8, max_new_tokens=2, seed=1), [])
    assert (
        sum(map(sum, seen)) == 50 + 7 + 8
    )  # the prompt, its last token for each other sample, the first token of each
    alone = [
        generate(model, [prompt], Sampling(n=s + 1, batch_size=1, max_new_tokens=2, seed=1), [])[s] for s in (0, 7)
    ]
    assert [answers[0].ids, answers[7].ids] == [a.ids for a in alone]


def noise(n, vocabulary, seed=0):
    return np.random.default_rng(seed).standard_exponential((n, noise_size(vocabulary)))


def shares(logits, n, **settings):
    """How often each token is drawn."""
    rows = logits.expand(n, -1)
    drawn = choose(rows, Sampling(**settings), noise(n, len(logits)))
    return torch.bincount(drawn, minlength=len(logits)) / n


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_tokens_are_drawn_with_the_probabilities_of_the_softmax(temperature):
    few = torch.tensor([2.0, 0.0, 1.0, -1.0])
    expected = torch.softmax(few / temperature, 0)
    torch.testing.assert_close(shares(few, 20_000, temperature=temperature), expected, rtol=0, atol=0.01)
    many = torch.full((700,), -8.0)  # three blocks of tokens
    many[[3, 300, 301, 699]] = few
    expected = torch.softmax(many / temperature, 0)
    torch.testing.assert_close(shares(many, 20_000, temperature=temperature), expected, rtol=0, atol=0.01)


def test_top_p_keeps_the_fewest_tokens_that_reach_it():
    logits = torch.log(torch.tensor([0.5, 0.3, 0.15, 0.05]))
    expected = torch.tensor([0.625, 0.375, 0, 0])
    torch.testing.assert_close(shares(logits, 5000, top_p=0.7), expected, rtol=0, atol=0.02)
    assert shares(logits, 100, top_p=0.1).tolist() == [1, 0, 0, 0]


def test_top_k_keeps_the_k_likeliest_and_comes_before_top_p():
    logits = torch.log(torch.tensor([0.4, 0.3, 0.2, 0.1]))
    torch.testing.assert_close(shares(logits, 5000, top_k=2), torch.tensor([4 / 7, 3 / 7, 0, 0]), rtol=0, atol=0.02)
    assert shares(logits, 100, top_k=2, top_p=0.5).tolist() == [1, 0, 0, 0]  # 4/7 of the two alone is above a half
    assert shares(logits, 2000, top_p=0.5)[1] > 0.3


def test_logits_that_differ_in_their_last_digits_give_the_same_tokens():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2000, 5000, generator=generator)
    shaken = logits + 1e-6 * torch.randn(2000, 5000, generator=generator)
    random = noise(2000, 5000)
    assert (choose(logits, Sampling(), random) != choose(shaken, Sampling(), random)).sum() <= 1


@pytest.mark.parametrize("temperature", [1e-38, 1e-45])
@pytest.mark.parametrize("more", [{}, {"top_p": 0.9}, {"top_k": 3}])
def test_a_temperature_by_which_logits_overflow_is_the_greedy_one(temperature, more):
    logits = 30 * torch.randn(64, 700, generator=torch.Generator().manual_seed(0))
    assert not (logits / temperature).isfinite().all()  # what it is about
    logits[3] = 0.0
    logits[3, 5] = 1e-3  # overflows at the smaller of the two alone
    drawn = choose(logits, Sampling(temperature=temperature, **more), noise(64, 700))
    assert drawn.tolist() == logits.argmax(dim=1).tolist()


def padded(folder):
    """A folder whose model has more rows than its tokenizer has tokens, and likes them best."""
    tiny.write_model(folder, ["some words to merge and to answer with"] * 20)
    tokens = json.loads((folder / "tokenizer.json").read_text())["added_tokens"]
    shutil.rmtree(folder)
    model = tiny.random_llama(vocab_size=448)
    with torch.no_grad():
        model.head.weight[max(t["id"] for t in tokens) + 1 :] *= 50
    weights.save(model, folder)
    tiny.write_tokenizer(folder, ["some words to merge and to answer with"] * 20)
    return folder


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_row_of_the_head_that_no_token_has_is_never_sampled(temperature, tmp_path):
    answerer = Answerer.open(str(padded(tmp_path / "m")))
    ids = [answerer.prompt_ids("here", [tiny_message("hello")])]
    sampling = Sampling(max_new_tokens=60, n=4, temperature=temperature)
    found = {i for answer in answerer.answer(ids, sampling) for i in answer.ids}
    free = {i for answer in generate(answerer._model, ids, sampling, []) for i in answer.ids}
    without = set(answerer.chat.tokenizer.ids_without_token(448))
    assert without == set(range(min(without), 448)) and free & without and not found & without


def test_a_special_token_that_is_to_end_an_answer_ends_it_as_its_id_does(tmp_path):
    folder = tiny.write_model(tmp_path / "m", ["some words to merge and to answer with"] * 20)
    answerer = Answerer.open(str(folder))
    ids = [answerer.prompt_ids("here", [tiny_message("hello")])]
    start = answerer.chat.tokenizer.special["<|start_header_id|>"]
    for seed in range(100):
        free = answerer.answer(ids, Sampling(max_new_tokens=60, seed=seed))[0]
        if start in free.ids[2:]:
            break
    named = Sampling(max_new_tokens=60, seed=seed, stop=("<|start_header_id|>",))
    ended = answerer.answer(ids, named)[0]
    assert (ended.finish, ended.stop_id) == ("stop", start) and ended.ids == free.ids[: free.ids.index(start)]


@pytest.mark.parametrize(
    ("stop", "said"),
    [
        (
            "then<|eot_id|>",
            r"can never match, since the text of an answer holds no '<\|eot_id\|>'; give that token alone",
        ),
        ("<|eot_id|>\n", r"can never match"),
    ],
)
def test_a_text_that_no_answer_can_say_is_no_stop(stop, said, tmp_path):
    folder = tiny.write_model(tmp_path / "m", ["some words to merge and to answer with"] * 20)
    prompts_file = tiny.write_rows(tmp_path / "p.jsonl", [{"prompt": "hello"}])
    with pytest.raises(InputError, match=f"^--stop .*{said}"):
        main(
            ["--model", str(folder), "--prompts", str(prompts_file), "--out", str(tmp_path / "o.jsonl"), "--stop", stop]
        )
    assert not list(tmp_path.glob("o.jsonl*"))


def test_a_text_that_the_tokenizer_writes_otherwise_is_no_stop(tmp_path):
    folder = tiny.write_model(tmp_path / "m", ["some words to merge and to answer with"] * 20)
    description = json.loads((folder / "tokenizer.json").read_text())
    (folder / "tokenizer.json").write_text(json.dumps(description | {"normalizer": {"type": "Lowercase"}}))
    answerer = Answerer.open(str(folder))
    answerer.check_stop(["end"])
    with pytest.raises(
        InputError, match=r"--stop 'END': can never match, since the tokenizer in .* writes 'end' for it"
    ):
        answerer.check_stop(["END"])


class Bytes:
    """A tokenizer of a token to each byte, with two special ones."""

    def __init__(self):
        self.special = {"<a>": 300, "<b>": 301}

    def decode(self, ids):
        return bytes(ids).decode("utf-8", "replace")


def test_each_text_of_several_ends_an_answer_and_each_special_one_as_its_id():
    says = says_stop(["END", "\n\n"], Bytes())
    answers = {text: Answer(0, 0, list(text.encode())) for text in ("so END", "so\n\n", "so EN", "so\n", "")}
    assert {text: says(answer) for text, answer in answers.items()} == {
        "so END": True, "so\n\n": True, "so EN": False, "so\n": False, "": False
    }  # fmt: skip
    assert ids_of_stops(["END", "<a>", "<b>"], Bytes()) == [300, 301]
    assert says_stop([], Bytes()) is None and ids_of_stops(["<a>"], None) == []


def test_a_stop_of_letters_of_many_bytes_is_read_whole():
    says = says_stop(["🙂🙂🙂"], Bytes())
    assert says(Answer(0, 0, list("so it ends 🙂🙂🙂".encode()))) and not says(Answer(0, 0, list("🙂🙂".encode())))


def test_without_a_tokenizer_a_text_is_no_stop():
    with pytest.raises(InputError, match=r"^--stop: m has no tokenizer; give --stop-ids$"):
        check_stops(["END"], None, Path("m"))
    check_stops([], None, Path("m"))


def test_a_text_ends_an_answer_though_it_spreads_over_tokens(tmp_path):
    folder = tiny.write_model(tmp_path / "m", ["some words to merge and to answer with"] * 20)
    answerer = Answerer.open(str(folder))
    ids = [answerer.prompt_ids("here", [tiny_message("hello")])]
    free = answerer.answer(ids, Sampling(max_new_tokens=40, seed=3))[0]
    whole = answerer.text(free)
    for start in (5, 9, 14):
        stop = whole[start : start + 4]
        cut = answerer.answer(ids, Sampling(max_new_tokens=40, seed=3, stop=("never said", stop)))[0]
        assert cut.finish == "stop" and len(cut.ids) < len(free.ids)
        assert answerer.text(cut, (stop,)) == whole[: whole.index(stop)]
    ended = answerer.answer(ids, Sampling(max_new_tokens=40, seed=3, stop_ids=(free.ids[6],)))[0]
    assert ended.finish == "stop" and ended.ids == free.ids[: free.ids.index(free.ids[6])]


def tiny_message(text):
    from data.text import Message

    return Message("user", text)


def test_an_answer_ends_with_the_context_and_a_prompt_that_fills_it_is_refused(tmp_path):
    folder = tiny.write_model(tmp_path / "m", ["some words"] * 20, max_position_embeddings=64)
    rows = tiny.write_rows(tmp_path / "p.jsonl", [{"prompt": "short"}, {"prompt": "word " * 200}])
    with pytest.raises(InputError) as fault:
        here(folder, rows, tmp_path / "a.jsonl")
    said = "1 of 2 rows cannot be used; fix or delete them; --beyond-context accepts prompts that fill the context"
    assert str(fault.value).startswith(said)
    assert re.search(r"p\.jsonl:2: a prompt of \d+ tokens leaves no room in a context of 64; shorten", str(fault.value))
    answers = Answerer.open(str(folder)).answer([[1] * 60, [2] * 50], Sampling(temperature=0))
    assert [len(a.ids) for a in answers if a.finish == "length"] == [4, 14]
    beyond = Answerer.open(str(folder), beyond_context=True)
    answers = beyond.answer([[1] * 60, [2] * 70], Sampling(temperature=0, max_new_tokens=20))
    assert [len(a.ids) for a in answers if a.finish == "length"] == [20, 20]


def test_prompts_that_leave_less_room_than_an_answer_may_take_are_counted(tmp_path, capsys):
    folder = tiny.write_model(tmp_path / "m", ["some words"] * 20, max_position_embeddings=64)
    rows = tiny.write_rows(tmp_path / "p.jsonl", [{"prompt_ids": [1] * n} for n in (40, 54, 55, 63)])
    here(folder, rows, tmp_path / "a.jsonl", "--max-new-tokens", 10)
    said = "2 of 4 prompts leave less than --max-new-tokens 10 in the model's context of 64; answers to them end there"
    assert f"{rows}: {said}\n" in capsys.readouterr().err
    here(folder, rows, tmp_path / "b.jsonl", "--max-new-tokens", 10, "--beyond-context")
    assert "the model's context" not in capsys.readouterr().err


def arguments(folder, rows, out, *more):
    flags = ["--model", folder, "--prompts", rows, "--out", out, *more]
    return [sys.executable, "-m", "engine.generate", *map(str, flags)]


def here(*given):
    """The command in this process."""
    main(arguments(*given)[3:])


@pytest.mark.slow
def test_a_run_that_is_killed_goes_on_and_gives_the_same_file(tmp_path):
    folder = tiny.write_model(tmp_path / "m", ["some words to merge"] * 20, std=0.1)
    rows = tiny.write_rows(tmp_path / "p.jsonl", [{"prompt": f"hello {i}"} for i in range(60)])
    flags = ["--n", "2", "--max-new-tokens", "30", "--batch-size", "4", "--seed", "2"]
    here(folder, rows, tmp_path / "calm.jsonl", *flags)
    partial = tmp_path / "a.jsonl.partial"
    running = subprocess.Popen(arguments(folder, rows, tmp_path / "a.jsonl", *flags), stderr=subprocess.DEVNULL)
    while not partial.exists() or len(partial.read_bytes().splitlines()) < 5:
        assert running.poll() is None
        time.sleep(0.01)
    with pytest.raises(InputError, match="another process writes answers here; wait for it, or write elsewhere"):
        here(folder, rows, tmp_path / "a.jsonl", *flags)
    os.kill(running.pid, signal.SIGKILL)
    running.wait()
    with open(partial, "ab") as file:
        file.write(b'{"row": 59, "sam')  # torn in the middle of a line
    n_kept = len(partial.read_bytes().splitlines()) - 1
    with pytest.raises(InputError, match="of another model, prompts or settings"):
        here(folder, rows, tmp_path / "a.jsonl", *flags[:-1], "3")
    assert len(partial.read_bytes().splitlines()) >= n_kept > 4
    whole = partial.read_bytes()
    lines = whole.split(b"\n")
    partial.write_bytes(b"\n".join([lines[0], b"\0" * len(lines[1]), *lines[2:]]))  # as a loss of power leaves it
    with pytest.raises(InputError, match=r"a\.jsonl\.partial:2: .*fix or delete the line"):
        here(folder, rows, tmp_path / "a.jsonl", *flags)
    partial.write_bytes(whole)
    here(folder, rows, tmp_path / "a.jsonl", *flags)
    assert (tmp_path / "a.jsonl").read_bytes() == (tmp_path / "calm.jsonl").read_bytes() and not partial.exists()


def test_a_file_that_is_finished_while_another_process_waits_for_it_is_made_anew(tmp_path, monkeypatch):
    """Opened before the first process removes it, locked after: its answers would stand in a file without a name."""
    plain, finished = fcntl.flock, []

    def late(file, how):
        if not finished:
            finished.append(Path(file.name).unlink())
        plain(file, how)

    monkeypatch.setattr(fcntl, "flock", late)
    with Partial(tmp_path / "a.jsonl", {}) as partial:
        partial.add(0, 0, {"response": "yes"})
        assert len((tmp_path / "a.jsonl.partial").read_text().splitlines()) == 2 and len(finished) == 1


def test_a_file_system_without_locks_is_told(tmp_path, monkeypatch):
    def none(file, how):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", none)
    with pytest.raises(InputError, match=r"a\.jsonl\.partial: its file system has no locks \(No locks available\)"):
        Partial(tmp_path / "a.jsonl", {})


@pytest.mark.slow
def test_a_memory_that_does_not_suffice_is_told(tmp_path):
    """Without overcommitted memory: a limit of the process stands for a small machine."""
    folder = tiny.write_model(tmp_path / "m", ["some words to merge"] * 20, max_position_embeddings=2**22)
    rows = tiny.write_rows(tmp_path / "p.jsonl", [{"prompt": f"hello {i}"} for i in range(9)])
    command = arguments(folder, rows, tmp_path / "a.jsonl", "--max-new-tokens", "4000000")
    limited = ["bash", "-c", 'ulimit -v 8000000; exec "$@"', "bash", *command]
    done = subprocess.run(limited, capture_output=True, text=True, env=tiny.environment(), timeout=120, check=False)
    said = done.stderr.splitlines()[-1]
    assert done.returncode == 1 and "Traceback" not in done.stderr, done.stderr
    assert said.startswith("error: out of memory with 128 answers at a time; lower the batch size"), said


def test_what_a_server_refuses_does_not_hold_back_the_rest(tmp_path, capfd):
    rows = tiny.write_rows(tmp_path / "p.jsonl", [{"prompt": f"hello {i}"} for i in range(5)])
    told = [400]

    def reply(seen):
        return Reply.error(400, "maximum context length") if "hello 3" in seen.text and told else Reply.chat("yes")

    with serve(reply) as server:
        flags = ["--endpoint", server.base]
        here("llama", rows, tmp_path / "a.jsonl", *flags)
        assert "1 answers are missing (refused by the server: 400" in capfd.readouterr().err
        assert len((tmp_path / "a.jsonl").read_text().splitlines()) == 4
        (row,) = map(json.loads, (tmp_path / "a.rejected.jsonl").read_text().splitlines())
        assert row["prompt"] == [{"role": "user", "content": "hello 3"}] and "maximum context" in row["reason"]
        with pytest.raises(InputError, match="exists already"):
            here("llama", rows, tmp_path / "a.jsonl", *flags)
        told.clear()
        here("llama", rows, tmp_path / "a.jsonl", *flags, "--ask-again")
        assert server.n_seen == 6 and not (tmp_path / "a.rejected.jsonl").exists()
    assert len((tmp_path / "a.jsonl").read_text().splitlines()) == 5
    with pytest.raises(InputError, match="--ask-again: needs --endpoint"):
        here("llama", rows, tmp_path / "b.jsonl", "--ask-again")


def test_a_server_is_asked_in_the_ways_that_its_errors_name(tmp_path):
    """--api, --stream, --accept-finish-reason and --max-answer-mb: what a sentence names, the command has."""
    rows = tiny.write_rows(tmp_path / "p.jsonl", [{"prompt": "hello"}])
    seen, finish = [], "content_filter"  # which without a word is a refusal

    def reply(request):
        seen.append((request.path, request.body.get("stream")))
        if request.path.endswith("/responses"):
            body = {"id": "r", "object": "response", "model": "m", "status": "completed", "output": [
                {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "from responses"}]}
            ], "usage": {"input_tokens": 5, "output_tokens": 2}}  # fmt: skip
            return Reply(json.dumps(body).encode())
        return Reply.chat("whole", finish=finish)

    def text(name, *flags):
        here("llama", rows, tmp_path / name, "--endpoint", server.base, *flags)
        return json.loads((tmp_path / name).read_text())["response"]

    with serve(reply) as server:
        assert text("a.jsonl", "--api", "responses") == "from responses"
        assert text("b.jsonl", "--stream", "--accept-finish-reason", finish, "--max-answer-mb", "1") == "whole"
    assert [path for path, _ in seen] == ["/v1/responses", "/v1/chat/completions"] and seen[1][1] is True
    for flag in (("--stream",), ("--api", "responses"), ("--max-answer-mb", "1"), ("--accept-finish-reason", "x")):
        with pytest.raises(InputError, match=f"{flag[0]}: needs --endpoint"):
            here("llama", rows, tmp_path / "c.jsonl", *flag)


def test_a_server_answers_in_the_place_of_a_checkpoint(tmp_path):
    rows = tiny.write_rows(tmp_path / "p.jsonl", [{"prompt": "hello"}, {"prompt": "nothing"}])
    asked = []

    def reply(seen):
        asked.append(seen.body)
        return Reply.chat("" if "nothing" in seen.text else f"seed {seen.body['seed']}")

    with serve(reply) as server:
        flags = ["--endpoint", server.base, "--n", "2", "--top-k", "5", "--stop", "END", "--seed", "4"]
        here("llama", rows, tmp_path / "a.jsonl", *flags)
        with pytest.raises(InputError, match="--dtype"):
            here("llama", rows, tmp_path / "b.jsonl", "--endpoint", server.base, "--dtype", "float32")
    lines = [json.loads(line) for line in (tmp_path / "a.jsonl").read_text().splitlines()]
    assert [(r["prompt"][0]["content"], r["response"], r["sample"]) for r in lines] == [
        ("hello", "seed 4", 0), ("hello", "seed 5", 1), ("nothing", "", 0), ("nothing", "", 1),
    ]  # fmt: skip
    assert all(b["top_k"] == 5 and b["stop"] == ["END"] and b["temperature"] == 1.0 for b in asked)
    assert asked[0]["model"] == "llama" and len(asked) == 4


TOOLS = [{"type": "function", "function": {"name": "weather", "parameters": {}}}]


def test_what_a_row_gives_its_template_is_handed_on_to_a_server_and_written_down(tmp_path):
    row = {"question": "Weather?", "system": "Be brief.", "tools": json.dumps(TOOLS)}
    rows = [row | {"chat_template_kwargs": {"enable_thinking": False}, "context": "old"}, {"question": "hello"}]
    file, asked = tiny.write_rows(tmp_path / "p.jsonl", rows), []
    with serve(lambda seen: asked.append(seen.body) or Reply.chat("yes")) as server:
        flags = ["--endpoint", server.base, "--columns", "prompt=question", "--ignore-columns", "context"]
        here("llama", file, tmp_path / "a.jsonl", *flags)
        tiny.write_rows(file, [{"prompt": "hello"}, {"prompt": "hello", "documents": [{"text": "x"}]}])
        with pytest.raises(InputError, match=r"p\.jsonl:2: \"documents\" cannot be sent to a server"):
            here("llama", file, tmp_path / "b.jsonl", "--endpoint", server.base)
        assert server.n_seen == 2
    one, two = sorted(asked, key=lambda body: -len(body["messages"]))
    assert one["messages"] == [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Weather?"}]
    assert one["tools"] == TOOLS and one["chat_template_kwargs"] == {"enable_thinking": False}
    assert not {"tools", "chat_template_kwargs"} & {*two}
    lines = [json.loads(line) for line in (tmp_path / "a.jsonl").read_text().splitlines()]
    assert lines[0]["tools"] == TOOLS and lines[0]["prompt"] == one["messages"] and "tools" not in lines[1]


def test_a_row_gives_the_template_of_a_checkpoint_what_it_says(tmp_path, monkeypatch):
    folder = tiny.write_model(tmp_path / "m", ["hello there"] * 20)
    given = []
    really = Answerer.prompt_ids
    monkeypatch.setattr(Answerer, "prompt_ids", lambda self, *told: given.append(told) or really(self, *told[:2]))
    file = tiny.write_rows(tmp_path / "p.jsonl", [{"prompt": "hello", "tools": TOOLS, "system": "there"}])
    here(folder, file, tmp_path / "a.jsonl", "--max-new-tokens", "2")
    ((location, prompt, context),) = given
    assert location == f"{file}:1" and [m.role for m in prompt] == ["system", "user"] and context.tools == TOOLS
    assert json.loads((tmp_path / "a.jsonl").read_text())["tools"] == TOOLS


def test_a_server_without_the_installed_package_is_a_sentence(tmp_path, monkeypatch):
    rows = tiny.write_rows(tmp_path / "p.jsonl", [{"prompt": "hello"}])
    named = {
        "cannot be found; run ./launch.sh setup": None,
        "is not this one .No module named 'revise.elsewhere'.; run ./launch.sh setup": "revise.elsewhere:answers",
        "is not this one .No module named 'elsewhere'.; run ./launch.sh setup": "elsewhere.client:answers",
    }
    for said, value in named.items():
        found = () if value is None else (metadata.EntryPoint("endpoint", value, "engine.generate"),)
        monkeypatch.setattr(metadata, "entry_points", lambda found=found, **asked: found)
        with pytest.raises(InputError, match=said):
            here("llama", rows, tmp_path / "a.jsonl", "--endpoint", "http://127.0.0.1:9")


def test_what_else_a_server_backend_lacks_is_no_fault_of_the_installation(tmp_path, monkeypatch):
    """A module that it imports and that is missing is said as it is."""
    (tmp_path / "backend.py").write_text("import a_module_that_is_missing\n")
    monkeypatch.syspath_prepend(tmp_path)
    found = (metadata.EntryPoint("endpoint", "backend:answers", "engine.generate"),)
    monkeypatch.setattr(metadata, "entry_points", lambda **asked: found)
    rows = tiny.write_rows(tmp_path / "p.jsonl", [{"prompt": "hello"}])
    with pytest.raises(ModuleNotFoundError, match="a_module_that_is_missing"):
        here("llama", rows, tmp_path / "a.jsonl", "--endpoint", "http://127.0.0.1:9")


def test_the_command_writes_answers_in_the_order_of_the_prompts(tmp_path, monkeypatch):
    texts = ["some words to merge and to answer with", "hello world"] * 20
    model = tiny.write_model(tmp_path / "m", texts)
    rows = tiny.write_rows(tmp_path / "p.jsonl", [{"prompt": f"hello {i}"} for i in range(5)])
    flags = ["--model", str(model), "--prompts", str(rows), "--n", "2", "--max-new-tokens", "5", "--batch-size", "3"]
    seen = turns(monkeypatch)
    main([*flags, "--out", str(tmp_path / "a.jsonl")])
    assert max(map(len, seen)) == 3
    main([*flags, "--out", str(tmp_path / "b.jsonl"), "--batch-size", "10"])
    assert max(map(len, seen)) > 3
    lines = [json.loads(line) for line in (tmp_path / "a.jsonl").read_text().splitlines()]
    assert [(r["prompt"][0]["content"], r["sample"]) for r in lines] == [
        (f"hello {i}", s) for i in range(5) for s in (0, 1)
    ]
    assert all(isinstance(r["response"], str) and r["finish"] in ("stop", "length") for r in lines)
    assert (tmp_path / "a.jsonl").read_bytes() == (tmp_path / "b.jsonl").read_bytes()
