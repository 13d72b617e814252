"""A pass over MixEval-Hard by the real command: a tiny model, made-up queries, a judge behind a real server."""

import hashlib
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import threading

import numpy as np
import pytest

from eval import alpacaeval_run, checkpoints, mixeval_run
from revise.loopback import Reply, serve
from system import cli
from system.errors import InputError, RunError
from tests import tiny
from tests.eval.upstream import checkout
from tests.revise.commands import read_rows, run, start

TEXTS = ["Why is the heron a bird of the marsh?", "Say a letter. Be short.", "Question: Answer."]


def entries(n=24):
    """Both splits; every third query stands twice."""
    rows = [
        {
            "problem_type": "x",
            "context": None,
            "prompt": f"Why {i - i % 3 // 2}?",
            "benchmark_name": ["DROP", "AGIEval"][i % 2],
        }
        for i in range(n)
    ]
    return {
        "free-form": {str(i): row | {"target": ["a"]} for i, row in enumerate(rows)},
        "multiple-choice": {str(i): row | {"target": [i % 2], "options": ["o", "p"]} for i, row in enumerate(rows)},
    }


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """(checkout, a run with two epochs)."""
    folder = tmp_path_factory.mktemp("mixeval")
    checkout(folder / "MixEval")
    for version in mixeval_run.VERSIONS:
        data = folder / f"MixEval/mix_eval/data/mixeval-{version}/mixeval-hard"
        data.mkdir(parents=True)
        for split, queries in entries().items():
            (data / f"{split}.json").write_text(json.dumps(queries))
    for seed, epoch in enumerate(("epoch-01", "epoch-02")):
        tiny.write_model(folder / "run" / epoch, texts=TEXTS, max_position_embeddings=160, seed=seed)
    return folder


def right(seen):
    """What a judge has to say of a right answer; None where another one is judged."""
    if seen.body["messages"][0]["content"] == "Extract.":
        return Reply.chat("[[A]]") if seen.text.endswith("\nA: A\n") else None
    return Reply.chat("[[1.0]]") if "\nA: a\nVerdict" in seen.text else None


def judge(seen):
    """Says what a hash of the request says; of one in twelve nothing that can be read; of the right answer, that."""
    if said := right(seen):
        return said
    h = int(hashlib.sha256(json.dumps(seen.body["messages"]).encode()).hexdigest()[:8], 16)
    if h % 12 == 0:
        return Reply.chat("I cannot say.")
    return verdict(seen, h)


def verdict(seen, h):
    is_choice = seen.body["messages"][0]["content"] == "Extract."
    return Reply.chat(f"[[{'AB'[h % 2]}]]" if is_choice else f"[[{h % 11 / 10}]]")


def steady(seen):
    """A judge that always says something that can be read."""
    return right(seen) or verdict(seen, len(seen.text))


def command(made, out, base, *more):
    arguments = [sys.executable, "-m", "eval", "mixeval", made / "run", "--mixeval", made / "MixEval", "--any-data"]
    arguments += [
        "--store",
        out / "judge.sqlite",
        "--out",
        out / "eval",
        "--judge-endpoint",
        base,
        "--judge",
        "j",
        *more,
    ]
    return [str(a) for a in arguments]


def test_a_pass_is_scored_twice_alike_and_in_upstreams_layout(made, tmp_path):
    with serve(judge) as server:
        arguments = command(made, tmp_path, server.base, "--version", "2024-06-01")
        done = run(arguments)
        assert done.returncode == 0, done.stderr
        n, first = server.n_seen, (tmp_path / "eval/scores.jsonl").read_bytes()
        mixeval_run.main(arguments[4:])
        assert server.n_seen == n and (tmp_path / "eval/scores.jsonl").read_bytes() == first
    folder = tmp_path / "eval/epoch-01/mixeval_hard/2024-06-01"
    assert sorted(path.name for path in folder.iterdir()) == [
        "epoch-01_close_freeform_hard.jsonl", "epoch-01_close_multichoice_hard.jsonl",
        "judge_results_ff_model_judge_j.jsonl", "judge_results_mp_model_judge_j.jsonl", "score.json",
    ]  # fmt: skip
    judged = read_rows(folder / "judge_results_ff_model_judge_j.jsonl")
    assert len(judged) == 24 and judged[3]["formated_input" if "formated_input" in judged[3] else "prompt"]
    lines = read_rows(tmp_path / "eval/scores.jsonl")
    assert {line["checkpoint"] for line in lines} == {"epoch-01", "epoch-02"}
    overall = next(line for line in lines if line["metric"] == "table4_compat/overall")
    ff = round(sum(row["judge_score"] for row in judged) / 24, 3)
    choices = read_rows(folder / "judge_results_mp_model_judge_j.jsonl")
    mc = round(sum("AB".index(row["judge_option"]) == row["target"][0] for row in choices) / 24, 3)
    assert overall["value"] == pytest.approx((ff + mc) / 2, abs=1e-12) and 0 < overall["stderr"] < 0.2
    assert overall["n_fallbacks"] == sum("fallback" in row for row in judged + choices)
    assert f"epoch-01  2024-06-01  {100 * overall['value']:.2f}" in done.stdout


@pytest.mark.slow
def test_checkpoints_are_scored_by_their_names_and_the_base_is_one(made, tmp_path):
    run_ = tmp_path / "run"
    run_.mkdir()
    for name in ("epoch-01", "epoch-02"):
        (run_ / name).symlink_to(made / "run" / name)
    (run_ / "config.yaml").write_text(f"model: {made / 'run/epoch-01'}\n")
    with serve(steady) as server:
        for n, (asked, names) in enumerate((
            (["epoch-02", "--no-base"], {"epoch-02"}),
            (["epoch-02"], {"base", "epoch-02"}),
            (["base"], {"base"}),
            (["base", "--no-base"], {"base"}),
        )):  # fmt: skip
            out = tmp_path / f"out-{n}"
            out.mkdir()
            told = command(made, out, server.base, "--version", "2024-06-01", "--checkpoint", *asked)
            told[told.index(str(made / "run"))] = str(run_)
            mixeval_run.main(told[4:])
            assert {line["checkpoint"] for line in read_rows(out / "eval/scores.jsonl")} == names
        for more, words in (
            (["--checkpoint", "epoch-09"], "has no checkpoint 'epoch-09'; it has epoch-01, epoch-02"),
            (["--checkpoint", "epoch-01", "--watch"], "--watch scores every checkpoint as it appears"),
        ):
            with pytest.raises(InputError, match=re.escape(words)):
                mixeval_run.main(command(made, tmp_path, server.base, *more)[4:])


@pytest.mark.slow
def test_a_judge_that_fails_and_a_pass_that_is_killed_five_times_give_the_same_scores(made, tmp_path):
    for name in ("calm", "hard"):
        (tmp_path / name).mkdir()
    more = ["--version", "2024-06-01", "--rounds", "2"]
    with serve(judge) as server:
        assert run(command(made, tmp_path / "calm", server.base, *more)).returncode == 0
    rng = random.Random(0)

    def hard(seen):
        return (
            Reply.error(503, "busy", retry_after="0.01")
            if rng.random() < 0.2
            else judge(seen).after(0.1 * rng.random())
        )

    with serve(hard) as server:
        arguments = command(made, tmp_path / "hard", server.base, *more, "--concurrency", "4")
        for _ in range(5):
            running = start(arguments)
            try:
                running.communicate(timeout=2 + 4 * rng.random())
            except subprocess.TimeoutExpired:
                os.killpg(running.pid, signal.SIGKILL)
                running.communicate()
        assert run(arguments).returncode == 0
    calm, after = (read_rows(tmp_path / name / "eval/scores.jsonl") for name in ("calm", "hard"))
    assert calm == after and len(calm) > 10


def test_data_that_is_not_the_published_is_refused(made, tmp_path):
    arguments = [a for a in command(made, tmp_path, "http://127.0.0.1:9/v1")[4:] if a != "--any-data"]
    with pytest.raises(InputError, match=r"free-form\.json: not the published data"):
        mixeval_run.main(arguments)


@pytest.mark.parametrize(
    ("more", "said"),
    [(["--version", "2023-01-01"], "2023-01-01"), (["--rounds", "0"], "--rounds"),
     (["--mixeval", "/nowhere"], "MixEval checkout"), (["--endpoint", "http://localhost/v1"], "--model"),
     (["--watch"], "--watch and --prune"), (["--judge-extra", "{"], "--judge-extra: "),
     (["--judge-temperature", "3"], "between")],
)  # fmt: skip
def test_bad_input_is_one_sentence(made, tmp_path, more, said):
    with pytest.raises(InputError, match=said):
        mixeval_run.main(command(made, tmp_path, "http://127.0.0.1:9/v1", *more)[4:])


def overall(out):
    """The overall score of each checkpoint."""
    lines = read_rows(out / "eval/scores.jsonl")
    return {x["checkpoint"]: x["value"] for x in lines if x["metric"] == "table4_compat/overall"}


def test_a_judge_whose_answers_have_no_score_is_found_out_at_once(made, tmp_path):
    with serve(lambda seen: Reply.chat("Quite right!")) as server:
        with pytest.raises(RunError, match="none of 3 answers to a free-form query has a score"):
            mixeval_run.main(command(made, tmp_path, server.base)[4:])
        assert server.n_seen == 3


@pytest.mark.parametrize("split", ["free-form", "multiple-choice"])
def test_a_judge_that_takes_the_right_answer_for_wrong_is_found_out_at_once(made, tmp_path, split):
    def wrong(seen):
        is_choice = seen.body["messages"][0]["content"] == "Extract."
        if is_choice != (split == "multiple-choice"):
            return judge(seen)
        return Reply.chat("<think>\nIs it [[A]] or [[1.0]]?\n</think>\n\n" + ("[[B]]" if is_choice else "[[0.5]]"))

    with serve(wrong) as server:
        letter = "A" if split == "multiple-choice" else "a"
        n = 6 if split == "multiple-choice" else 3
        for more, n_seen in (([], n), ([], n), (["--ask-again"], n + 3)):  # what is stored is read until one asks anew
            with pytest.raises(RunError, match=f"takes '{letter}', the right answer to a {split} query, for wrong"):
                mixeval_run.main(command(made, tmp_path, server.base, *more)[4:])
            assert server.n_seen == n_seen


@pytest.mark.slow
def test_what_a_judge_thinks_is_no_score_and_is_kept(made, tmp_path, capsys):
    def thinking(seen):
        said = json.loads(steady(seen).body)["choices"][0]["message"]["content"]
        return Reply.chat(f"<think>\nThe format is [[0.0]] or [[B]].\n</think>\n\n{said}")

    outs = tmp_path / "plain", tmp_path / "thinking"
    for out, reply in zip(outs, (steady, thinking), strict=True):
        out.mkdir()
        with serve(reply) as server:
            mixeval_run.main(command(made, out, server.base, "--version", "2024-06-01", "--no-base")[4:])
    assert overall(outs[0]) == overall(outs[1])
    path = "eval/epoch-01/mixeval_hard/2024-06-01/judge_results_{}_model_judge_j.jsonl"
    for split in ("ff", "mp"):
        plain, thought = (read_rows(out / path.format(split)) for out in outs)
        assert all(row.pop("reasoning") == "The format is [[0.0]] or [[B]]." for row in thought) and plain == thought
    assert "48 judgments behind thoughts" in capsys.readouterr().out


@pytest.mark.slow
def test_a_judgment_that_was_cut_is_no_score(made, tmp_path):
    def cut(seen):
        return right(seen) or Reply.chat("I take [[A]] and [[1.0]], unless", finish="length")

    with serve(cut) as server:
        mixeval_run.main(
            command(made, tmp_path, server.base, "--version", "2024-06-01", "--rounds", "2", "--go-on")[4:]
        )
    rows = read_rows(tmp_path / "eval/epoch-01/mixeval_hard/2024-06-01/judge_results_mp_model_judge_j.jsonl")
    assert all(row["fallback"] == "random" and row["judge_response"] is None for row in rows)


@pytest.mark.slow
def test_a_pass_that_was_not_judged_whole_says_so_and_has_no_delta(made, tmp_path, capsys):
    run_folder = tmp_path / "run"
    shutil.copytree(made / "run/epoch-01", run_folder / "epoch-01")
    (run_folder / "config.yaml").write_text(f"model: {made / 'run/epoch-02'}\nepochs: 1\n")
    n_base = []

    def tired(seen):
        """Judges the base, which comes first, whole, and of the epoch every second query."""
        if len(n_base) < 60:
            n_base.append(1)
        is_late = len(n_base) >= 60 and seen.body["messages"][0]["content"] == "Extract."
        is_flagged = is_late and not right(seen)
        return Reply.error(400, "flagged", code="content_filter") if is_flagged else steady(seen)

    def told(reply):
        with serve(reply) as server:
            arguments = command(made, tmp_path, server.base, "--version", "2024-06-01", "--concurrency", "1")[4:]
            arguments += ["--rounds", "1"]
            mixeval_run.main([str(run_folder), *arguments[1:]])
        return capsys.readouterr().out

    said = told(tired)
    lines = {
        x["checkpoint"]: x
        for x in read_rows(tmp_path / "eval/scores.jsonl")
        if x["metric"].endswith("4_compat/overall")
    }
    n = lines["epoch-01"]["n_unjudged"]
    assert lines["base"]["n_unjudged"] == 0 and 0 < n < 48 and lines["epoch-01"]["n_asked"] == 48
    assert f"({n} of 48 not judged)" in said and f"no delta: {n} of 48 queries of epoch-01 and 0 of 48" in said
    assert not [x for x in read_rows(tmp_path / "eval/scores.jsonl") if x["metric"] == "delta/overall"]
    (tmp_path / "judge.sqlite").unlink()
    said = told(steady)  # the same with a judge that judges all
    assert "against the base" in said and "not judged" not in said


@pytest.mark.slow
def test_a_judge_that_changes_in_the_midst_ends_the_pass(made, tmp_path):
    def turning(seen):
        reply = judge(seen)
        return reply if seen.number < 20 else Reply.json(json.loads(reply.body) | {"model": "another"})

    more = ["--version", "2024-06-01"]
    with serve(turning) as server:
        with pytest.raises(RunError, match="names 'another' as its model, and named 'loopback' before"):
            mixeval_run.main(command(made, tmp_path, server.base, *more)[4:])
        mixeval_run.main(command(made, tmp_path, server.base, *more, "--other-judge")[4:])
    assert read_rows(tmp_path / "eval/scores.jsonl")[0]["judge_model"] == "loopback and another"


def test_a_greedy_judge_is_asked_again_at_temperature_1(made, tmp_path):
    temperatures = []

    def silent_at_first(seen):
        temperatures.append(seen.body["temperature"])
        is_probe = len(temperatures) <= 6
        return judge(seen) if is_probe or seen.body["temperature"] else Reply.chat("I cannot say.")

    with serve(silent_at_first) as server:
        more = ["--version", "2024-06-01", "--judge-temperature", "0", "--rounds", "2"]
        mixeval_run.main(command(made, tmp_path, server.base, *more)[4:])
    assert set(temperatures[:6]) == {1.0} or set(temperatures[6:]) == {0.0, 1.0}
    assert max(temperatures) == 1.0 and min(temperatures) == 0.0


def test_deltas_are_told_against_the_base_and_refused_across_judges(made, tmp_path, capsys):
    run_folder = tmp_path / "run"
    shutil.copytree(made / "run/epoch-01", run_folder / "epoch-01")
    (run_folder / "config.yaml").write_text(f"model: {made / 'run/epoch-02'}\nepochs: 2\n")
    with serve(steady) as server:
        arguments = command(made, tmp_path, server.base, "--version", "2024-06-01")[4:]
        arguments[0] = str(run_folder)
        mixeval_run.main(arguments)
        found = overall(tmp_path)
        told = capsys.readouterr().out
        assert f"{100 * (found['epoch-01'] - found['base']):+.2f} +- " in told and "against the base" in told
        base = next(x for x in read_rows(tmp_path / "eval/scores.jsonl") if x["metric"] == "delta/overall")
        assert base["value"] == pytest.approx(found["epoch-01"] - found["base"], abs=1e-12) and 0 < base["stderr"] < 0.3
        other = [a if a != "j" else "k" for a in arguments]
        with pytest.raises(InputError, match="no scores of 'base' by the judge 'k'"):
            mixeval_run.main([*other, "--base-scores", str(tmp_path / "eval/scores.jsonl")])
        mixeval_run.main([*other, "--no-base"])
        assert "no delta: judge is 'k' in one and 'j' in the other" in capsys.readouterr().out


@pytest.mark.slow
def test_epochs_are_scored_as_they_appear_and_pruned(made, tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoints, "WATCH_SECONDS", 0.05)
    run_folder = tmp_path / "run"
    run_folder.mkdir()
    (run_folder / "config.yaml").write_text("model: nowhere\nepochs: 3\nmax_steps: null\n")

    def finish(i):
        shutil.copytree(made / f"run/epoch-0{1 + i % 2}", run_folder / "copied")
        os.rename(run_folder / "copied", run_folder / f"epoch-0{i}")
        with open(run_folder / "metrics.jsonl", "a") as file:
            file.write(json.dumps({"step": i, "epoch": float(i)}) + "\n")

    finish(1)
    timers = [threading.Timer(seconds, finish, (i,)) for seconds, i in ((1, 2), (4, 3))]
    for timer in timers:
        timer.start()
    with serve(steady) as server:
        arguments = command(made, tmp_path, server.base, "--watch", "--prune", "--version", "2024-06-01")[4:]
        arguments[0] = str(run_folder)
        at = arguments.index("--out")
        mixeval_run.main([*arguments[:at], *arguments[at + 2 :]])
    found = overall(run_folder)
    best = max(found, key=lambda name: found[name])
    assert sorted(found) == ["epoch-01", "epoch-02", "epoch-03"]
    assert {p.name for p in run_folder.glob("epoch-*")} == {best, "epoch-03"}


def test_a_served_model_answers_in_the_place_of_a_checkpoint(made, tmp_path):
    asked = []
    with serve(lambda seen: asked.append(seen.body) or Reply.chat("It is A.")) as model, serve(judge) as server:
        arguments = command(made, tmp_path, server.base, "--version", "2024-08-11", "--preset", "paper")
        arguments[4] = "served"
        mixeval_run.main([*arguments[4:], "--endpoint", model.base, "--model", "llama"])
    assert asked[0]["temperature"] == 0.6 and asked[0]["top_p"] == 0.9 and asked[0]["max_tokens"] == 512
    assert len(asked) == len({json.dumps(body) for body in asked}) == 48  # each copy of a query is drawn anew
    assert read_rows(tmp_path / "eval/scores.jsonl")[0]["checkpoint"] == "served"


def test_copies_of_a_query_widen_the_error():
    same = {"free-form": {str(i): {"prompt": "p", "target": ["a"]} for i in range(40)}}
    each = {"free-form": {str(i): {"prompt": f"p{i}", "target": ["a"]} for i in range(40)}}
    half = {"free-form": {str(i): {"prompt": f"p{i // 2}", "target": ["a"]} for i in range(40)}}
    values = {"free-form": {str(i): float(i // 2 % 2) for i in range(40)}}
    naive = np.std([i // 2 % 2 for i in range(40)]) / np.sqrt(40)
    assert mixeval_run.standard_error(same, values) == 0  # one cluster: drawn every time
    assert mixeval_run.standard_error(each, values) == pytest.approx(naive, rel=0.1)
    assert mixeval_run.standard_error(half, values) == pytest.approx(naive * np.sqrt(2), rel=0.1)


def test_answers_of_another_model_are_not_taken_for_this_ones(made, tmp_path):
    with serve(judge) as server:
        more = ["--version", "2024-06-01", "--no-base"]
        arguments = command(made, tmp_path, server.base, *more)[4:]
        other = tmp_path / "other/epoch-01"
        tiny.write_model(other, texts=TEXTS, max_position_embeddings=160, seed=7)
        arguments[0] = str(made / "run/epoch-01")
        mixeval_run.main(arguments)
        arguments[0] = str(other)
        with pytest.raises(InputError, match=r"close_freeform_hard\.jsonl: contains answers of another model"):
            mixeval_run.main(arguments)


def test_a_refused_query_counts_nothing_and_a_failed_one_ends_the_pass(made, tmp_path):
    def reply(seen):
        is_refused = "Why 3?" in seen.text and seen.body["messages"][0]["content"] != "Extract."
        return Reply.error(400, "content") if is_refused else judge(seen)

    with serve(reply) as server:
        mixeval_run.main(command(made, tmp_path, server.base, "--version", "2024-06-01", "--rounds", "2")[4:])
    rows = read_rows(tmp_path / "eval/epoch-01/mixeval_hard/2024-06-01/judge_results_ff_model_judge_j.jsonl")
    refused = [row for row in rows if row["prompt"] == "Why 3?"]
    assert refused and all(row["judge_score"] == 0.0 and row["fallback"] == "zero" for row in refused)
    assert read_rows(tmp_path / "eval/scores.jsonl")[0]["n_blocked"] == len(refused)

    def failing(seen):
        return Reply.error(500, "broken") if "Why 4?" in seen.text else judge(seen)

    with serve(failing) as server:
        more = [
            "--version",
            "2024-06-01",
            "--rounds",
            "2",
            "--max-attempts",
            "1",
            "--store",
            str(tmp_path / "other.sqlite"),
        ]
        arguments = command(made, tmp_path, server.base)[4:]
        at = arguments.index("--store")
        with pytest.raises(RunError, match=r"judgments are missing .*the same command asks again"):
            mixeval_run.main([*arguments[:at], *arguments[at + 2 :], *more])


def test_prune_keeps_the_best_of_a_version_that_this_pass_does_not_score(made, tmp_path):
    run_folder = tmp_path / "run"
    names = ["epoch-01", "epoch-02", "epoch-03"]
    for name in names:
        shutil.copytree(made / "run/epoch-02", run_folder / name)
    lines = [
        {"checkpoint": name, "benchmark": "mixeval-hard", "version": version, "metric": "table4_compat/overall",
         "value": float(name == best), "judge": "j", "preset": "stable"}
        for version, best in (("2024-06-01", "epoch-02"), ("2024-08-11", "epoch-01"))
        for name in ("epoch-01", "epoch-02", "epoch-03")
    ]  # fmt: skip
    (run_folder / "eval").mkdir()
    tiny.write_rows(run_folder / "eval/scores.jsonl", lines)
    arguments = command(made, tmp_path, "http://127.0.0.1:9/v1", "--version", "2024-06-01", "--prune")[4:]
    at = arguments.index("--out")
    arguments = [str(run_folder), *arguments[1:at], *arguments[at + 2 :]]
    config = cli.parse(mixeval_run.MixEvalConfig, arguments, command="c", example="e")
    mixeval_run._prune(run_folder, config, names)
    assert sorted(p.name for p in run_folder.glob("epoch-*")) == names
    mixeval_run._prune(run_folder, config, {"base"})  # what this pass has still to visit is not touched
    rest = [x for x in lines if x["version"] == "2024-06-01"]
    tiny.write_rows(run_folder / "eval/scores.jsonl", rest)
    mixeval_run._prune(run_folder, config, {"base", "epoch-02"})
    assert sorted(p.name for p in run_folder.glob("epoch-*")) == names
    mixeval_run._prune(run_folder, config, names)
    assert sorted(p.name for p in run_folder.glob("epoch-*")) == ["epoch-02", "epoch-03"]


def test_prune_keeps_the_two_that_alpacaeval_takes_where_one_is_best_on_both(made, tmp_path):
    run_folder = tmp_path / "run"
    values = {"epoch-01": 0.3, "epoch-02": 0.9, "epoch-03": 0.5, "epoch-04": 0.1}
    for name in values:
        shutil.copytree(made / "run/epoch-02", run_folder / name)
    lines = [
        {"checkpoint": name, "benchmark": "mixeval-hard", "version": version, "metric": "table4_compat/overall",
         "value": value, "judge": "j", "preset": "stable"}
        for version in mixeval_run.VERSIONS for name, value in values.items()
    ]  # fmt: skip
    (run_folder / "eval").mkdir()
    tiny.write_rows(run_folder / "eval/scores.jsonl", lines)
    arguments = command(made, tmp_path, "http://127.0.0.1:9/v1", "--prune")[4:]
    at = arguments.index("--out")
    config = cli.parse(
        mixeval_run.MixEvalConfig, [str(run_folder), *arguments[1:at], *arguments[at + 2 :]], command="c", example="e"
    )
    mixeval_run._prune(run_folder, config, set(values))
    assert sorted(p.name for p in run_folder.glob("epoch-*")) == ["epoch-02", "epoch-03", "epoch-04"]
    assert alpacaeval_run.best(run_folder / "eval/scores.jsonl") == ["epoch-02", "epoch-03"]


def served(made, out, base, judge_base, *more):
    """A served model's pass."""
    arguments = command(made, out, judge_base, "--version", "2024-06-01", "--endpoint", base, "--model", "m", *more)[4:]
    return ["one", *arguments[1:]]


def model(seen):
    """Its answers hold a separator of lines that is none in JSON."""
    return Reply.chat(f"It is A.\u2028Because {len(seen.text)}.")


def test_each_key_goes_to_its_own_server(made, tmp_path, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-judge")
    (tmp_path / "key").write_text("sk-model")
    (tmp_path / "key").chmod(0o600)
    for more, expected in (((), None), (("--key-file", str(tmp_path / "key")), "Bearer sk-model")):
        keys = {"model": set(), "judge": set()}

        def heard(name, reply, keys=keys):
            return lambda seen: keys[name].add(seen.headers.get("authorization")) or reply(seen)

        out = tmp_path / f"keys-{len(more)}"
        out.mkdir()
        with serve(heard("model", model)) as one, serve(heard("judge", judge)) as other:
            mixeval_run.main(served(made, out, one.base, other.base, *more))
        assert keys == {"model": {expected}, "judge": {"Bearer sk-judge"}}


def test_what_a_served_model_is_refused_counts_as_empty_and_is_said(made, tmp_path, capfd):
    def refusing(seen):
        return Reply.error(400, "maximum context length") if "Why 4?" in seen.text else model(seen)

    with serve(refusing) as one, serve(judge) as other:
        arguments = served(made, tmp_path, one.base, other.base)
        mixeval_run.main(arguments)
        said, n = capfd.readouterr(), one.n_seen
        mixeval_run.main(arguments)  # reads what the first has written, line by line
        assert one.n_seen == n
    assert "prompts (refused by the server: 400: maximum context length); they count as empty" in said.err
    (line, *_) = read_rows(tmp_path / "eval/scores.jsonl")
    rows = read_rows(tmp_path / "eval/one/mixeval_hard/2024-06-01/one_close_freeform_hard.jsonl")
    lacking = [row for row in rows if "unanswered" in row]
    assert lacking and all(row["prompt"] == "Why 4?" and row["response"] == "" for row in lacking)
    assert line["n_unanswered"] == 2 * len(lacking) and f"{line['n_unanswered']} without an answer" in said.out
    with serve(model) as one, serve(judge) as other:  # a longer context, say
        mixeval_run.main([*served(made, tmp_path, one.base, other.base), "--ask-again"])
        assert 0 < one.n_seen <= line["n_unanswered"]
    assert not any(line["n_unanswered"] for line in read_rows(tmp_path / "eval/scores.jsonl"))


def test_a_key_of_nobody_is_refused(made, tmp_path):
    """Without a served model the judge's key has flags of its own: a key that is named has to go where it is meant."""
    for flags in (["--key-file", "judge.key"], ["--key-env", "JUDGE_KEY"]):
        with pytest.raises(InputError, match="for --endpoint; the judge's are --judge-key-env and --judge-key-file"):
            mixeval_run.main(command(made, tmp_path / "run", "http://127.0.0.1:1/v1", *flags)[4:])
