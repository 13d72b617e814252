"""A pass over MixEval-Hard: answers, judgments, scores, for every checkpoint of a run or for one model.

    python -m eval mixeval runs/first --mixeval path/to/MixEval --store judge.sqlite \\
        --judge-endpoint http://localhost:8000/v1 --judge NAME

Each stage goes on where it stopped: answers are kept as they end, judgments are in the store, so that a killed pass
pays for nothing twice and comes to the same scores. Files are named and filled as upstream's are, so that its scorer
can read them; scores go into OUT/scores.jsonl.
"""

import hashlib
import json
import random
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from data.rows import load_rows
from eval import answering, checkpoints, judge_client, mixeval, scores
from eval.answering import How, Model
from eval.checkpoints import Checkpoint
from eval.judge_client import Judge, JudgedConfig, Sent
from eval.mixeval import SPLITS, Split, Wording
from revise.client import Answered, Request, estimate, open_store, total
from system import InputError, RunError, cli, files
from system.flags import PathText

EXAMPLE = (
    "python -m eval mixeval runs/first --mixeval path/to/MixEval --store judge.sqlite"
    " --judge-endpoint http://localhost:8000/v1 --judge NAME"
)
BENCHMARK = "mixeval-hard"
VERSIONS = ("2024-06-01", "2024-08-11")
SHA256 = {  # of the published data
    ("2024-06-01", "free-form"): "55167abde842c86b80504913eaf839a2fbd7e96b4332eb69406f583dbb6ce7c5",
    ("2024-06-01", "multiple-choice"): "11e57fa2e1bc6bd3529167e4353991cae7c548e55ccf5067ef42a95971397af1",
    ("2024-08-11", "free-form"): "4784526892f825d421a43a3c34a139adcfa9f8b17d1898b7e5c57079fecf5b4e",
    ("2024-08-11", "multiple-choice"): "3015ee7cc02f20ae7e412e0b42919a9a7d361c6c37de36db5ada38a576a36fea",
}
NAMES = {"free-form": ("close_freeform", "ff"), "multiple-choice": ("close_multichoice", "mp")}  # in upstream's files
PRESETS = {"stable": {"temperature": 0.0, "top_p": 1.0}, "paper": {"temperature": 0.6, "top_p": 0.9}}
MAX_TOKENS, JUDGE_TOKENS, SEED = 512, 999, answering.SEED
N_BOOTSTRAP = 2000
N_PROBES = 3  # answers of a judge of which one has to have a score


@dataclass(frozen=True, kw_only=True)
class MixEvalConfig(JudgedConfig):
    """Score checkpoints on MixEval-Hard with the judge of your choice.

    --endpoint and --model name a server that answers in the place of the checkpoint (vLLM, for large models).
    """

    mixeval: PathText
    """Your checkout of MixEval: its data and the wording of its requests are read from there, its code is not run."""
    version: tuple[str, ...] = VERSIONS
    """Which of its data."""
    preset: Literal["stable", "paper"] = "stable"
    """How answers are drawn: greedily, or at the temperature 0.6 and top-p 0.9 that upstream has for Llama-3."""
    judge_temperature: float | None = None
    """Of the judge; unset it is not sent, as upstream does. A judge at 0 is asked again at 1, lest it repeat itself."""
    rounds: int = 10
    """How often the judge is asked again where its answer has no score; upstream's number."""
    fallback: Literal["random", "zero"] = "random"
    """What a query without a score after that counts: a draw, as upstream does, or nothing. They are counted."""
    dedupe: bool = True
    """Judge equal answers to equal queries once; --no-dedupe judges each, as upstream does."""
    watch: bool = False
    """Score epochs as they appear, until the run has written its last."""
    prune: bool = False
    """Remove an epoch once it is scored, but for the best of each version and the newest."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if unknown := [version for version in self.version if version not in VERSIONS]:
            raise InputError(f"--version: {unknown[0]!r} is not one of {', '.join(VERSIONS)}")
        if self.rounds < 1:
            raise InputError("--rounds: at least 1")
        if self.judge_temperature is not None and not 0 <= self.judge_temperature <= 2:
            raise InputError(f"--judge-temperature: {self.judge_temperature} is not between 0 and 2")
        if (self.watch or self.prune) and (self.endpoint or self.out):
            raise InputError("--watch and --prune are for a run's own folder; leave out --endpoint and --out")


Entries = dict[Split, dict[str, dict[str, Any]]]


class Scored(NamedTuple):
    """What a version's queries came to."""

    scores: dict[Split, dict[str, float]]
    judged: dict[Split, dict[str, dict[str, Any]]]
    """Fields for upstream's files: judge_response, and judge_score or judge_option."""
    n_fallbacks: int
    """Queries without a judgment that can be read, which count by --fallback."""
    n_blocked: int = 0
    """Queries that the judge's server refuses: 0 for a free answer, a letter by --fallback for a choice."""
    n_unanswered: int = 0
    """Queries that the served model gave no answer to: empty ones."""


def main(argv: Sequence[str]) -> None:
    """The command."""
    config = cli.parse(MixEvalConfig, argv, command="python -m eval mixeval", example=EXAMPLE)
    wording = mixeval.read_wording(config.mixeval)
    data = {v: read_entries(Path(config.mixeval), v, any_data=config.any_data) for v in config.version}
    run = Path(config.what)
    with open_store(Path(config.store)) as store:
        sent = Sent(store)
        judge = judge_client.judge_of(config, sent)
        found = [] if config.watch else judge_client.find(config)
        if config.dry_run:
            print(_estimate(data, wording, config, found, judge, sent))
            return
        judge_client.take_base(config)
        probe(judge, next(iter(data.values())), wording, config)
        names: set[str] = set()
        for checkpoint in checkpoints.watch(run, with_base=config.has_base) if config.watch else found:
            model = Model(checkpoint, config, sent)
            for version, entries in data.items():
                print(score_one(model, version, entries, wording, config, judge), flush=True)
            names.add(checkpoint.name)
            if config.prune:
                _prune(run, config, names)


def score_one(
    model: Model, version: str, entries: "Entries", wording: Wording, config: MixEvalConfig, judge: Judge
) -> str:
    """Answers, judgments and scores of a checkpoint on a version. What came of it, in a line."""
    name = model.checkpoint.name
    folder = config.folder / name / "mixeval_hard" / version
    answers, n_unanswered = _responses(model, entries, wording, folder, config)
    scored = judge_all(entries, answers, wording, config, judge)._replace(n_unanswered=n_unanswered)
    return _write(folder, name, entries, answers, scored, config, wording, judge)


def probe(judge: Judge, entries: "Entries", wording: Wording, config: MixEvalConfig) -> None:
    """Raises RunError where the judge's answers to a plain question have no score: before thousands are paid for."""
    for split, queries in entries.items():
        entry = next(iter(queries.values()))
        right = str(entry["target"][0]) if split == "free-form" else chr(ord("A") + entry["target"][0])
        messages = mixeval.judge_messages(entry, right, split, wording)
        found = judge.ask([judge.request(_body(messages, config), -1 - i) for i in range(N_PROBES)])
        texts = [a.completion.text for a in found if a.completion]
        read = mixeval.parse_score if split == "free-form" else mixeval.parse_option
        if all(read(text) is None for text in texts):
            shown = texts[0][:80] if texts else found[0].fault
            raise RunError(
                f"--judge: none of {N_PROBES} answers to a {split} query has a score in [[ ]] ({shown!r}); take a "
                "model that follows instructions"
            )


def _body(messages: list[dict[str, str]], config: MixEvalConfig) -> dict[str, Any]:
    """What the judge is sent, as upstream sends it."""
    body = {"messages": messages, "max_tokens": JUDGE_TOKENS, "response_format": {"type": "text"}}
    return body if config.judge_temperature is None else body | {"temperature": config.judge_temperature}


def _prune(run: Path, config: MixEvalConfig, names: set[str]) -> None:
    """Removes epochs that this pass has scored but the best of each version and the newest. names: what it has."""
    lines = [x for x in scores.read(config.folder / scores.NAME) if x["benchmark"] == BENCHMARK]
    asked = [x for x in lines if x.get("judge") == config.judge and x.get("preset") == config.preset]
    tables = [overall(asked, version) for version in config.version]
    whole = {name: value for name, value in tables[0].items() if all(name in table for table in (*tables, names))}
    best = set()  # of every version, judge and preset that anybody has asked for here
    for who in {(x["version"], x.get("judge"), x.get("preset")) for x in lines}:
        of_one = overall([x for x in lines if (x["version"], x.get("judge"), x.get("preset")) == who], who[0])
        best |= {max(of_one, key=lambda name: of_one[name])} if of_one else set()
    for name in checkpoints.prune(run, whole, best):
        cli.notify(f"{run / name}: scored, neither among the best nor the newest: removed")


def overall(lines: Sequence[scores.Line], version: str) -> dict[str, float]:
    """The overall score of each epoch on a version, of the newest scores that compare with each other."""
    found = scores.pick(lines, benchmark=BENCHMARK, version=version, metric="table4_compat/overall")
    epochs = [line for line in found if line["checkpoint"] != scores.BASE]
    return {line["checkpoint"]: line["value"] for line in scores.newest(epochs)}


def _estimate(
    data: dict[str, "Entries"],
    wording: Wording,
    config: MixEvalConfig,
    found: Sequence[Checkpoint],
    judge: Judge,
    sent: Sent,
) -> str:
    """The most that a pass can take: answers as long as may be, each judged once."""
    queries: list[tuple[Split, dict[str, Any]]] = [
        (split, entry) for entries in data.values() for split, of in entries.items() for entry in of.values()
    ]
    how, known = How(**PRESETS[config.preset], max_tokens=MAX_TOKENS), sent.store.states()
    stages = []
    if config.endpoint:
        prompts = {str(i): mixeval.format_prompt(entry, split, wording) for i, (split, entry) in enumerate(queries)}
        asked = Model(found[0], config, sent).requests(prompts, how)
        stages.append(estimate("answers", asked, known, judge_client.client_of_model(config)))
    judged = (
        judge.request(_body(mixeval.judge_messages(entry, f"{'x' * 4 * MAX_TOKENS}{i}{name}", split, wording), config))
        for name in [c.name for c in found] or ["the next epoch"]
        for i, (split, entry) in enumerate(queries)
    )
    stages.append(estimate("judgments", judged, known, judge_client.client_of_judge(config)))
    again = f"(each judgment that has no score is asked for again, {config.rounds} times in all at most)"
    return "\n".join([*(said for said, _ in stages), again, total(sum(d for _, d in stages), config)])


def read_entries(checkout: Path, version: str, *, any_data: bool) -> Entries:
    """The queries of a version. Raises InputError where a file is missing, or not the published one."""
    entries: Entries = {}
    for split in SPLITS:
        path = checkout / f"mix_eval/data/mixeval-{version}/mixeval-hard/{split}.json"
        try:
            raw = path.read_bytes()
            entries[split] = json.loads(raw)
        except (OSError, ValueError) as fault:
            why = fault.strerror if isinstance(fault, OSError) else "not JSON"
            raise InputError(f"{path}: cannot be read ({why}); give a whole checkout of MixEval") from None
        if hashlib.sha256(raw).hexdigest() != SHA256[version, split]:
            if not any_data:
                raise InputError(f"{path}: not the published data (another checksum); mend it, or say --any-data")
            cli.notify(f"{path}: not the published data; its scores compare with none but their own")
    return entries


# --- answers -------------------------------------------------------------------------------------------------------


def _responses(
    model: Model, entries: Entries, wording: Wording, folder: Path, config: MixEvalConfig
) -> tuple[dict[Split, dict[str, str]], int]:
    """The model's answers to all queries: from the files where they are, else drawn and written; how many lack."""
    found: dict[Split, dict[str, str]] = {}
    n_unanswered = 0
    how = How(**PRESETS[config.preset], max_tokens=MAX_TOKENS)
    for split, queries in entries.items():
        path = folder / f"{model.checkpoint.name}_{NAMES[split][0]}_hard.jsonl"
        prompts = {name: mixeval.format_prompt(entry, split, wording) for name, entry in queries.items()}
        rows = load_rows(path) if path.is_file() else []
        if rows:
            answering.check_same(path, rows, "formated_input", list(prompts.values()), model.identity(how))
        if not rows or not answering.may_stand(rows, config):
            texts = model.answers(prompts, how, path)
            rows = [
                entry | {"formated_input": prompts[name], "id": name, "response": texts[name]}
                | {"model_sha256": model.identity(how), **answering.without_answer(model, name)}
                for name, entry in queries.items()
            ]  # fmt: skip
            files.write_rows(path, rows)
        answering.settle(path)
        found[split] = {row["id"]: row["response"] for row in rows}
        n_unanswered += sum("unanswered" in row for row in rows)
    return found, n_unanswered


# --- judgments -----------------------------------------------------------------------------------------------------


def judge_all(
    entries: Entries,
    responses: dict[Split, dict[str, str]],
    wording: Wording,
    config: MixEvalConfig,
    judge: Judge,
) -> Scored:
    """Has every answer judged, those without a score again in the next round, and counts what is left by a fallback."""
    scored = Scored({s: {} for s in SPLITS}, {s: {} for s in SPLITS}, 0)
    last: dict[tuple[Split, str], Answered] = {}
    for number in range(config.rounds):
        requests = dict(_requests(entries, responses, wording, config, judge, scored, number))
        if not requests:
            break
        for (split, name), found in zip(requests, judge.ask(list(requests.values())), strict=True):
            _take(scored, split, name, entries[split][name], found)
            last[split, name] = found
    left: list[tuple[Split, str]] = [
        (split, name) for split, queries in entries.items() for name in queries if name not in scored.scores[split]
    ]
    states = [row.state if (row := last[key].row) else "failed" for key in left]
    if n_failed := states.count("failed"):
        why = next(last[key].fault for key, state in zip(left, states, strict=True) if state == "failed")
        raise RunError(f"{n_failed} judgments are missing ({why}); the same command asks again")
    for (split, name), state in zip(left, states, strict=True):
        is_zero = split == "free-form" and state == "refused"
        _fall_back(scored, split, name, entries[split][name], "zero" if is_zero else config.fallback)
    n_blocked = states.count("refused")
    return scored._replace(n_fallbacks=len(left) - n_blocked, n_blocked=n_blocked)


def _requests(
    entries: Entries,
    responses: dict[Split, dict[str, str]],
    wording: Wording,
    config: MixEvalConfig,
    judge: Judge,
    scored: Scored,
    number: int,
) -> Iterator[tuple[tuple[Split, str], Request]]:
    """Round `number` of questions, of those that have no score yet."""
    n_equal: dict[str, int] = defaultdict(int)
    for split, queries in entries.items():
        for name, entry in queries.items():
            messages = mixeval.judge_messages(entry, responses[split][name], split, wording)
            request = judge.request(_body(messages, config), number)
            if not config.dedupe:
                n_equal[request.key] += 1
                request = request._replace(occurrence=n_equal[request.key] - 1)
            if name not in scored.scores[split]:
                yield (split, name), request


def _take(scored: Scored, split: Split, name: str, entry: Mapping[str, Any], found: Answered) -> None:
    """Keeps a judgment if it can be read."""
    if found.completion is None:
        return
    text = found.completion.text
    if split == "free-form":
        if (score := mixeval.parse_score(text)) is not None:
            scored.scores[split][name] = score
            scored.judged[split][name] = {"judge_response": text, "judge_score": score}
    elif (letter := mixeval.parse_option(text)) is not None:
        scored.scores[split][name] = float(ord(letter) - ord("A") == entry["target"][0])
        scored.judged[split][name] = {"judge_response": text, "judge_option": letter}


def _fall_back(scored: Scored, split: Split, name: str, entry: Mapping[str, Any], fallback: str) -> None:
    rng = random.Random(f"{SEED} {split} {name}")
    if split == "free-form":
        score = round(rng.random(), 1) if fallback == "random" else 0.0
        scored.scores[split][name] = score
        scored.judged[split][name] = {"judge_response": None, "judge_score": score, "fallback": fallback}
        return
    letters = [chr(ord("A") + i) for i in range(len(entry["options"]))]
    letter = rng.choice(letters) if fallback == "random" else None
    scored.scores[split][name] = float(letter is not None and letters.index(letter) == entry["target"][0])
    scored.judged[split][name] = {"judge_response": None, "judge_option": letter, "fallback": fallback}


# --- scores --------------------------------------------------------------------------------------------------------


def standard_error(entries: Entries, scores: dict[Split, dict[str, float]], seed: int = 0) -> float:
    """Of the overall score, by a bootstrap of distinct queries: copies of one query stand or fall together."""
    rng = np.random.default_rng(seed)
    means = []
    for split, queries in entries.items():
        clusters: dict[str, list[float]] = defaultdict(list)
        for name, entry in queries.items():
            clusters[json.dumps([entry.get(k) for k in ("context", "prompt", "options", "target")])].append(
                scores[split][name]
            )
        sums, sizes = np.array([sum(c) for c in clusters.values()]), np.array([len(c) for c in clusters.values()])
        drawn = rng.integers(0, len(sums), (N_BOOTSTRAP, len(sums)))
        means.append(sums[drawn].sum(axis=1) / sizes[drawn].sum(axis=1))
    return float(np.mean(means, axis=0).std(ddof=1))


def _write(
    folder: Path,
    name: str,
    entries: Entries,
    responses: dict[Split, dict[str, str]],
    scored: Scored,
    config: MixEvalConfig,
    wording: Wording,
    judge: Judge,
) -> str:
    """Upstream's files of judgments, score.json, and lines of scores.jsonl. What came of it, in a line."""
    for split, queries in entries.items():
        rows = [
            entry | {"id": key, "response": responses[split][key]} | scored.judged[split][key]
            for key, entry in queries.items()
        ]
        files.write_rows(folder / _judged_name(split, config), rows)
    facts = judge.facts | {"preset": config.preset, "wording_sha256": wording.sha256, "data_sha256": digest(entries)}
    facts |= {"fallback": config.fallback, "judged_once": config.dedupe, "rounds": config.rounds}
    facts |= {"judge_temperature": config.judge_temperature, "software": scores.software()}
    facts |= {"n_fallbacks": scored.n_fallbacks, "n_blocked": scored.n_blocked, "n_unanswered": scored.n_unanswered}
    tables = {mode: mixeval.aggregate(scored.scores, entries, mode) for mode in ("table4_compat", "merged")}
    splits = {f"split/{split}": float(np.mean(list(of.values()))) for split, of in scored.scores.items() if of}
    files.write_json(folder / "score.json", tables | facts)
    error, n = standard_error(entries, scored.scores), sum(map(len, entries.values()))
    named = {f"{mode}/{metric}": value for mode, table in tables.items() for metric, value in table.items()} | splits
    lines = [
        {"checkpoint": name, "benchmark": BENCHMARK, "version": folder.name, "metric": metric, "value": value}
        | {"stderr": error if metric.endswith("/overall") else None, "n": n, **facts}
        for metric, value in named.items()
    ]
    own = next(line for line in lines if line["metric"] == "table4_compat/overall")
    gain, why = _gain(own, folder, entries, scored, config)
    scores.write(config.folder / scores.NAME, [*lines, *([gain] if gain else [])])
    said = f"{name}  {folder.name}  {100 * own['value']:.2f} +- {100 * error:.2f}"
    if gain:
        error = "" if gain["stderr"] is None else f" +- {100 * gain['stderr']:.2f}"
        said += f"  {100 * gain['value']:+.2f}{error} against the base"
    said += f"  (judge {config.judge}"
    if scored.n_fallbacks:
        said += f"; {scored.n_fallbacks} queries without a judgment counted by the fallback {config.fallback}"
    said += f"; {scored.n_blocked} refused by its server" if scored.n_blocked else ""
    said += f"; {scored.n_unanswered} without an answer of the model" if scored.n_unanswered else ""
    return said + (f"; no delta: {why})" if why else ")")


def _gain(
    own: scores.Line, folder: Path, entries: Entries, scored: Scored, config: MixEvalConfig
) -> tuple[scores.Line | None, str]:
    """The gain over the base model as a line, its error from the same draws for both; or why there is none."""
    if own["checkpoint"] == scores.BASE:
        return None, ""
    same = {"checkpoint": scores.BASE, "benchmark": BENCHMARK, "version": own["version"], "metric": own["metric"]}
    found = scores.pick(scores.read(config.folder / scores.NAME), **same)
    if not found:
        return None, ""
    fit = [line for line in found if not scores.differences(own, line)]
    if not fit:
        return None, scores.differences(own, found[-1])[0]
    of_base = _judged(config.folder / scores.BASE / "mixeval_hard" / folder.name, entries, config)
    error = None
    if of_base is not None:
        apart: dict[Split, dict[str, float]] = {
            split: {name: value - of_base[split][name] for name, value in of.items()}
            for split, of in scored.scores.items()
        }
        error = standard_error(entries, apart)
    return own | {"metric": "delta/overall", "value": scores.delta(own, fit[-1]), "stderr": error}, ""


def _judged(folder: Path, entries: Entries, config: MixEvalConfig) -> dict[Split, dict[str, float]] | None:
    """Each query's score in a folder of this judge's files; None where they are not there."""
    found: dict[Split, dict[str, float]] = {}
    for split, queries in entries.items():
        path = folder / _judged_name(split, config)
        if not path.is_file():
            return None
        rows = load_rows(path)
        found[split] = {
            row["id"]: row["judge_score"] if split == "free-form"
            else float(row["judge_option"] == chr(ord("A") + row["target"][0]))
            for row in rows
        }  # fmt: skip
        if found[split].keys() != queries.keys():
            return None
    return found


def _judged_name(split: Split, config: MixEvalConfig) -> str:
    """As upstream calls its file of judgments."""
    return f"judge_results_{NAMES[split][1]}_model_judge_{config.judge.replace('/', '_')}.jsonl"


def digest(entries: Entries) -> str:
    """SHA-256 of the queries, whatever file they stand in."""
    return hashlib.sha256(json.dumps(entries, sort_keys=True).encode()).hexdigest()
