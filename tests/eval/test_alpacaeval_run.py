"""A pass over AlpacaEval 2: a tiny model, made-up instructions, an annotator behind a real server."""

import csv
import hashlib
import json
import math
import re
import shutil
import sys

import pytest

from eval import alpacaeval, alpacaeval_run
from revise.loopback import Reply, serve
from system.errors import InputError, RunError
from tests import tiny
from tests.eval.upstream import TEMPLATE
from tests.revise.commands import read_rows, run

N = 12
TEXTS = ["Say something of the heron and of the marsh.", "A short answer."]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A checkout, df_gamed.csv, and a run with a base and two epochs."""
    folder = tmp_path_factory.mktemp("alpaca")
    rows = [
        {"dataset": "d", "instruction": f"Say {i}.", "output": "word " * (i + 1), "generator": "gpt"} for i in range(N)
    ]
    for path, text in (
        (alpacaeval_run.OUTPUTS, json.dumps(rows)),
        ("src/alpaca_eval/" + alpacaeval_run.TEMPLATE, TEMPLATE),
    ):
        (folder / "checkout" / path).parent.mkdir(parents=True)
        (folder / "checkout" / path).write_text(text)
    with open(folder / "df_gamed.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(
            ["model", "index", "preference", "std_delta_len", "instruction_difficulty", "not_gamed_baseline"]
        )
        for model, sign in (("verbose", -1), ("concise", 1)):
            for i in range(N):
                writer.writerow([model, i, 0.5 - 0.3 * sign, sign * (0.5 + i / N), 0.1 * (i % 5) - 0.2, False])
    for name in ("base", "run/epoch-01", "run/epoch-02"):
        tiny.write_model(folder / name, texts=TEXTS, max_position_embeddings=128, seed=len(name))
    (folder / "run/config.yaml").write_text(f"model: {folder / 'base'}\nepochs: 2\n")
    return folder


def annotate(seen):
    """The log-probs of m and M, by a hash of what is shown; of one in six neither is among them."""
    if "I do not know." in seen.body["messages"][-1]["content"]:  # behind the reference's output
        return first_token([("m", 0.7), ("M", 0.1), ("x", 0.1)])
    h = int(hashlib.sha256(json.dumps(seen.body["messages"], sort_keys=True).encode()).hexdigest()[:8], 16)
    tokens = ["x", "y"] if h % 6 == 0 else ["m", "M", "x"]
    return first_token([(t, 0.1 + (h >> i) % 8 / 10) for i, t in enumerate(tokens)])


def first_token(found):
    """An annotator's answer: its first tokens with their probabilities."""
    top = [{"token": token, "logprob": math.log(p)} for token, p in found]
    content = {"token": "m", "logprob": -0.5, "top_logprobs": top}
    choice = {"index": 0, "message": {"role": "assistant", "content": "m"}, "finish_reason": "length"}
    choice["logprobs"] = {"content": [content]}
    return Reply.json(
        {"model": "annotator-1", "choices": [choice], "usage": {"prompt_tokens": 9, "completion_tokens": 1}}
    )


def command(made, out, base, *more, gamed=True):
    arguments = [
        sys.executable,
        "-m",
        "eval",
        "alpacaeval",
        made / "run",
        "--alpaca-eval",
        made / "checkout",
        "--any-data",
    ]
    arguments += ["--store", out / "judge.sqlite", "--out", out / "eval", "--judge-endpoint", base, "--judge", "j"]
    return [*map(str, arguments), *(["--gamed", str(made / "df_gamed.csv")] if gamed else []), *map(str, more)]


def test_a_pass_has_upstreams_files_and_the_numbers_of_the_formulas(made, tmp_path):
    asked = []
    with serve(lambda seen: asked.append(seen.body) or annotate(seen)) as server:
        done = run(command(made, tmp_path, server.base, "--checkpoint", "epoch-01", "epoch-02"))
        assert done.returncode == 0, done.stderr
        n = server.n_seen
        here(made, tmp_path, server.base, "--checkpoint", "epoch-01", "epoch-02")
        assert server.n_seen == n
    assert {k: asked[0][k] for k in ("max_tokens", "temperature", "top_p", "logprobs", "top_logprobs")} == {
        "max_tokens": 1, "temperature": 1, "top_p": 1.0, "logprobs": True, "top_logprobs": 5,
    }  # fmt: skip
    tables, judged = {}, {}
    for name in ("base", "epoch-01", "epoch-02"):
        folder = tmp_path / "eval" / name / "alpaca_eval_2"
        outputs = json.loads((folder / "model_outputs.json").read_text())
        notes = json.loads((folder / "annotations.json").read_text())
        assert [o["instruction"] for o in outputs] == [f"Say {i}." for i in range(N)]
        assert all(o["output"] == o["output"].strip() and o["generator"] == name for o in outputs)
        for note, output in zip(notes, outputs, strict=True):
            first, second = note["output_1"], output["output"]
            switched = alpacaeval.is_switched(note["instruction"])
            shown = alpacaeval.messages(
                note["instruction"], *((second, first) if switched else (first, second)), TEMPLATE
            )
            answer = json.loads(annotate(type("Seen", (), {"body": {"messages": shown}})).body)
            top = answer["choices"][0]["logprobs"]["content"][0]["top_logprobs"]
            assert note["preference"] == alpacaeval.preference(top, switched)
        given = judged[name] = [note["preference"] for note in notes]
        lengths, references = ([len(note[k]) for note in notes] for k in ("output_2", "output_1"))
        with open(made / "df_gamed.csv", newline="") as file:
            gamed = [{k: v if k == "model" else float(v) if v != "False" else 0.0 for k, v in row.items()}
                     for row in csv.DictReader(file)]  # fmt: skip
        tables[name] = alpacaeval.win_rate(given) | alpacaeval.length_controlled(given, lengths, references, gamed)
        lines = {x["metric"]: x for x in read_rows(tmp_path / "eval/scores.jsonl") if x["checkpoint"] == name}
        for metric in ("win_rate", "length_controlled_winrate", "discrete_win_rate"):
            assert lines[metric]["value"] == pytest.approx(tables[name][metric], abs=1e-9)
        assert lines["win_rate"]["stderr"] == pytest.approx(tables[name]["standard_error"], abs=1e-9)
        assert (
            lines["avg_length"]["value"] == int(sum(lengths) / N) and lines["win_rate"]["judge_model"] == "annotator-1"
        )
        assert lines["n_missing"]["value"] == sum(p is None for p in given)
    missing = {name: sum(p is None for p in given) for name, given in judged.items()}
    assert max(missing.values()) > 0 and "rows have no preference" in done.stdout
    assert f"({missing['epoch-01']} of {N} not judged)" in done.stdout
    assert f"no deltas: {missing['epoch-01']} of {N} queries of epoch-01 and {missing['base']} of {N}" in done.stdout


@pytest.mark.slow
def test_what_was_judged_whole_has_a_delta(made, tmp_path, capsys):
    def whole(seen):
        h = len(seen.body["messages"][-1]["content"])
        if "I do not know." in seen.body["messages"][-1]["content"]:
            return annotate(seen)
        return first_token([("m", 0.1 + h % 7 / 10), ("M", 0.1), ("x", 0.1)])

    with serve(whole) as server:
        here(made, tmp_path, server.base, "--checkpoint", "epoch-01", "epoch-02")
    lines = read_rows(tmp_path / "eval/scores.jsonl")
    found = {x["checkpoint"]: x["value"] for x in lines if x["metric"] == "length_controlled_winrate"}
    gain = (found["epoch-01"] + found["epoch-02"]) / 2 - found["base"]
    said = capsys.readouterr().out
    assert f"length_controlled_winrate {gain:+.2f}" in said and "not judged" not in said


@pytest.mark.slow
def test_of_a_run_the_best_checkpoint_of_each_mixeval_version_is_scored(made, tmp_path):
    best = {"2024-06-01": "epoch-02", "2024-08-11": "epoch-01"}
    lines = [
        {"checkpoint": name, "benchmark": "mixeval-hard", "version": version, "metric": "table4_compat/overall",
         "value": 0.5 if name == top else 0.4}
        for version, top in best.items() for name in ("base", "epoch-01", "epoch-02")
    ]  # fmt: skip
    (tmp_path / "eval").mkdir()
    tiny.write_rows(tmp_path / "eval/scores.jsonl", lines)
    with serve(annotate) as server:
        done = run(command(made, tmp_path, server.base, "--no-base", gamed=False))
    assert done.returncode == 0 and "not length-controlled" in done.stderr
    assert [line.split()[0] for line in done.stdout.splitlines() if "win rate" in line] == ["epoch-02", "epoch-01"]


@pytest.mark.parametrize(
    ("scored", "best"),
    [
        ({"2024-06-01": [0.5, 0.4, 0.3], "2024-08-11": [0.2, 0.3, 0.4]}, ["epoch-01", "epoch-03"]),
        ({"2024-06-01": [0.3, 0.5, 0.4], "2024-08-11": [0.3, 0.5, 0.1]}, ["epoch-02", "epoch-01"]),  # 0.6 and 0.5
        ({"2024-06-01": [0.3, 0.5, 0.4]}, ["epoch-02"]),
        ({"2024-06-01": [0.3], "2024-08-11": [0.3]}, ["epoch-01"]),
    ],
    ids=["one each", "one of both", "one version", "one checkpoint"],
)
def test_two_checkpoints_are_the_best_also_where_one_is_it_twice(tmp_path, scored, best):
    tiny.write_rows(tmp_path / "scores.jsonl", [
        {"checkpoint": f"epoch-0{i}", "benchmark": "mixeval-hard", "version": version, "value": value,
         "metric": "table4_compat/overall"}
        for version, values in scored.items() for i, value in enumerate(values, 1)
    ])  # fmt: skip
    assert list(dict.fromkeys(alpacaeval_run.best(tmp_path / "scores.jsonl"))) == best


def test_equal_outputs_are_a_draw_without_a_question(made):
    data = alpacaeval_run.Data(
        [{"instruction": a, "output": b} for a, b in (("a", "same"), ("b", "x"), ("b", "x"))], TEMPLATE, None, {},
    )  # fmt: skip

    class Counting:
        def __init__(self):
            self.asked = []

        def request(self, body, sample, *, as_is):
            return json.dumps(body)

        def ask(self, requests):
            self.asked += requests
            row = type(
                "Row",
                (),
                {
                    "state": "answered",
                    "answer": annotate(type("S", (), {"body": {"messages": [{"content": "a"}]}})).body,
                },
            )
            return [alpacaeval_run.Answered(None, "", row) for _ in requests]

    judge = Counting()
    found = alpacaeval_run.annotate(data, ["same", "y", "y"], judge)
    assert found[0].preference == 1.5 != found[1].preference and found[1] == found[2] and len(set(judge.asked)) == 1


def here(*given, **more):
    """The command in this process."""
    alpacaeval_run.main(command(*given, **more)[4:])


def test_a_judge_without_logprobs_is_found_out_at_once(made, tmp_path):
    with serve(lambda seen: Reply.chat("m")) as server:
        with pytest.raises(RunError, match="no log-probs of the tokens m and M"):
            here(made, tmp_path, server.base, "--checkpoint", "epoch-01")
        assert server.n_seen == 1


@pytest.mark.parametrize(
    ("found", "said"),
    [
        ([(" m", 0.7), (" M", 0.2)], "no log-probs of the tokens m and M"),
        ([("<think>", 0.99), ("M", 0.0001), ("m", 0.0001)], "m and M have 0.0% of the probability"),
        ([("m", 0.3), ("M", 0.2), ("The", 0.4)], "m and M have 50.0% of the probability"),
        ([("M", 0.9), ("m", 0.05)], "prefers 'I do not know.' to the reference's output"),
    ],
)
def test_a_judge_whose_first_token_is_no_judgment_is_found_out_at_once(made, tmp_path, found, said):
    with serve(lambda seen: first_token(found)) as server:
        for more, n_seen in (([], 1), ([], 1), (["--ask-again"], 2)):  # what is stored is read until one asks anew
            with pytest.raises(RunError, match=re.escape(said)):
                here(made, tmp_path, server.base, "--checkpoint", "epoch-01", *more)
            assert server.n_seen == n_seen


@pytest.mark.slow
def test_log_probs_in_the_older_form_are_the_same(made, tmp_path):
    def older(seen):
        answer = json.loads(annotate(seen).body)
        (token,) = answer["choices"][0]["logprobs"]["content"]
        top = {t["token"]: t["logprob"] for t in token["top_logprobs"]}
        answer["choices"][0]["logprobs"] = {"tokens": ["m"], "token_logprobs": [-0.5], "top_logprobs": [top]}
        return Reply.json(answer)

    notes = []
    for name, reply in (("new", annotate), ("old", older)):
        (tmp_path / name).mkdir()
        with serve(reply) as server:
            here(made, tmp_path / name, server.base, "--checkpoint", "epoch-01", "--no-base")
        notes.append((tmp_path / name / "eval/epoch-01/alpaca_eval_2/annotations.json").read_text())
    assert notes[0] == notes[1] and '"mass": 0.' in notes[0]


def test_rows_in_which_the_judge_would_rather_say_something_else_are_counted(made, tmp_path, capsys):
    def unsure(seen):
        is_unsure = "Say 3." in seen.body["messages"][-1]["content"]
        return first_token([("M", 0.02), ("m", 0.01)]) if is_unsure else first_token([("m", 0.7), ("M", 0.2)])

    with serve(unsure) as server:
        here(made, tmp_path, server.base, "--checkpoint", "epoch-01", "--no-base")
    notes = json.loads((tmp_path / "eval/epoch-01/alpaca_eval_2/annotations.json").read_text())
    assert [round(note["mass"], 6) for note in notes if note["instruction"] == "Say 3."] == [0.03]
    assert "in 1 rows the judge would rather say something else than m or M" in capsys.readouterr().out
    (line,) = (x for x in read_rows(tmp_path / "eval/scores.jsonl") if x["metric"] == "n_low_mass")
    assert line["value"] == 1


@pytest.mark.parametrize(
    ("more", "said"),
    [(["--checkpoint", "epoch-09"], "no checkpoint 'epoch-09'"), ([], "no MixEval-Hard scores to choose the best by"),
     (["--alpaca-eval", "/nowhere"], "give a checkout of alpaca_eval"), (["--gamed", "/nowhere"], "cannot be read"),
     (["--judge-extra", "[]"], "--judge-extra"),
     (["--judge-api", "responses"], "--judge-api responses: this API gives no log-probs")],
)  # fmt: skip
def test_bad_input_is_one_sentence(made, tmp_path, more, said):
    arguments = command(made, tmp_path, "http://127.0.0.1:9/v1", gamed="--gamed" not in more)
    if "--alpaca-eval" in more:
        del arguments[5:7]
    with pytest.raises(InputError, match=re.escape(said)):
        alpacaeval_run.main([*arguments[4:], *more])


def test_files_that_are_not_the_published_are_refused(made, tmp_path):
    with pytest.raises(InputError, match=r"model_outputs\.json: not the published file"):
        alpacaeval_run.main([a for a in command(made, tmp_path, "http://127.0.0.1:9/v1")[4:] if a != "--any-data"])


def test_a_template_that_lacks_a_slot_is_named_before_an_output_is_drawn(made, tmp_path):
    shutil.copytree(made / "checkout", tmp_path / "checkout")
    path = tmp_path / "checkout/src/alpaca_eval" / alpacaeval_run.TEMPLATE
    path.write_text(TEMPLATE.replace("{output_2}", ""))
    arguments = command(made, tmp_path, "http://127.0.0.1:9/v1")[4:]
    arguments[2] = str(tmp_path / "checkout")
    with pytest.raises(InputError, match=rf"^{re.escape(str(path))}: the annotator's template has no {{output_2}};"):
        alpacaeval_run.main(arguments)


def test_lengths_on_one_side_alone_are_warned_of():
    table = {
        "win_rate": 50.0,
        "length_controlled_winrate": 20.0,
        "share_longer": 0.99,
        "share_shorter": 0.01,
        "n_missing": 0,
    }
    said = alpacaeval.warnings(table)
    assert "1.0% of the outputs are shorter" in said[0] and "do not trust it" in said[1] and len(said) == 2


def test_a_dry_run_tells_calls_tokens_and_price_and_sends_nothing(made, tmp_path, capsys):
    more = ["--checkpoint", "epoch-01", "--dry-run", "--price-in", "10", "--price-out", "30"]
    here(made, tmp_path, "http://127.0.0.1:9/v1", *more)
    out = capsys.readouterr().out
    assert "annotations: 24 requests" in out and "at most $" in out


@pytest.mark.parametrize(
    ("more", "drawn"),
    [([], (0.0, 1.0, 2048)), (["--preset", "upstream"], (0.7, 1.0, 2048)), (["--preset", "paper"], (0.7, 1.0, 4096))],
    ids=["stable, the default", "upstream", "paper"],
)
def test_a_preset_says_how_outputs_are_drawn_and_scores_name_it(made, tmp_path, more, drawn):
    """paper: the tokens of models_configs/Meta-Llama-3-8B-Instruct, and the temperature of upstream's decoder."""
    asked = []

    def reply(seen):
        if "logprobs" in seen.body:
            return annotate(seen)
        asked.append(seen.body)
        return Reply.chat(f"Something of {seen.text}")

    with serve(reply) as server:
        served = ["--endpoint", server.base, "--model", "llama"]
        here(made, tmp_path, server.base, *served, *more)
    assert {(body["temperature"], body["top_p"], body["max_tokens"]) for body in asked} == {drawn}
    lines = read_rows(tmp_path / "eval/scores.jsonl")
    assert {line["preset"] for line in lines} == {more[-1] if more else "stable"}
