"""A pass over MixEval-Hard: answers, judgments, scores, for every checkpoint of a run or for one model.

    python -m eval mixeval runs/first --mixeval path/to/MixEval --store judge.sqlite \\
        --judge-endpoint http://localhost:8000/v1 --judge NAME

Each stage goes on where it stopped: answers are a file for each checkpoint, version and split; judgments are in the
store, so that a killed pass pays for nothing twice and comes to the same scores. Files are named and filled as
upstream's are, so that its scorer can read them; scores are appended to OUT/scores.jsonl.
"""

import dataclasses
import hashlib
import json
import random
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import tyro
from tqdm import tqdm

from data import cli, files
from data.errors import InputError
from data.records import Message
from eval import mixeval
from eval.mixeval import SPLITS, Split, Wording
from revise.client import Answered, ClientConfig, Request, Store, answer_all, answered, endpoints_of, open_store

EXAMPLE = (
    "python -m eval mixeval runs/first --mixeval path/to/MixEval --store judge.sqlite"
    " --judge-endpoint http://localhost:8000/v1 --judge NAME"
)
VERSIONS = ("2024-06-01", "2024-08-11")
SHA256 = {  # of the published data
    ("2024-06-01", "free-form"): "55167abde842c86b80504913eaf839a2fbd7e96b4332eb69406f583dbb6ce7c5",
    ("2024-06-01", "multiple-choice"): "11e57fa2e1bc6bd3529167e4353991cae7c548e55ccf5067ef42a95971397af1",
    ("2024-08-11", "free-form"): "4784526892f825d421a43a3c34a139adcfa9f8b17d1898b7e5c57079fecf5b4e",
    ("2024-08-11", "multiple-choice"): "3015ee7cc02f20ae7e412e0b42919a9a7d361c6c37de36db5ada38a576a36fea",
}
NAMES = {"free-form": ("close_freeform", "ff"), "multiple-choice": ("close_multichoice", "mp")}  # in upstream's files
PRESETS = {"stable": {"temperature": 0.0, "top_p": 1.0}, "paper": {"temperature": 0.6, "top_p": 0.9}}
MAX_TOKENS, JUDGE_TOKENS, SEED = 512, 999, 42
N_BOOTSTRAP = 2000


@dataclass(frozen=True, kw_only=True)
class MixEvalConfig(ClientConfig):
    """Score checkpoints on MixEval-Hard with the judge of your choice.

    --endpoint and --model name a server that answers in the place of the checkpoint (vLLM, for large models).
    """

    what: tyro.conf.Positional[str]
    """A run's folder, whose epoch-... are scored, or a checkpoint's; with --endpoint a name for the served model."""
    mixeval: str
    """Your checkout of MixEval: its data and the wording of its requests are read from there, its code is not run."""
    version: tuple[str, ...] = VERSIONS
    """Which of its data."""
    judge_endpoint: tuple[str, ...]
    """Address of an OpenAI-compatible server of the judge."""
    judge: str
    """The judge's name there; upstream's own, gpt-3.5-turbo-0125, is retired."""
    judge_key_env: tuple[str, ...] = ("OPENAI_API_KEY",)
    """Environment variable of the judge's API key."""
    preset: Literal["stable", "paper"] = "stable"
    """How answers are drawn: greedily, or at the temperature 0.6 and top-p 0.9 that upstream has for Llama-3."""
    rounds: int = 10
    """How often the judge is asked again where its answer has no score; upstream's number."""
    fallback: Literal["random", "zero"] = "random"
    """What a query without a score after that counts: a draw, as upstream does, or nothing. They are counted."""
    dedupe: bool = True
    """Judge equal answers to equal queries once; --no-dedupe judges each, as upstream does."""
    any_data: bool = False
    """Take data of another checksum, and say so."""
    out: str | None = None
    """Folder for answers, judgments and scores. Unset: eval/ in the run's or checkpoint's folder."""
    config: str | None = None
    """YAML file of settings, named as the flags are; flags win over it."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if unknown := [version for version in self.version if version not in VERSIONS]:
            raise InputError(f"--version: {unknown[0]!r} is not one of {', '.join(VERSIONS)}")
        if self.rounds < 1:
            raise InputError("--rounds: at least 1")
        if self.endpoint and not self.model:
            raise InputError("--endpoint needs the model's name there: --model")
        if not self.endpoint and not Path(self.what).is_dir():
            raise InputError(f"{self.what}: no such folder; give a run's, a checkpoint's, or a server by --endpoint")


Entries = dict[Split, dict[str, dict[str, Any]]]


class Scored(NamedTuple):
    """What a version's queries came to."""

    scores: dict[Split, dict[str, float]]
    judged: dict[Split, dict[str, dict[str, Any]]]
    """Fields for upstream's files: judge_response, and judge_score or judge_option."""
    n_fallbacks: int


def main(argv: Sequence[str]) -> None:
    """The command."""
    config = cli.parse(MixEvalConfig, argv, command="python -m eval mixeval", example=EXAMPLE)
    wording = mixeval.read_wording(config.mixeval)
    data = {
        version: read_entries(Path(config.mixeval), version, any_data=config.any_data) for version in config.version
    }
    judge = dataclasses.replace(
        config, endpoint=config.judge_endpoint, model=config.judge, key_env=config.judge_key_env
    )
    endpoints = endpoints_of(judge.endpoint, judge, flag="--judge-endpoint")
    checkpoints = [Path(config.what)] if config.endpoint else _checkpoints(Path(config.what))
    out = Path(config.out) if config.out else Path(config.what) / "eval"
    n_sent = 0

    def ask(requests: Iterable[Request]) -> None:
        nonlocal n_sent
        n_sent += answer_all(requests, store, judge.after(n_sent), endpoints, purpose="judge").n_sent

    with open_store(Path(config.store)) as store:
        if config.dry_run:
            n = len(checkpoints) * sum(len(d) for version in data.values() for d in version.values())
            print(f"{len(checkpoints)} checkpoints: at most {n:,} answers and as many judgments; nothing was sent")
            return
        for checkpoint in checkpoints:
            for version, entries in data.items():
                folder = out / checkpoint.name / "mixeval_hard" / version
                responses = _responses(checkpoint, entries, wording, folder, config, store)
                scored = judge_all(entries, responses, wording, config, store, ask)
                _write(folder, checkpoint.name, entries, responses, scored, config, wording)
                print(_tell(checkpoint.name, version, entries, scored, config), flush=True)


def _checkpoints(folder: Path) -> list[Path]:
    """A run's epochs, in order, or the one checkpoint. Raises InputError where there is neither."""
    if (folder / "config.json").is_file():
        return [folder]
    found = sorted(path for path in folder.glob("epoch-*") if (path / "config.json").is_file())
    if not found:
        raise InputError(f"{folder}: neither a checkpoint nor a run with epochs; give one of them")
    return found


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
    checkpoint: Path, entries: Entries, wording: Wording, folder: Path, config: MixEvalConfig, store: Store
) -> dict[Split, dict[str, str]]:
    """The model's answers to all queries: from the files where they are, else drawn and written."""
    found: dict[Split, dict[str, str]] = {}
    for split, queries in entries.items():
        path = folder / f"{checkpoint.name}_{NAMES[split][0]}_hard.jsonl"
        prompts = {name: mixeval.format_prompt(entry, split, wording) for name, entry in queries.items()}
        kept = _read_responses(path, prompts, config.preset)
        if kept is None:
            texts = _served(prompts, config, store) if config.endpoint else _drawn(checkpoint, prompts, config)
            rows = [
                entry | {"formated_input": prompts[name], "id": name, "response": texts[name], "preset": config.preset}
                for name, entry in queries.items()
            ]
            files.write_rows(path, rows)
            kept = texts
        found[split] = kept
    return found


def _read_responses(path: Path, prompts: Mapping[str, str], preset: str) -> dict[str, str] | None:
    if not path.is_file():
        return None
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    fits = {row["id"]: row["formated_input"] for row in rows} == prompts and all(
        r.get("preset") == preset for r in rows
    )
    if not fits:
        raise InputError(
            f"{path}: holds answers to other prompts or of another preset; give another --out, or remove it"
        )
    return {row["id"]: row["response"] for row in rows}


def _drawn(checkpoint: Path, prompts: Mapping[str, str], config: MixEvalConfig) -> dict[str, str]:
    """Answers of a checkpoint, drawn here."""
    from engine.generate import Answerer, Sampling  # it brings torch, which a served model does without

    answerer = Answerer.open(str(checkpoint))
    ids = [answerer.prompt_ids(f"query {name}", [Message("user", prompt)]) for name, prompt in prompts.items()]
    preset = PRESETS[config.preset]
    sampling = Sampling(max_new_tokens=MAX_TOKENS, seed=SEED, temperature=preset["temperature"], top_p=preset["top_p"])
    with tqdm(total=len(ids), unit="answer", desc=checkpoint.name, disable=None) as bar:
        answers = answerer.answer(ids, sampling, lambda answer: bar.update())
    return {name: answerer.text(answer) for name, answer in zip(prompts, answers, strict=True)}


def _served(prompts: Mapping[str, str], config: MixEvalConfig, store: Store) -> dict[str, str]:
    """Answers of a served model. Raises InputError where one has none that can be used."""
    body = {"model": config.model, "max_tokens": MAX_TOKENS, "seed": SEED, **PRESETS[config.preset]}
    requests = {
        name: Request(body | {"messages": [{"role": "user", "content": prompt}]}) for name, prompt in prompts.items()
    }
    answer_all(requests.values(), store, config, endpoints_of(config.endpoint, config), purpose="answer")
    found = {name: answered(store, request) for name, request in requests.items()}
    if missing := [name for name, a in found.items() if a.completion is None]:
        why = found[missing[0]].fault
        raise InputError(f"{len(missing)} of {len(found)} queries have no answer ({why}); the same command asks again")
    return {name: a.completion.text for name, a in found.items() if a.completion}


# --- judgments -----------------------------------------------------------------------------------------------------


def judge_all(
    entries: Entries,
    responses: dict[Split, dict[str, str]],
    wording: Wording,
    config: MixEvalConfig,
    store: Store,
    ask: Callable[[Iterable[Request]], None],
) -> Scored:
    """Has every answer judged, those without a score again in the next round, and counts what is left by a fallback."""
    scored = Scored({s: {} for s in SPLITS}, {s: {} for s in SPLITS}, 0)
    n_left = 0
    for number in range(config.rounds):
        requests = dict(_requests(entries, responses, wording, config, scored, number))
        if not requests:
            break
        ask(requests.values())
        for (split, name), request in requests.items():
            _take(scored, split, name, entries[split][name], answered(store, request))
    for split, queries in entries.items():
        for name, entry in queries.items():
            if name not in scored.scores[split]:
                n_left += 1
                _fall_back(scored, split, name, entry, config.fallback)
    return scored._replace(n_fallbacks=n_left)


def _requests(
    entries: Entries,
    responses: dict[Split, dict[str, str]],
    wording: Wording,
    config: MixEvalConfig,
    scored: Scored,
    number: int,
) -> Iterator[tuple[tuple[Split, str], Request]]:
    n_equal: dict[str, int] = defaultdict(int)
    for split, queries in entries.items():
        for name, entry in queries.items():
            messages = mixeval.judge_messages(entry, responses[split][name], split, wording)
            body = {"model": config.judge, "messages": messages, "max_tokens": JUDGE_TOKENS}
            request = Request(body | {"response_format": {"type": "text"}}, number)
            if not config.dedupe:
                request, n_equal[request.key] = (
                    request._replace(occurrence=n_equal[request.key]),
                    n_equal[request.key] + 1,
                )
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
) -> None:
    """Upstream's files of judgments, score.json, and lines of scores.jsonl."""
    judge = config.judge.replace("/", "_")
    for split, queries in entries.items():
        rows = [
            entry | {"id": key, "response": responses[split][key]} | scored.judged[split][key]
            for key, entry in queries.items()
        ]
        files.write_rows(folder / f"judge_results_{NAMES[split][1]}_model_judge_{judge}.jsonl", rows)
    tables = {mode: mixeval.aggregate(scored.scores, entries, mode) for mode in ("table4_compat", "merged")}
    facts = {"judge": config.judge, "preset": config.preset, "wording_sha256": wording.sha256}
    facts |= {"n_fallbacks": scored.n_fallbacks, "fallback": config.fallback, "judged_once": config.dedupe}
    with files.whole_file(folder / "score.json") as temporary:
        temporary.write_text(json.dumps(tables | facts, indent=1) + "\n", encoding="utf-8")
    error = standard_error(entries, scored.scores)
    n = sum(map(len, entries.values()))
    lines = [
        {"checkpoint": name, "benchmark": "mixeval-hard", "version": folder.name, "metric": f"{mode}/{metric}"}
        | {"value": value, "stderr": error if metric == "overall" else None, "n": n, **facts}
        for mode, table in tables.items()
        for metric, value in table.items()
    ]
    _append_scores(folder.parents[2] / "scores.jsonl", lines)


def _append_scores(path: Path, lines: Sequence[dict[str, Any]]) -> None:
    """Adds scores; the same ones (all but value and error equal) are replaced, so that a repeated pass adds nothing."""
    key = lambda line: tuple(line.get(k) for k in ("checkpoint", "benchmark", "version", "metric", "judge", "preset"))  # noqa: E731
    old = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.is_file() else []
    new = {key(line) for line in lines}
    files.write_rows(path, [*(line for line in old if key(line) not in new), *lines])


def _tell(name: str, version: str, entries: Entries, scored: Scored, config: MixEvalConfig) -> str:
    table = mixeval.aggregate(scored.scores, entries, "table4_compat")
    error = standard_error(entries, scored.scores)
    said = f"{name}  {version}  {100 * table['overall']:.2f} +- {100 * error:.2f}  (judge {config.judge}"
    if scored.n_fallbacks:
        said += f"; {scored.n_fallbacks} queries without a judgment counted by the fallback {config.fallback}"
    return said + ")"
