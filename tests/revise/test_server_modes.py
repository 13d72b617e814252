"""Each way to answer of ../shared/cases/servers, by the real command: what was said, what became of rows, what it cost.

    python server.py MODE LOG       a process of its own, on a port that stays when it is started again
    python -m revise | eval ...     the command that the mode is made for, with the rows that lie beside it
    the same command again          where it stopped and the cause is mended: all rows, and nothing is paid for twice

`pytest -m slow tests/revise/test_server_modes.py -rP` prints a line of figures for each (docs/servers.md).
"""

import collections
import contextlib
import json
import math
import re
import sqlite3
import subprocess
import sys
from dataclasses import dataclass, field, replace

import pytest

from eval import alpacaeval_run, mixeval_run
from tests.eval.upstream import TEMPLATE, checkout
from tests.revise.commands import ROOT, read_rows, run, write_rows

SERVERS = ROOT.parent / "shared/cases/servers"
pytestmark = [pytest.mark.slow, pytest.mark.skipif(not SERVERS.is_dir(), reason=f"{SERVERS} is not here")]

ON_PORT = """
import http.server, runpy, sys
port, sys.argv = int(sys.argv[1]), sys.argv[2:]
class OnPort(http.server.ThreadingHTTPServer):
    def __init__(self, address, *more):
        super().__init__((address[0], port), *more)
http.server.ThreadingHTTPServer = OnPort
runpy.run_path(sys.argv[0], run_name="__main__")
"""  # the server takes any free port: so it takes the one that it had before

NOT_YET = "not asked yet"
ANOTHER = {"max_tokens": None, "max_completion_tokens": 4096}


@dataclass(frozen=True)
class Case:
    """A mode and a command, and what is to come of them."""

    mode: str
    flags: tuple[str, ...] = ()
    kind: str = "clair"
    """Of command: one of KINDS."""
    rows: str = "prompts.jsonl"
    path: str = "/v1"
    env: dict[str, str] = field(default_factory=dict)
    code: int = 0
    made: int = 30
    """Pairs, scored rows, or judged answers."""
    rejected: dict[str, int] = field(default_factory=dict)
    """Reasons, up to the colon."""
    sent: int | range = 30
    """Requests that the server has seen."""
    said: tuple[str, ...] = ()
    """On standard error."""

    def __str__(self) -> str:
        return " ".join([self.mode, *({"": ["without /v1"], "/v1": []}.get(self.path, [self.path])), *self.flags])


def stops(mode, *said, sent, made=0, rejected=None, **more):
    """A run that ends in 1."""
    return Case(mode, code=1, made=made, rejected=rejected or {}, sent=sent, said=said, **more)


def useless(mode, reason, *said, of=30, **more):
    """... since the first sixteen answers make no row."""
    rejected = {reason: 16, NOT_YET: of - 16}
    first = f"the first 16 answers are unusable ({reason}"
    return stops(mode, first, "--ask-again", "--go-on", *said, sent=16, rejected=rejected, **more)


def runs_dry(mode, status, words):
    """... since the account is empty after ten answers; what is in flight comes home."""
    said = (f"answers {status}: {words}", "the account is out of credit: top it up, and the same command continues")
    return stops(mode, *said, sent=range(11, 61), made=10, rejected={NOT_YET: 50}, rows="p60.jsonl")


def flagged(*flags, **more):
    """What a flag takes, or its values."""
    return {"flags": flags, **more}


UNTHOUGHT = ("30 rows had thoughts before an answer: cut off, and kept as reasoning",)
CUT_THERE = ("30 rows had an answer that ran past a chat template's end of turn: cut there",)
RENAMED = "wants max_completion_tokens instead of max_tokens, and is sent that"
AS_GPT5 = flagged("--temperature", "1", "--extra", '{"top_p": null}', sent=31, said=(RENAMED,))
NO_V1 = "the address seems to lack /v1: give --endpoint http://127.0.0.1:"
ALL_THOUGHTS = "truncated: the thoughts took all 4,096 tokens); let the model think less, or raise --max-tokens"
SHORT = "prompt and answer do not fit into the model's context: lower --max-tokens, or serve a longer context"
SYSTEM = "leave the empty system message out: --no-empty-system; nothing is stored as refused"
CREDIT = "Your credit balance is too low to access the Anthropic API."
BUDGET = "Budget has been exceeded! Current cost: 10.0021, Max budget: 10.0"

CLAIR = [
    Case("good"),
    # thoughts
    Case("think_stronger", kind="stronger-preferred", said=UNTHOUGHT),
    Case("think_close_only", kind="stronger-preferred", said=UNTHOUGHT),
    Case("harmony_stronger", kind="stronger-preferred", said=UNTHOUGHT),
    Case("think_clair_plan", said=UNTHOUGHT),
    Case("parts", said=UNTHOUGHT),
    useless("think_clair_nomarker", "no marker", "no marker: 'The heron is bird number"),
    useless("reasoning_eats_all", "truncated", ALL_THOUGHTS),
    useless("reasoning_eats_all_null", "truncated", ALL_THOUGHTS),
    useless("all_in_reasoning", "no answer behind the thoughts", "vllm serve --reasoning-parser"),
    useless("all_null", "no answer behind the thoughts", "vllm serve --reasoning-parser"),
    # texts
    *(
        Case("words", rows="keywords.jsonl", env={"OPENAI_API_KEY": key}, made=5, sent=5)
        for key in ("test", "EMPTY", "none", "1")
    ),
    useless("upper_max_tokens", "truncated", "raise --max-tokens"),
    Case("eot_leak", said=CUT_THERE),
    Case("eot_leak_end", said=CUT_THERE),
    useless("replacement", "NUL or U+FFFD in it", "the server's tokenizer or its weights are broken"),
    *(
        stops("notes_after", f"no pair was made of {n} prompts (alludes to the revision)", "asks for new ones", sent=n,
              rows=rows, rejected={"alludes to the revision": n})
        for n, rows in ((30, "prompts.jsonl"), (5, "long.jsonl"))
    ),
    useless("no_marker", "no marker", "another --model or --template", of=60, rows="p60.jsonl"),
    stops("no_marker", "all 5 answers are unusable (no marker", "--ask-again", sent=5, rows="prompts5.jsonl",
          rejected={"no marker": 5}),
    # accounts
    runs_dry("anthropic_credit", 400, CREDIT),
    runs_dry("litellm_budget", 400, BUDGET),
    runs_dry("litellm_budget_429", 429, BUDGET),
    stops("openrouter_200_402", "answers 402: Insufficient credits.", "the account is out of credit: top", sent=1),
    # one row's own
    Case("openrouter_moderation", made=29, rejected={"refused by the server": 1}),
    Case("azure_filter", made=20, rejected={"refused by the server": 10}),
    # addresses, keys, parameters
    stops("lmstudio_no_v1", "answers 200: Unexpected endpoint or method.", NO_V1, sent=1, path=""),
    Case("lmstudio_no_v1"),
    stops("v1_only_404", "answers 404: Not Found", NO_V1, sent=1, path=""),
    Case("v1_only_404"),
    stops("openwebui_405", "answers 405: Method Not Allowed", NO_V1, sent=1, path=""),
    Case("openwebui_405"),
    stops("azure", "answers 401: Access denied", "--header 'api-key: $VARIABLE'", sent=1),
    Case("azure", **flagged("--header", "api-key: $MY_SECRET"), env={"MY_SECRET": "abcdefghijkl"}),
    stops("azure_v1", "answers 404: Resource not found", "fix the address (--endpoint)", sent=1),
    Case("azure_v1", path="/openai/v1"),
    stops("gpt5", RENAMED, "--temperature 1", "nothing is stored as refused", sent=2),
    stops("gpt5", RENAMED, '--extra \'{"top_p": null}\'', "nothing is stored as refused", sent=2,
          flags=("--temperature", "1")),
    Case("gpt5", **AS_GPT5),
    stops("gpt5_real", RENAMED, "--temperature 1", "nothing is stored as refused", sent=2),
    Case("gpt5_real", **AS_GPT5),
    stops("anthropic_empty_system", "system: text content blocks must be non-empty", SYSTEM, sent=1),
    Case("anthropic_empty_system", **flagged("--no-empty-system")),
    stops("gemma_system", "System role not supported", SYSTEM, sent=1),
    Case("gemma_system", **flagged("--no-empty-system")),
    stops("ctx_too_long", "has refused the first 8 requests (400: 'max_tokens'", SHORT, sent=8),
    stops("target_400", "Use 'max_completion_tokens' instead.", "--target-extra '{\"max_tokens\": null}'",
          "nothing is stored as refused", sent=2, kind="target"),
    # forms of an answer
    Case("sse"),
    Case("sse", **flagged("--stream")),
    stops("stream_required", "only support stream mode", "the server only streams: add --stream", sent=1),
    Case("stream_required", **flagged("--stream")),
    Case("gz"),  # 263 bytes, 389 when they are unpacked; 0.0003 MB are 314
    useless("gz", "an answer of more than 0.0003 MB", "raise --max-answer-mb",
            **flagged("--max-answer-mb", "0.0003")),
    Case("openrouter_ws"),
    # counts and time
    Case("gemini_usage", **flagged("--price-in", "1", "--price-out", "10", said=("0.15 million tokens, $1.52",))),
    Case("ollama_ctx", rows="huge.jsonl", made=5, sent=5, said=("the server cut 5 prompts: of one with 2,529 words",)),
    Case("ollama_ctx"),
    stops("slow3", "the first 2 attempts have timed out (no byte within 1 s", "raise --read-timeout", sent=2,
          rejected={"failed": 1, NOT_YET: 4}, rows="prompts5.jsonl", flags=("--read-timeout", "1")),
    Case("slow3", rows="prompts5.jsonl", made=5, sent=5),
    Case("one_slot"),
    # one answer to everything
    stops("same", "16 different questions got the same answer", "a cache or a proxy", "--ask-again",
          sent=16, rejected={"one answer to 16 different questions": 16, NOT_YET: 44}, rows="p60.jsonl"),
    stops("same", "5 different questions got the same answer", "--ask-again", sent=5,
          rejected={"one answer to 5 different questions": 5}, rows="prompts5.jsonl"),
]  # fmt: skip

JUDGES = [
    Case("jop_think", made=20, sent=20, said=("20 rows had thoughts",)),
    Case("jop_words", made=18, sent=20, rejected={"no choice": 2}),
    useless("jop_notbetter", "no choice", "that it is asked for: take another --model or --template", of=20),
    stops("score_of10", "rows lack the score of an answer", "--n-grades", sent=40, made=32, kind="score"),
]  # fmt: skip
JUDGES = [replace(c, kind="judge-on-policy", rows="two.jsonl") if c.kind == "clair" else c for c in JUDGES]

BENCHMARKS = [
    Case("mix_good", made=48, sent=102),
    stops("mix_think", "takes 'A', the right answer to a multiple-choice query, for wrong", "reasoning parser",
          "--ask-again", sent=6),
    stops("mix_budget", f"answers 400: {CREDIT}", "the account is out of credit: top", sent=range(48 + 14 + 1, 103)),
    stops("mix_gpt5", RENAMED, "the thoughts took all 999 tokens", "--judge-extra '{\"max_tokens\": ...}'", sent=4),
    Case("mix_gpt5", **flagged("--judge-extra", json.dumps(ANOTHER), made=48, sent=102)),
    Case("mix_gpt5", **flagged("--judge-extra", '{"max_tokens": 4096}', made=48, sent=103, said=(RENAMED,))),
    stops("mix_model_rejects_seed", "Extra inputs are not permitted", "leave seed out: --extra '{\"seed\": null}'",
          "nothing is stored as refused", sent=7),
    Case("mix_model_rejects_seed", **flagged("--extra", '{"seed": null}', made=48, sent=102)),
    Case("alpaca_good", made=12, sent=25),
    Case("alpaca_together", made=12, sent=25),
    stops("alpaca_space_only", "--judge: it gives no log-probs of the tokens m and M", "--ask-again", sent=1),
    stops("alpaca_think_first", "m and M have 0.0% of the probability of its first token", "--ask-again",
          sent=1),
    stops("alpaca_gpt5_16", "answers 403: You are not allowed to request logprobs", "another --judge", sent=1),
]  # fmt: skip
BENCHMARKS = [replace(c, kind="mixeval" if c.mode.startswith("mix_") else "alpacaeval") for c in BENCHMARKS]

CASES = [*CLAIR, *JUDGES, *BENCHMARKS]
MENDED = {"judge-on-policy": "jop_think", "mixeval": "mix_good", "alpacaeval": "alpaca_good"}  # else good
THOUGHTFUL = {case.mode for case in CASES if any("had thoughts" in words for words in case.said)}


def test_every_mode_of_the_servers_has_its_line():
    text = "".join((SERVERS / name).read_text() for name in ("server.py", "modes.py"))
    modes = re.findall(r"^@mode\ndef (\w+)", text, re.MULTILINE)
    assert len(modes) == len(set(modes)) and {c.mode for c in CASES} == set(modes)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_mode_ends_as_it_should(tmp_path, case):
    with served(case.mode, tmp_path / "log.jsonl") as port:
        found = outcome(case, tmp_path, port)
    reasons = ", ".join(f"{n} {reason}" for reason, n in found.rejected.items())
    print(f"| {case} | {case.kind} | {found.code} | {found.made} | {reasons} | {found.sent} | {found.last} |")
    assert found.code == case.code, found.said
    assert (found.made, found.rejected) == (case.made, case.rejected)
    assert found.sent in (case.sent if isinstance(case.sent, range) else [case.sent])
    assert [words for words in case.said if words not in found.said] == [], found.said
    assert "Traceback" not in found.said and case.env.get("MY_SECRET", "Traceback") not in found.said
    if case.kind == "target":
        assert {row["body"]["model"] for row in read_rows(tmp_path / "log.jsonl")} == {"llama"}
    if case.code and case.kind != "score":
        goes_on(case, found, tmp_path, port)


def goes_on(case, before, folder, port):
    """The run has stopped: nothing is stored as refused, and the same command makes every row when all is well."""
    with sqlite3.connect(folder / "store.sqlite") as store:
        assert store.execute("SELECT count(*) FROM answers WHERE state = 'refused'").fetchone() == (0,)
    if "alludes to the revision" in before.rejected or case.kind == "target":
        return  # answers that came whole are not asked for anew; and no mode of these answers well for both models
    is_paid = bool(before.rejected.keys() - {NOT_YET, "failed"}) or "--ask-again" in before.said
    flags = () if "--max-answer-mb" in case.flags else case.flags
    flags += ("--ask-again",) if is_paid else ()
    mended = replace(case, mode=MENDED.get(case.kind, "good"), flags=flags)
    with served(mended.mode, folder / "mended.jsonl", port):
        found = outcome(mended, folder, port, log="mended.jsonl")
    n = {"mixeval": 48, "alpacaeval": 12}.get(case.kind) or len(read_rows(SERVERS / case.rows))
    assert (found.code, found.made, found.rejected) == (0, n, {}), found.said
    if case.kind not in ("mixeval", "alpacaeval"):
        assert found.sent == n - before.made


# --- the server and the commands -----------------------------------------------------------------------------------


@contextlib.contextmanager
def served(mode, log, port=0):
    """The server as a process; gives its port."""
    log.touch()
    arguments = [sys.executable, "-c", ON_PORT, str(port), str(SERVERS / "server.py"), mode, str(log)]
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            yield int(process.stdout.readline())
        finally:
            process.terminate()


@dataclass(frozen=True)
class Outcome:
    """What came of a command."""

    code: int
    made: int
    rejected: dict[str, int]
    sent: int
    said: str

    @property
    def last(self) -> str:
        """The last sentence, without names that change."""
        said = self.said.strip().split("\n")[-1].removeprefix("error: ").replace("|", "\\|")
        return re.sub(r"http://127\S+\d", "SERVER", re.sub(r"(?<!\S)/\S+/", "", said))[:200]


def outcome(case, folder, port, *, log="log.jsonl"):
    """Runs the command, and reads what it has written; none of it may be wrong."""
    arguments, files = KINDS[case.kind](case, folder, f"http://127.0.0.1:{port}{case.path}")
    done = run([sys.executable, "-m", *map(str, arguments), *case.flags], env=case.env)
    rejected = folder / "pairs.rejected.jsonl"
    reasons = [row["reason"].partition(":")[0] for row in read_rows(rejected)] if rejected.exists() else []
    sent = len(read_rows(folder / log))
    return Outcome(done.returncode, files(), dict(collections.Counter(reasons)), sent, done.stderr)


def recipe(case, folder, base, rows=None):
    """A recipe's arguments, and how its pairs are read."""
    arguments = ["revise", "clair" if case.kind == "target" else case.kind, "--prompts", rows or SERVERS / case.rows]
    arguments += ["--out", folder / "pairs.jsonl", "--store", folder / "store.sqlite", "--endpoint", base]
    given = {row["prompt"]: row for row in read_rows(SERVERS / case.rows)}

    def n_right():
        pairs = read_rows(folder / "pairs.jsonl") if (folder / "pairs.jsonl").exists() else []
        for pair in pairs:
            prompt, *_, chosen = (message["content"] for message in pair["chosen"])
            lost = pair["rejected"][-1]["content"]
            assert (chosen, lost) == RIGHT[case.kind](given[prompt])
            assert ("reasoning" in pair) == (case.mode in THOUGHTFUL)
        return len(pairs)

    return [*arguments, "--model", "reviser"], n_right


def heron(text):
    return text.replace("otter", "heron")


RIGHT = {  # winner and loser of a row
    "clair": lambda row: (heron(row["response"]), row["response"]),
    "stronger-preferred": lambda row: (f"The heron answers: {row['prompt']}", row["response"]),
    "judge-on-policy": lambda row: (heron(row["responses"][0]), row["responses"][0]),
}


def target(case, folder, base):
    """Rows without own answers: the server is asked for them first."""
    rows = [{"prompt": row["prompt"]} for row in read_rows(SERVERS / case.rows)]
    arguments, n_right = recipe(case, folder, base, rows=write_rows(folder / "bare.jsonl", rows))
    return [*arguments, "--target-endpoint", base, "--target-name", "llama"], n_right


def score(case, folder, base):
    """Both answers of a row are graded; each good grade is an 8 or the 8.5 that was said."""
    pairs = [
        {"prompt": row["prompt"], "chosen": row["responses"][1], "rejected": row["responses"][0]}
        for row in read_rows(SERVERS / "two.jsonl")
    ]
    out = folder / "scored.jsonl"
    arguments = ["revise", "score", "--pairs", write_rows(folder / "in.jsonl", pairs), "--out", out]

    def n_grades():
        rows = read_rows(out)
        grades = [row[name] for row in rows for name in ("chosen_score", "rejected_score") if name in row]
        assert len(rows) == len(pairs) and set(grades) == {8, 8.5}
        return len(grades)

    return [*arguments, "--store", folder / "store.sqlite", "--endpoint", base, "--model", "judge"], n_grades


def judged(command, folder, base):
    """What both benchmarks take: the server is the model as well as the judge."""
    arguments = ["eval", command, "served", "--any-data", "--store", folder / "store.sqlite", "--out", folder / "eval"]
    return [*arguments, "--endpoint", base, "--model", "llama", "--judge-endpoint", base, "--judge", "judge"]


def mixeval(case, folder, base):
    """24 queries of each split. The model is right in all free answers and in every second choice."""
    version, data = mixeval_run.VERSIONS[0], folder / "MixEval"
    if not data.exists():
        queries = checkout(data) / f"mix_eval/data/mixeval-{version}/mixeval-hard"
        queries.mkdir(parents=True)
        rows = [
            {"problem_type": "x", "context": None, "prompt": f"Why {i}?", "benchmark_name": "DROP"} for i in range(24)
        ]
        free = {str(i): row | {"target": ["a"]} for i, row in enumerate(rows)}
        choice = {str(i): row | {"target": [i % 2], "options": ["o", "p"]} for i, row in enumerate(rows)}
        (queries / "free-form.json").write_text(json.dumps(free))
        (queries / "multiple-choice.json").write_text(json.dumps(choice))

    def n_judged():
        if not (folder / "eval/scores.jsonl").exists():
            return 0
        lines = {line["metric"]: line for line in read_rows(folder / "eval/scores.jsonl")}
        overall = lines["table4_compat/overall"]
        assert (overall["value"], overall["n_fallbacks"], overall["n_blocked"]) == (0.75, 0, 0)
        return overall["n"]

    return [*judged("mixeval", folder, base), "--mixeval", data, "--version", version], n_judged


def alpacaeval(case, folder, base):
    """12 instructions; m has the log-prob -0.3 and M -1.5, whichever of them is the model's output."""
    data = folder / "checkout"
    if not data.exists():
        rows = [
            {"dataset": "d", "instruction": f"Say {i}.", "output": "word " * (i + 1), "generator": "gpt"}
            for i in range(12)
        ]
        texts = {alpacaeval_run.OUTPUTS: json.dumps(rows), "src/alpaca_eval/" + alpacaeval_run.TEMPLATE: TEMPLATE}
        for path, text in texts.items():
            (data / path).parent.mkdir(parents=True)
            (data / path).write_text(text)

    def n_judged():
        notes = folder / "eval/served/alpaca_eval_2/annotations.json"
        if not notes.exists():
            return 0
        share = math.exp(-1.5) / (math.exp(-1.5) + math.exp(-0.3))
        found = {round(note["preference"], 9) for note in json.loads(notes.read_text())}
        assert found == {round(1 + share, 9), round(2 - share, 9)}
        return len(json.loads(notes.read_text()))

    return [*judged("alpacaeval", folder, base), "--alpaca-eval", data], n_judged


KINDS = {"clair": recipe, "stronger-preferred": recipe, "judge-on-policy": recipe, "target": target, "score": score,
         "mixeval": mixeval, "alpacaeval": alpacaeval}  # fmt: skip
