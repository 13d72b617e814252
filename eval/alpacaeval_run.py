"""A pass over AlpacaEval 2: outputs, the weighted annotator, win rates with and without length control.

    python -m eval alpacaeval runs/first --alpaca-eval path/to/alpaca_eval --gamed df_gamed.csv --store judge.sqlite \\
        --judge-endpoint http://localhost:8000/v1 --judge NAME

The 805 instructions with the reference's outputs, and the annotator's wording, are read from the user's checkout of
alpaca_eval; its code is not run. df_gamed.csv is a file of the hub's data set tatsu-lab/alpaca_eval. Of a run the best
checkpoint of each MixEval-Hard version is scored, as the paper does with its two best.
"""

import csv
import hashlib
import importlib.util
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from data.rows import is_model_folder
from eval import alpacaeval, answering, judge_client, mixeval_run, scores
from eval.answering import How, Model
from eval.checkpoints import Checkpoint
from eval.judge_client import Judge, JudgedConfig, Sent
from revise.client import Answered, Estimate, Request, estimate, open_store, told
from system import InputError, RunError, cli, files
from system.flags import PathText

EXAMPLE = (
    "python -m eval alpacaeval runs/first --alpaca-eval path/to/alpaca_eval --gamed df_gamed.csv --store judge.sqlite"
    " --judge-endpoint http://localhost:8000/v1 --judge NAME"
)
BENCHMARK = "alpacaeval-2"
REFERENCE = "gpt4_1106_preview"
OUTPUTS = f"results/{REFERENCE}/model_outputs.json"
TEMPLATE = "evaluators_configs/alpaca_eval_clf_gpt4_turbo/alpaca_eval_clf.txt"
SHA256 = {  # of the published files
    "outputs": "83db546b872ddebee8965fd05fa48461ee3c32bc695c62fb57f2d214ff741ec4",
    "template": "784227e6dc2832fc08c43d2c8ea3a308e7523780187a1aaad2f85e30bac85f62",
    "gamed": "97aeec3f1c7de6dee6fd31fe66f1702623f4614c3efe1c6fc5f4927cd5fd674d",
}
PRESETS = {
    "stable": How(temperature=0.0, top_p=1.0, max_tokens=2048),
    "upstream": How(temperature=0.7, top_p=1.0, max_tokens=2048),
    "paper": How(temperature=0.7, top_p=1.0, max_tokens=4096),
}
"""How outputs are drawn. upstream: as most of the leaderboard's models. paper: as upstream's own file for the model
that the paper trains (models_configs/Meta-Llama-3-8B-Instruct: 4,096 tokens; its decoder's temperature is 0.7).
"""
ANNOTATOR = {"max_tokens": 1, "temperature": 1, "top_p": 1.0, "logprobs": True, "top_logprobs": 5}
LEAST_MASS = 0.5  # of the first token's probability, on m and M together
ROUNDS = 3  # of questions about a row that has no preference yet


@dataclass(frozen=True, kw_only=True)
class AlpacaEvalConfig(JudgedConfig):
    """Measure win rates against GPT-4-turbo's outputs on 805 instructions, raw and, with --gamed, length-controlled.

    --endpoint and --model name a server that answers instead of the checkpoint, such as vLLM for a large model.
    """

    judge: str
    """Name of the judge at --judge-endpoint. It has to give log-probs of its first token, and must not reason first.
    The benchmark's own judge is retired."""
    judge_api: Literal["chat", "responses"] = "chat"
    """API of the judge's server. Only chat gives the log-probs that win rates need; responses is an error."""
    alpaca_eval: PathText
    """Folder of a checkout of tatsu-lab/alpaca_eval. The reference's outputs and the annotator's wording are read from
    there; its code is not run."""
    gamed: PathText | None = None
    """File df_gamed.csv from the hub data set tatsu-lab/alpaca_eval, needed for length-controlled win rates. Unset:
    only raw win rates are reported."""
    checkpoint: tuple[str, ...] = ()
    """Names of the run's checkpoints to score. Unset: the best one on each version of MixEval-Hard, so run eval mixeval
    first; if the same one is best on both, also the one with the next best mean."""
    preset: Literal["stable", "upstream", "paper"] = "stable"
    """How to sample outputs: stable is greedy, upstream is temperature 0.7 as for most of the leaderboard, both with at
    most 2,048 tokens; paper is temperature 0.7 with 4,096 tokens, AlpacaEval's setting for the model that the paper
    trains."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.judge_api != "chat":
            raise InputError(
                "--judge-api responses: this API gives no log-probs, which preferences here are made of; use a judge "
                "with a chat endpoint"
            )


class Data(NamedTuple):
    """The files of a pass."""

    reference: list[dict[str, Any]]
    """Rows with "instruction" and "output", in upstream's order."""
    template: str
    gamed: list[dict[str, Any]] | None
    facts: dict[str, str | None]
    """SHA-256 of each file, for scores."""


def main(argv: Sequence[str]) -> None:
    """The command."""
    config = cli.parse(AlpacaEvalConfig, argv, command="python -m eval alpacaeval", example=EXAMPLE)
    data = read_data(config)
    found = _chosen(config)
    with open_store(Path(config.store)) as store:
        sent = Sent(store)
        judge = judge_client.judge_of(config, sent)
        if config.dry_run:
            print(told(_estimates(data, config, found, judge, sent), config))
            return
        judge_client.take_base(config)
        probe(judge, data)
        for checkpoint in found:
            table = score_one(Model(checkpoint, config, sent), data, config, judge)
            print(_tell(checkpoint.name, table, len(data.reference)), flush=True)
    print(_averaged([c.name for c in found if c.name != scores.BASE], config))


def try_judge(config: AlpacaEvalConfig) -> None:
    """Asks the judge what has a known answer, and keeps nothing. Raises RunError where it cannot judge."""
    data = read_data(config)
    with judge_client.aside(config) as judge:
        probe(judge, data)


def probe(judge: Judge, data: Data) -> None:
    """Raises RunError where the judge gives no log-probs of m and M: before an output is drawn."""
    requests = [_probe(judge, data)]
    (found,) = judge.ask(requests)
    if found.row is None or found.row.state in ("failed", "refused"):
        raise RunError(f"--judge: {found.fault}")
    note = _note(found, False)
    if note.preference is None:
        raise judge.found_wanting(
            requests,
            "it gives no log-probs of the tokens m and M, which the weighted win rate needs; take a model that does "
            "not reason first, on a server that gives logprobs",
        )
    if note.mass is None or note.mass <= LEAST_MASS:
        why = f"m and M have {note.mass or 0:.1%} of the probability of its first token"
        raise judge.found_wanting(requests, f"{why}; take a model that does not reason first, nor say anything else")
    if note.preference >= 1.5:
        why = "it prefers 'I do not know.' to the reference's output; take a model that can judge"
        raise judge.found_wanting(requests, why)


def _probe(judge: Judge, data: Data, number: int = 0) -> Request:
    """What the judge is tried with, in a pass that keeps answers of its own."""
    row = data.reference[0]
    shown = alpacaeval.messages(row["instruction"], row["output"], "I do not know.", data.template)
    return judge.request({"messages": shown, **ANNOTATOR}, -1 - number, as_is=True)


# --- the user's files ----------------------------------------------------------------------------------------------


def read_data(config: AlpacaEvalConfig) -> Data:
    """The files of a pass. Raises InputError where one is missing, or not the published one without --any-data."""
    root = Path(config.alpaca_eval)
    outputs = _bytes(root / OUTPUTS, "outputs", config)
    try:
        rows = json.loads(outputs)
        reference = [{"instruction": row["instruction"], "output": row["output"], "dataset": row.get("dataset")}
                     for row in rows]  # fmt: skip
    except (ValueError, KeyError, TypeError):
        raise InputError(
            f"{root / OUTPUTS}: not a list of rows with instruction and output; give the file as it is published"
        ) from None
    path = template_path(root)
    template = _bytes(path, "template", config)
    try:
        wording = template.decode("utf-8")
        alpacaeval.messages("", "", "", wording)
    except (InputError, UnicodeDecodeError) as fault:
        raise InputError(f"{path}: {fault}; give the file as it is published") from None
    gamed = _read_gamed(Path(config.gamed), config) if config.gamed else None
    if gamed is None:
        cli.notify("no --gamed: win rates are not length-controlled")
    gamed_digest = hashlib.sha256(Path(config.gamed).read_bytes()).hexdigest() if config.gamed else None
    facts = {"data_sha256": hashlib.sha256(outputs).hexdigest(), "gamed_sha256": gamed_digest}
    facts["wording_sha256"] = hashlib.sha256(template).hexdigest()
    return Data(reference, wording, gamed, facts)


def _bytes(path: Path, kind: str, config: AlpacaEvalConfig) -> bytes:
    try:
        raw = path.read_bytes()
    except OSError as fault:
        raise InputError(f"{path}: cannot be read ({fault.strerror}); give a checkout of alpaca_eval") from None
    if hashlib.sha256(raw).hexdigest() != SHA256[kind]:
        if not config.any_data:
            raise InputError(
                f"{path}: not the published file (its checksum differs); download it again, or accept it: --any-data"
            )
        cli.notify(f"{path}: not the published file; scores with it compare only with each other")
    return raw


def template_path(root: Path) -> Path:
    """In the checkout, or in the installed package, which is looked up and not imported."""
    places = [root / "src/alpaca_eval" / TEMPLATE, root / TEMPLATE]
    package = importlib.util.find_spec("alpaca_eval")
    places += [Path(p) / TEMPLATE for p in (package.submodule_search_locations or ())] if package else []
    return next((path for path in places if path.is_file()), places[0])


def _read_gamed(path: Path, config: AlpacaEvalConfig) -> list[dict[str, Any]]:
    text = _bytes(path, "gamed", config).decode("utf-8")
    rows = list(csv.DictReader(text.splitlines()))
    numbers = ("preference", "std_delta_len", "instruction_difficulty")
    try:
        return [
            row | {"index": int(float(row["index"]))} | {k: float(row[k] or "nan") for k in numbers} for row in rows
        ]
    except (KeyError, ValueError):
        raise InputError(
            f"{path}: lacks one of the columns index, {', '.join(numbers)}; give df_gamed.csv as it is published"
        ) from None


def _chosen(config: AlpacaEvalConfig) -> list[Checkpoint]:
    """The checkpoints to score, the base first. Raises InputError where none can be chosen."""
    if config.endpoint or is_model_folder(Path(config.what)):
        return judge_client.find(config)
    return judge_client.named(config, config.checkpoint or best(config.folder / scores.NAME))


def best(path: Path) -> list[str]:
    """The checkpoints that are best by a run's scores on MixEval-Hard. Raises InputError where there are no such."""
    names = mixeval_run.two_best(scores.read(path))
    if not names:
        raise InputError(
            f"{path}: has no MixEval-Hard scores to choose the best by; run eval mixeval first, or name --checkpoint"
        )
    return names


# --- a checkpoint --------------------------------------------------------------------------------------------------


def score_one(model: Model, data: Data, config: AlpacaEvalConfig, judge: Judge) -> dict[str, float]:
    """Outputs, annotations and win rates of a checkpoint, written down. What they came to."""
    name = model.checkpoint.name
    folder = config.folder / name / "alpaca_eval_2"
    outputs, n_unanswered = _outputs(model, data, config, folder)
    notes = annotate(data, outputs, judge)
    preferences = [note.preference for note in notes]
    rows = [
        {"instruction": row["instruction"], "output_1": row["output"], "generator_1": REFERENCE, "output_2": output,
         "generator_2": name, "annotator": config.judge, "preference": note.preference, "mass": note.mass}
        for row, output, note in zip(data.reference, outputs, notes, strict=True)
    ]  # fmt: skip
    files.write_json(folder / "annotations.json", rows)
    table = summarise(preferences, data, outputs)
    table["n_low_mass"] = float(sum(note.mass is not None and note.mass <= LEAST_MASS for note in notes))
    facts = judge.facts | data.facts | {"preset": config.preset}
    facts |= {"reference": REFERENCE, "software": scores.software(), "n_unanswered": n_unanswered}
    facts |= scores.unjudged_facts([str(i) for i, p in enumerate(preferences) if p is None], len(preferences))
    errors = {"win_rate": "standard_error", "length_controlled_winrate": "lc_standard_error"}
    lines = [
        {"checkpoint": name, "benchmark": BENCHMARK, "version": REFERENCE, "metric": metric, "value": value}
        | {"stderr": _finite(table.get(errors.get(metric, ""))), "n": int(table["n_total"]), **facts}
        for metric, value in table.items()
        if np.isfinite(value)
    ]
    files.write_json(folder / "score.json", {name: _finite(value) for name, value in table.items()} | facts)
    scores.write(config.folder / scores.NAME, lines)
    return table


def _outputs(model: Model, data: Data, config: AlpacaEvalConfig, folder: Path) -> tuple[list[str], int]:
    """The model's outputs, stripped as upstream does, and how many lack; from model_outputs.json where it is there."""
    path, how = folder / "model_outputs.json", PRESETS[config.preset]
    asked = [row["instruction"] for row in data.reference]
    rows = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else []
    if rows:
        answering.check_same(path, rows, "instruction", asked, model.identity(how))
    if not rows or not answering.may_stand(rows, config):
        found = model.answers({str(i): instruction for i, instruction in enumerate(asked)}, how, path)
        rows = [
            {"dataset": row["dataset"], "instruction": row["instruction"], "output": found[str(i)].strip(),
             "generator": model.checkpoint.name, "model_sha256": model.identity(how),
             **answering.without_answer(model, str(i))}
            for i, row in enumerate(data.reference)
        ]  # fmt: skip
        files.write_json(path, rows)
    answering.settle(path)
    return [row["output"] for row in rows], sum("unanswered" in row for row in rows)


class Note(NamedTuple):
    """What the annotator says of an output."""

    preference: float | None
    """From 1 to 2; None where it gave none."""
    mass: float | None
    """The probability of m and M together; None where nothing was asked, or nothing is known."""


def annotate(data: Data, outputs: Sequence[str], judge: Judge) -> list[Note]:
    """What the judge says of each output; equal outputs are a draw, unasked.

    Rows without a preference are asked for again, ROUNDS in all; equal rows are one question.
    """
    made = [Note(1.5, None)] * len(outputs)
    left = {}
    for i, (row, output) in enumerate(zip(data.reference, outputs, strict=True)):
        if output != row["output"]:
            switched = alpacaeval.is_switched(row["instruction"])
            shown = (output, row["output"]) if switched else (row["output"], output)
            left[i] = alpacaeval.messages(row["instruction"], *shown, data.template), switched
    for number in range(ROUNDS):
        asked = [{"messages": messages, **ANNOTATOR} for messages, _ in left.values()]
        requests = [judge.request(body, number, as_is=True) for body in asked]
        for (i, (_, switched)), found in zip(list(left.items()), judge.ask(requests), strict=True):
            made[i] = _note(found, switched)
        left = {i: asked for i, asked in left.items() if made[i].preference is None}
        if not left:
            break
    return made


def _note(found: Answered, switched: bool) -> Note:
    """What an answer says. Of a text that is blank the log-probs count all the same."""
    if found.row is None or found.row.state not in ("answered", "unusable"):
        return Note(None, None)
    try:
        top = _first_token(json.loads(found.row.answer)["choices"][0]["logprobs"])
        return Note(alpacaeval.preference(top, switched), alpacaeval.mass(top))
    except (ValueError, KeyError, IndexError, TypeError, AttributeError):
        return Note(None, None)


def _first_token(logprobs: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The likeliest first tokens, in OpenAI's form, or in that of older servers and Together's: an object each."""
    if logprobs.get("content"):
        return logprobs["content"][0]["top_logprobs"]
    return [{"token": token, "logprob": float(value)} for token, value in logprobs["top_logprobs"][0].items()]


def summarise(preferences: Sequence[float | None], data: Data, outputs: Sequence[str]) -> dict[str, float]:
    """Win rates, lengths in characters, and how many rows are shorter and longer than the reference's."""
    lengths, references = [len(o) for o in outputs], [len(row["output"]) for row in data.reference]
    table = alpacaeval.win_rate(preferences)
    if data.gamed is not None:
        try:
            controlled = alpacaeval.length_controlled(preferences, lengths, references, data.gamed)
            table |= {name: controlled[name] for name in ("length_controlled_winrate", "lc_standard_error")}
        except InputError as fault:
            cli.notify(f"no length-controlled win rate: {fault}")
    delta = np.array(lengths) - np.array(references)
    table |= {"avg_length": float(int(np.mean(lengths))), "n_missing": float(sum(p is None for p in preferences))}
    return table | {"share_longer": float((delta > 0).mean()), "share_shorter": float((delta < 0).mean())}


# --- what is said --------------------------------------------------------------------------------------------------


def _finite(value: float | None) -> float | None:
    """A standard error; None where there is none to be had, as of one row."""
    return value if value is not None and math.isfinite(value) else None


def _tell(name: str, table: Mapping[str, float], n: int) -> str:
    said = f"{name}  win rate {table['win_rate']:.1f} +- {table['standard_error']:.1f}"
    if beside := scores.mark({"n_unjudged": table["n_missing"], "n_asked": n}):
        said += f" ({beside})"
    if "length_controlled_winrate" in table:
        said += f"  length-controlled {table['length_controlled_winrate']:.1f} +- {table['lc_standard_error']:.1f}"
    said += f"  {table['avg_length']:.0f} characters"
    return "\n".join([said, *(f"  {sentence}" for sentence in alpacaeval.warnings(table))])


def _averaged(names: Sequence[str], config: AlpacaEvalConfig) -> str:
    """The mean over the checkpoints of what they gain over the base, as the paper gives it; or why there is none."""
    lines, said = scores.pick(scores.read(config.folder / scores.NAME), benchmark=BENCHMARK), []
    for metric, unit in (("length_controlled_winrate", "points"), ("win_rate", "points"), ("avg_length", "characters")):
        found = {x["checkpoint"]: x for x in scores.newest(scores.pick(lines, metric=metric))}
        if scores.BASE in found and names and all(name in found for name in names):
            apart = (scores.judged_otherwise(found[name], found[scores.BASE]) for name in names)
            if why := next(filter(None, apart), ""):
                return f"no deltas: {why}"
            gains = [scores.delta(found[name], found[scores.BASE]) for name in names]
            said.append(f"{metric} {np.mean(gains):+.2f} {unit}")
    if not said:
        return "no deltas: the base model is not scored with the same judge, data and preset"
    return f"mean of {len(names)} against the base: {', '.join(said)}"


def foresee(config: AlpacaEvalConfig, names: Sequence[str]) -> list[Estimate]:
    """Lines of --dry-run for checkpoints of these names, each with the most dollars that it can cost; nothing is sent.

    Each is a pass of its own, and the judge is tried once before (try_judge). Raises InputError for what a pass could
    not use.
    """
    data = read_data(config)
    with open_store(Path(config.store)) as store:
        sent = Sent(store)
        found = [Checkpoint(name, Path(name)) for name in names]
        return _estimates(data, config, found, judge_client.judge_of(config, sent), sent, n_passes=len(names) + 1)


def _estimates(
    data: Data, config: AlpacaEvalConfig, found: Sequence[Checkpoint], judge: Judge, sent: Sent, n_passes: int = 1
) -> list[Estimate]:
    """The most that passes over all that is found can take, in lines: outputs as long as may be."""
    known, stages = sent.store.states(), []
    how = PRESETS[config.preset]
    if config.endpoint:
        asked = Model(found[0], config, sent).requests(
            {r["instruction"]: r["instruction"] for r in data.reference}, how
        )
        stages.append(estimate("outputs", asked, known, judge_client.client_of_model(config)))
    judged = (
        judge.request(
            {"messages": alpacaeval.messages(r["instruction"], r["output"], longest, data.template)} | ANNOTATOR
        )
        for longest in [f"{'x' * 4 * how.max_tokens}{c.name}" for c in found]
        for r in data.reference
    )
    client = judge_client.client_of_judge(config)
    tried = estimate("a question with a known answer", (_probe(judge, data, n) for n in range(n_passes)), known, client)
    return [*stages, tried, estimate("annotations", judged, known, client)]
