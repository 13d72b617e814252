"""Own answers: cut ones are asked for again and never made a pair of by accident; thoughts go where they are asked."""

import collections

import pytest

from data.rows.records import load_preferences
from revise import recipes, score
from revise.loopback import Reply, serve
from system.errors import InputError, RunError
from tests.revise.commands import command, read_rows, revise, run, write_rows

MAINS = {
    "clair": recipes.clair_main,
    "judge-on-policy": recipes.judge_main,
    "stronger-preferred": recipes.stronger_main,
}


def bare(folder, n):
    return write_rows(folder / "prompts.jsonl", [{"prompt": f"Name bird {i}."} for i in range(n)])


def here(name, folder, base, *more):
    """The command in this process."""
    MAINS[name](command(name, folder, base, *more)[4:])


def number(seen):
    return int(seen.text.split("bird ")[1].split(".")[0])


def wordy(*, short, long=()):
    """A model that needs more than 512 tokens for the birds in neither list, and more than 1,024 for those in long."""

    def reply(seen):
        most, i = seen.body["max_tokens"], number(seen)
        if i in short or (i not in long and most > 512):
            return Reply.chat(f"The otter is bird number {i}, I think.")
        return Reply.chat(f"The otter is bird numb{'e' * (most // 512)}", finish="length")

    return reply


def test_a_cut_answer_is_asked_for_once_more_by_the_real_command(tmp_path):
    bare(tmp_path, 6)
    asked = []
    target_reply = wordy(short=(0, 1, 2), long=(5,))
    with serve(lambda seen: asked.append(seen.body) or target_reply(seen)) as target, serve(revise) as server:
        more = ["--target-endpoint", target.base, "--target-name", "llama"]
        found = run(command("clair", tmp_path, server.base, *more))
        assert found.returncode == 0, found.stderr
        assert (target.n_seen, server.n_seen) == (9, 5)  # the reviser is not asked about the one that is no answer
        again = run(command("clair", tmp_path, server.base, *more))
        assert (target.n_seen, server.n_seen) == (9, 5) and again.returncode == 0
    assert sorted(body["max_tokens"] for body in asked) == [512] * 6 + [1024] * 3
    assert all(body.items() >= {"model": "llama", "temperature": 1.0, "top_p": 1.0}.items() for body in asked)
    assert (
        "3 own answers were cut at 512 tokens: asked for again with 1,024, 2 are whole, 1 are set aside" in found.stderr
    )
    assert "11 requests were sent (1.83 for each prompt) and 3 more for own answers that were cut" in found.stderr
    assert "3 own answers were cut at 512 tokens" in again.stderr
    made = read_rows(tmp_path / "pairs.jsonl")
    assert [row["prompt"] for row in made] == [f"Name bird {i}." for i in range(5)]
    assert all(row["rejected"][-1]["content"].endswith("I think.") for row in made)
    (aside,) = read_rows(tmp_path / "pairs.rejected.jsonl")
    assert aside["prompt"] == "Name bird 5." and aside["own"] == ["The otter is bird numbee"]
    assert aside["reason"] == ("own answer truncated: at 512 tokens, and again at 1,024; raise --target-max-tokens")


def teacher(seen):
    """Reviser, judge and stronger model in one; the judge takes whole answers for the better ones."""
    if "{student_solution_1}" in seen.text:
        first = seen.text.partition("{student_solution_1}: ")[2].partition("\n")[0]
        return Reply.chat(f"So.\n\n[{1 if first.endswith('I think.') else 2}]")
    return revise(seen) if "{student_solution}: " in seen.text else Reply.chat(f"A heron {seen.number}, whole.")


@pytest.mark.parametrize("name", MAINS)
def test_no_recipe_makes_a_pair_of_a_cut_answer_unless_it_is_told_to(tmp_path, name):
    bare(tmp_path, 4)
    made = {}
    for mode in ("again", "aside", "keep"):
        n_third = collections.Counter()

        def target_reply(seen, n_third=n_third):  # the third bird's is cut, of two answers the second one
            text = f"The otter {seen.number} is bird number {number(seen)}"
            n_third.update([number(seen)])
            is_cut = number(seen) == 3 and (name != "judge-on-policy" or n_third[3] > 1)
            return Reply.chat(text, finish="length") if is_cut else Reply.chat(f"{text}, I think.")

        with serve(target_reply) as target, serve(teacher) as server:
            more = ["--target-endpoint", target.base, "--target-name", "llama", "--cut-answers", mode]
            more += ["--store", tmp_path / f"{mode}.sqlite", "--out", tmp_path / f"{mode}.jsonl"]
            here(name, tmp_path, server.base, *more)
        made[mode] = [row["prompt"] for row in read_rows(tmp_path / f"{mode}.jsonl")]
    whole = [f"Name bird {i}." for i in range(3)]
    assert made == {"again": whole, "aside": whole, "keep": [*whole, "Name bird 3."]}


def test_a_winner_that_was_cut_is_none_whatever_is_kept(tmp_path):
    bare(tmp_path, 2)
    cut = lambda seen: Reply.chat(f"heron {seen.number} and", finish="length")  # noqa: E731
    with serve(cut) as target, serve(lambda seen: Reply.chat("[1]")) as server:
        more = ["--target-endpoint", target.base, "--target-name", "llama", "--both-orders", 0]
        with pytest.raises(RunError, match="no pair was made of 2 prompts"):
            here("judge-on-policy", tmp_path, server.base, *more, "--cut-answers", "keep")
    assert not read_rows(tmp_path / "pairs.jsonl")
    assert {row["reason"] for row in read_rows(tmp_path / "pairs.rejected.jsonl")} == {"own answer truncated"}


def test_what_is_asked_again_counts_towards_the_cap_and_goes_on(tmp_path):
    bare(tmp_path, 4)
    with serve(wordy(short=())) as target, serve(revise) as server:
        more = ["--target-endpoint", target.base, "--target-name", "llama"]
        with pytest.raises(RunError, match="--max-requests: "):
            here("clair", tmp_path, server.base, *more, "--max-requests", 6)
        assert (target.n_seen, server.n_seen) == (6, 0)
        here("clair", tmp_path, server.base, *more)
        assert (target.n_seen, server.n_seen) == (8, 4) and len(read_rows(tmp_path / "pairs.jsonl")) == 4


def test_without_a_limit_of_ours_nothing_is_asked_again(tmp_path):
    """--target-extra takes the limit out, or gives another one, which is doubled."""
    bare(tmp_path, 2)
    asked = []

    def target_reply(seen):
        asked.append(seen.body.get("max_completion_tokens"))
        return Reply.chat(f"The otter {seen.number} is", finish="length")

    with serve(target_reply) as target, serve(revise) as server:
        more = ["--target-endpoint", target.base, "--target-name", "llama", "--target-extra"]
        for extra in ('{"max_tokens": null}', '{"max_tokens": null, "max_completion_tokens": 100}'):
            with pytest.raises(RunError, match="no pair was made of 2 prompts"):
                here("clair", tmp_path, server.base, *more, extra)
            reasons = {row["reason"] for row in read_rows(tmp_path / "pairs.rejected.jsonl")}
            if "completion" in extra:
                said = "at 100 tokens, and again at 200; raise --target-max-tokens"
            else:
                said = "by the server, at a limit of its own"
            assert reasons == {f"own answer truncated: {said}"}
    assert sorted(asked, key=str) == [100, 100, 200, 200, None, None]


def test_what_is_whole_by_now_is_not_drawn_anew(tmp_path):
    """--ask-again asks for what was of no use: an answer that was cut and is whole now is of use."""
    bare(tmp_path, 3)
    with serve(wordy(short=(0,), long=(2,))) as target, serve(revise) as server:
        more = ["--target-endpoint", target.base, "--target-name", "llama"]
        here("clair", tmp_path, server.base, *more)
        assert target.n_seen == 5
        here("clair", tmp_path, server.base, *more, "--ask-again")
        assert target.n_seen == 7  # the one that was cut twice, twice


def test_one_answer_that_is_of_no_use_the_second_time_ends_nothing(tmp_path):
    """The stage before has shown that the server is of use: what comes now is that row's own."""
    bare(tmp_path, 3)

    def target_reply(seen):
        if seen.body["max_tokens"] > 512:
            return Reply.chat("I think not.", finish="content_filter")
        return wordy(short=(0, 1))(seen)

    with serve(target_reply) as target, serve(revise) as server:
        here("clair", tmp_path, server.base, "--target-endpoint", target.base, "--target-name", "llama")
    assert len(read_rows(tmp_path / "pairs.jsonl")) == 2
    assert [row["reason"] for row in read_rows(tmp_path / "pairs.rejected.jsonl")] == ["own answer refused"]


def test_a_dry_run_bounds_what_is_asked_again(tmp_path, capsys):
    """Four answers at 512 tokens, and where every one is cut four at 1,024."""
    bare(tmp_path, 4)
    prices = ["--target-price-in", 0, "--target-price-out", 10]
    more = ["--target-endpoint", "http://127.0.0.1:9/v1", "--target-name", "llama", "--dry-run", *prices]
    here("clair", tmp_path, "http://127.0.0.1:9/v1", *more)
    said = capsys.readouterr().out
    assert "target: 4 requests" in said and "at most 2,048 to receive" in said
    assert "target again, were every answer cut: 4 requests" in said and "at most 4,096 to receive" in said
    here("clair", tmp_path, "http://127.0.0.1:9/v1", *more, "--cut-answers", "aside")
    assert "again" not in capsys.readouterr().out
    here("clair", tmp_path, "http://127.0.0.1:9/v1", *more, "--target-extra", '{"max_tokens": null}')
    assert "target again, were every answer cut: 0 requests" in capsys.readouterr().out


def test_a_cut_own_answer_has_no_grade(tmp_path, capsys):
    pairs = [{"prompt": f"Name bird {i}.", "chosen": f"A heron {i}.", "rejected": f"An otter {i}."} for i in range(2)]
    write_rows(tmp_path / "pairs.jsonl", pairs)
    with serve(wordy(short=(0,), long=(1,))) as target, serve(lambda seen: Reply.chat("[7]")) as server:
        arguments = ["--pairs", tmp_path / "pairs.jsonl", "--out", tmp_path / "scored.jsonl", "--model", "judge"]
        arguments += ["--store", tmp_path / "s.sqlite", "--endpoint", server.base]
        arguments += ["--target-endpoint", target.base, "--target-name", "llama"]
        score.main([str(a) for a in arguments])
        assert (target.n_seen, server.n_seen) == (3, 5)
    assert ["own_score" in row for row in read_rows(tmp_path / "scored.jsonl")] == [True, False]
    assert "1 own answers were cut at 512 tokens" in capsys.readouterr().err


# --- thoughts ------------------------------------------------------------------------------------------------------


def thinking(seen):
    return Reply.chat(f"<think>\nHm, thought {seen.number}.\n</think>\n\nThe otter {seen.number}, I think.")


def test_thoughts_of_the_answer_that_is_revised_are_on_both(tmp_path):
    bare(tmp_path, 2)
    with serve(thinking) as target, serve(revise) as server:
        more = ["--target-endpoint", target.base, "--target-name", "llama", "--concurrency", 1]
        here("clair", tmp_path, server.base, *more, "--keep-reasoning")
        kept = read_rows(tmp_path / "pairs.jsonl")
        here("clair", tmp_path, server.base, *more)
        bare_rows = read_rows(tmp_path / "pairs.jsonl")
    for i, row in enumerate(kept):
        assert row["rejected"][-1] == {
            "role": "assistant", "content": f"The otter {i}, I think.", "reasoning_content": f"Hm, thought {i}."
        }  # fmt: skip
        assert row["chosen"][-1] == row["rejected"][-1] | {"content": f"The heron {i}, I think."}
    assert not any("reasoning_content" in row[name][-1] for row in bare_rows for name in ("chosen", "rejected"))
    (first, _) = load_preferences(tmp_path / "pairs.jsonl")
    assert first.texts == ("The heron 0, I think.", "The otter 0, I think.")


def test_of_judged_answers_each_has_its_own_thoughts(tmp_path):
    bare(tmp_path, 3)
    with serve(thinking) as target, serve(lambda seen: Reply.chat("[2]")) as server:
        more = ["--target-endpoint", target.base, "--target-name", "llama", "--both-orders", 0]
        here("judge-on-policy", tmp_path, server.base, *more, "--keep-reasoning")
    for row in read_rows(tmp_path / "pairs.jsonl"):
        for side in ("chosen", "rejected"):
            message = row[side][-1]
            k = message["content"].split()[2].rstrip(",")
            assert message["reasoning_content"] == f"Hm, thought {k}."
        assert row["chosen"] != row["rejected"]


def test_thoughts_of_a_pairs_loser_come_along(tmp_path):
    loser = {"role": "assistant", "content": "The otter, I think.", "reasoning_content": "Hm."}
    write_rows(tmp_path / "prompts.jsonl", [{"prompt": "Name bird 1.", "chosen": "x", "rejected": [loser]}])
    with serve(revise) as server:
        here("clair", tmp_path, server.base, "--response-from", "rejected", "--keep-reasoning")
    (row,) = read_rows(tmp_path / "pairs.jsonl")
    assert row["rejected"][-1] == loser and row["chosen"][-1]["reasoning_content"] == "Hm."


def test_a_stronger_models_answer_has_no_thoughts_of_ours(tmp_path):
    bare(tmp_path, 1)
    with pytest.raises(InputError, match=r"^--keep-reasoning: the winner is another model's answer"):
        here("stronger-preferred", tmp_path, "http://127.0.0.1:9/v1", "--keep-reasoning")


def test_an_answer_whose_thoughts_took_all_is_asked_for_again(tmp_path):
    bare(tmp_path, 2)

    def target_reply(seen):
        if number(seen) == 1 and seen.body["max_tokens"] == 512:
            return Reply.chat("<think>\nHm, hm", finish="length", usage=(10, 512))
        return thinking(seen)

    with serve(target_reply) as target, serve(revise) as server:
        here("clair", tmp_path, server.base, "--target-endpoint", target.base, "--target-name", "llama")
        assert target.n_seen == 3 and len(read_rows(tmp_path / "pairs.jsonl")) == 2


def test_thoughts_alone_are_no_loser_whatever_is_kept(tmp_path):
    bare(tmp_path, 2)

    def target_reply(seen):
        text = "The otter is bird numb" if number(seen) else "<think>\nHm, hm"
        return Reply.chat(text, finish="length", usage=(10, 512))

    with serve(target_reply) as target, serve(revise) as server:
        more = ["--target-endpoint", target.base, "--target-name", "llama", "--cut-answers", "keep"]
        here("clair", tmp_path, server.base, *more)
        assert server.n_seen == 1
    assert [row["prompt"] for row in read_rows(tmp_path / "pairs.jsonl")] == ["Name bird 1."]
    (aside,) = read_rows(tmp_path / "pairs.rejected.jsonl")
    assert aside["reason"].startswith("own answer truncated: the thoughts took all 512 tokens")
