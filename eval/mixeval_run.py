"""A pass over MixEval-Hard: answers, judgments, scores, for every checkpoint of a run or for one model.

    python -m eval mixeval runs/first --mixeval path/to/MixEval --store judge.sqlite \\
        --judge-endpoint http://localhost:8000/v1 --judge NAME

Each stage goes on where it stopped: answers are kept as they end, judgments are in the store, so that a killed pass
pays for nothing twice and comes to the same scores. Files are named and filled as upstream's are, so that its scorer
can read them; scores go into OUT/scores.jsonl.
"""

import hashlib
import json
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from data.rows import load_rows
from eval import answering, checkpoints, judge_client, mixeval, scores
from eval.answering import How, Model
from eval.checkpoints import Checkpoint
from eval.judge_client import Judge, JudgedConfig, Sent
from eval.mixeval import SPLITS, Split, Wording
from eval.mixeval_judge import Entries, Scored, body, judge_all, probe, probes
from revise.client import Estimate, estimate, open_store, told
from system import InputError, cli, files
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
MAX_TOKENS = 512
N_BOOTSTRAP = 2000


@dataclass(frozen=True, kw_only=True)
class MixEvalConfig(JudgedConfig):
    """Score checkpoints on MixEval-Hard with the judge of your choice.

    --endpoint and --model name a server that answers instead of the checkpoint, such as vLLM for a large model.
    """

    mixeval: PathText
    """Folder of a checkout of MixEval. Its data and the wording of its requests are read from there; its code is not
    run."""
    version: tuple[str, ...] = VERSIONS
    """Versions of the data to score on."""
    preset: Literal["stable", "paper"] = "stable"
    """How to sample answers, of at most 512 tokens each. stable: greedy. paper: temperature 0.6 and top-p 0.9, which
    MixEval uses for Llama-3."""
    judge_temperature: float | None = None
    """Sampling temperature of the judge. Unset: requests name no temperature, as in MixEval, so the server's default
    applies. With 0, a judge that is asked again (see --rounds) is asked at temperature 1, because it would repeat the
    answer that could not be read."""
    rounds: int = 10
    """Maximum number of times that the judge is asked about an answer until it gives a score. MixEval uses 10."""
    fallback: Literal["random", "zero"] = "random"
    """Score of an answer if the judge gave none in --rounds attempts. random: a random score, or in multiple choice a
    random option, as in MixEval. zero: 0. The number of such answers is reported."""
    dedupe: bool = True
    """Judge equal answers to equal queries once. --no-dedupe judges each, as MixEval does."""
    dry_run: bool = False
    """Print what would be sent and the most that it can cost if each answer is judged once, and send nothing. An answer
    without a score is judged again, up to --rounds times in all, and can cost that many times as much."""
    watch: bool = False
    """Score checkpoints as they appear, until the run has written its last one."""
    prune: bool = False
    """Delete every checkpoint of the run, of epochs and of steps, once it is scored, except the best on each version
    (and the next best if one checkpoint is best on both), the newest, and the one that `best` links to. This cannot be
    undone."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if unknown := [version for version in self.version if version not in VERSIONS]:
            raise InputError(f"--version: {unknown[0]!r} is not one of {', '.join(VERSIONS)}")
        if self.rounds < 1:
            raise InputError("--rounds has to be at least 1")
        if self.judge_temperature is not None and not 0 <= self.judge_temperature <= 2:
            raise InputError(f"--judge-temperature: {self.judge_temperature} has to be between 0 and 2")
        if self.watch and self.checkpoint:
            raise InputError("--watch scores every checkpoint as it appears: leave --checkpoint out")
        if (self.watch or self.prune) and (self.endpoint or self.out):
            raise InputError("--watch and --prune need a run's own folder; leave out --endpoint and --out")


def main(argv: Sequence[str]) -> None:
    """The command."""
    config = cli.parse(MixEvalConfig, argv, command="python -m eval mixeval", example=EXAMPLE)
    wording, data = read_data(config)
    run = Path(config.what)
    with open_store(Path(config.store)) as store:
        sent = Sent(store)
        judge = judge_client.judge_of(config, sent)
        found = [] if config.watch else judge_client.find(config)
        if config.dry_run:
            print(told(_estimates(data, wording, config, found, judge, sent), config))
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
    model: Model, version: str, entries: Entries, wording: Wording, config: MixEvalConfig, judge: Judge
) -> str:
    """Answers, judgments and scores of a checkpoint on a version. What came of it, in a line."""
    name = model.checkpoint.name
    folder = config.folder / name / "mixeval_hard" / version
    answers, n_unanswered = _responses(model, entries, wording, folder, config)
    scored = judge_all(entries, answers, wording, config, judge)._replace(n_unanswered=n_unanswered)
    return _write(folder, name, entries, answers, scored, config, wording, judge)


def _prune(run: Path, config: MixEvalConfig, names: set[str]) -> None:
    """Removes epochs that this pass has scored, but for the best of each version, the two that AlpacaEval would take,
    and the newest. names: what it has.
    """
    lines = [x for x in scores.read(config.folder / scores.NAME) if x["benchmark"] == BENCHMARK]
    asked = [x for x in lines if x.get("judge") == config.judge and x.get("preset") == config.preset]
    tables = [overall(asked, version) for version in config.version]
    whole = {name: value for name, value in tables[0].items() if all(name in table for table in (*tables, names))}
    best = set(two_best(lines))  # and of every version, judge and preset that anybody has asked for here
    for who in {(x["version"], x.get("judge"), x.get("preset")) for x in lines}:
        of_one = overall([x for x in lines if (x["version"], x.get("judge"), x.get("preset")) == who], who[0])
        best |= {max(of_one, key=lambda name: of_one[name])} if of_one else set()
    for name in checkpoints.prune(run, whole, best):
        cli.notify(f"{run / name}: removed: it is scored, and neither among the best nor the newest")


def overall(lines: Sequence[scores.Line], version: str) -> dict[str, float]:
    """The overall score of each epoch on a version, of the newest scores that compare with each other."""
    found = scores.pick(lines, benchmark=BENCHMARK, version=version, metric="table4_compat/overall")
    epochs = [line for line in found if line["checkpoint"] != scores.BASE]
    epochs = [line for line in epochs if scores.is_whole(line)] or epochs  # what lacks judgments is not the best
    return {line["checkpoint"]: line["value"] for line in scores.newest(epochs)}


def two_best(lines: Sequence[scores.Line]) -> list[str]:
    """The best checkpoint of each version; where that is one and the same, the next best of both beside it, so that
    there are two as in the paper. None where there are no scores.
    """
    tables = [table for version in VERSIONS if (table := overall(lines, version))]
    names = [max(table, key=lambda name: table[name]) for table in tables]
    others = set[str]().union(*tables).intersection(*tables) - set(names)
    if len(names) > len(set(names)) and others:
        names[1] = max(sorted(others), key=lambda name: sum(table[name] for table in tables))
    return names


def read_data(config: MixEvalConfig) -> tuple[Wording, dict[str, Entries]]:
    """The wording, and the queries of each version. Raises InputError where a file is missing, or not the published
    one.
    """
    wording = mixeval.read_wording(config.mixeval)
    return wording, {v: read_entries(Path(config.mixeval), v, any_data=config.any_data) for v in config.version}


def try_judge(config: MixEvalConfig) -> None:
    """Asks the judge what has a known answer, and keeps nothing. Raises RunError where it cannot judge."""
    wording, data = read_data(config)
    with judge_client.aside(config) as judge:
        probe(judge, next(iter(data.values())), wording, config)


def foresee(config: MixEvalConfig, names: Sequence[str]) -> list[Estimate]:
    """Lines of --dry-run for checkpoints of these names, each with the most dollars that it can cost; nothing is sent.

    Each is a pass of its own, and the judge is tried once before (try_judge). Raises InputError for what a pass could
    not use.
    """
    wording, data = read_data(config)
    with open_store(Path(config.store)) as store:
        sent = Sent(store)
        found = [Checkpoint(name, Path(name)) for name in names]
        judge = judge_client.judge_of(config, sent)
        return _estimates(data, wording, config, found, judge, sent, n_passes=len(names) + 1)


def _estimates(
    data: dict[str, Entries],
    wording: Wording,
    config: MixEvalConfig,
    found: Sequence[Checkpoint],
    judge: Judge,
    sent: Sent,
    n_passes: int = 1,
) -> list[Estimate]:
    """The most that passes over all that is found can take, in lines: answers as long as may be, each judged once."""
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
        judge.request(body(mixeval.judge_messages(entry, f"{'x' * 4 * MAX_TOKENS}{i}{name}", split, wording), config))
        for name in [c.name for c in found] or ["the next epoch"]
        for i, (split, entry) in enumerate(queries)
    )
    client = judge_client.client_of_judge(config)
    tried = probes(judge, next(iter(data.values())), wording, config, n_passes)
    stages.append(estimate("questions with a known answer", tried, known, client))
    judgments = estimate("judgments", judged, known, client)
    again = f"(each judgment that has no score is asked for again, {config.rounds} times in all at most)"
    return [*stages, judgments._replace(said=f"{judgments.said}\n{again}")]


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
                raise InputError(
                    f"{path}: not the published data (its checksum differs); download it again, or accept it: "
                    "--any-data"
                )
            cli.notify(f"{path}: not the published data; scores with it compare only with each other")
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
    facts |= {"n_thoughts": scored.n_thoughts} if scored.n_thoughts else {}
    facts |= scores.unjudged_facts(scored.unjudged, sum(map(len, entries.values())))
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
    said += f" ({scores.mark(own)})" if scores.mark(own) else ""
    if gain:
        error = "" if gain["stderr"] is None else f" +- {100 * gain['stderr']:.2f}"
        said += f"  {100 * gain['value']:+.2f}{error} against the base"
    said += f"  (judge {config.judge}"
    if scored.n_fallbacks:
        said += f"; {scored.n_fallbacks} queries without a judgment counted by the fallback {config.fallback}"
    said += f"; {scored.n_blocked} refused by its server" if scored.n_blocked else ""
    said += f"; {scored.n_thoughts} judgments behind thoughts, which are kept as reasoning" if scored.n_thoughts else ""
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
    if why := scores.judged_otherwise(own, fit[-1]):
        return None, why
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
