"""Writes the tables of docs/adapters.md between their marks, and what they say in brief into docs/lora.md; no figure of
them is typed.

    python -m examples.real.lora_page                                      from docs/records
    python -m examples.real.lora_page --demo runs/real/run-.../lora.json   with what the demo has found, kept there too

Marks are comments, <!-- NAME --> and <!-- end -->: `search` and `rates` are of examples.real.lora_search, `demo` is of
./launch.sh demo --real --lora, `bases` of examples.real.lora_bases, `memory` of engine.plan, which is asked anew. A
part whose record is not there says which command makes it.
"""

import argparse
import json
import re
import shutil
import textwrap
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from eval.tables import Table, number, to_markdown
from examples.real import lora_memory
from examples.real.measure import MAX_ANSWER_TOKENS, Share
from system import InputError, cli, files

DOCS = Path(__file__).resolve().parents[2] / "docs"
RECORDS = DOCS / "records"
NAMES = {"base": "before", "all": "all parameters", "lora": "LoRA"}
Record = Mapping[str, Any]


def main(argv: Sequence[str]) -> None:
    """The command."""
    parser = argparse.ArgumentParser(
        prog="python -m examples.real.lora_page",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--demo", type=Path, help="lora.json of a run of ./launch.sh demo --real --lora")
    asked = parser.parse_args(argv)
    if asked.demo is not None:
        if not asked.demo.is_file():
            raise InputError(f"--demo: {asked.demo}: not there; let ./launch.sh demo --real --lora end first")
        shutil.copyfile(asked.demo, RECORDS / "lora-demo.json")
    for name, made in (("adapters.md", parts()), ("lora.md", {"brief": in_brief()})):
        files.write_text(DOCS / name, filled((DOCS / name).read_text(encoding="utf-8"), made, name))


def in_brief() -> str:
    """The search and the demo in a paragraph each, as far as they are on record."""
    found, demo = records(RECORDS / "lora"), RECORDS / "lora-demo.json"
    said = [search_in_words(found)] if found else []
    said += [demo_in_words(json.loads(demo.read_text()))] if demo.exists() else []
    return "\n\n".join(textwrap.fill(one, 120, break_long_words=False, break_on_hyphens=False) for one in said if one)


def parts() -> dict[str, str]:
    """Every part of the page that is made, by its mark."""
    found = records(RECORDS / "lora")
    made = {"memory": lora_memory.text()}
    made |= dict(zip(("search", "rates"), map(to_markdown, search_tables(found)), strict=True)) if found else {}
    of_files: dict[str, tuple[str, Callable[[Record], str]]] = {
        "demo": ("lora-demo.json", lambda r: f"{demo_in_words(r)}\n\n{to_markdown(demo_table(r))}"),
        "bases": ("lora-bases.json", lambda r: to_markdown(bases_table(r))),
    }
    for name, (file, write) in of_files.items():
        if (RECORDS / file).exists():
            made[name] = write(json.loads((RECORDS / file).read_text()))
    missing = {
        "search": "python -m examples.real.lora_search", "rates": "python -m examples.real.lora_search",
        "demo": "./launch.sh demo --real --lora",
        "bases": "python -m examples.real.lora_bases runs/real/run-.../clair.jsonl",
    }  # fmt: skip
    return {name: f"Not measured yet: `{command}`." for name, command in missing.items()} | made


def filled(page: str, made: Mapping[str, str], page_name: str = "adapters.md") -> str:
    """The page with what was made between its marks. Raises InputError where a mark is not there once."""
    for name, text in made.items():
        between = re.compile(rf"(<!-- {name} -->\n).*?(<!-- end -->)", re.DOTALL)
        if len(between.findall(page)) != 1:
            raise InputError(f"{DOCS / page_name}: <!-- {name} --> has to occur once, followed by <!-- end -->")
        page = between.sub(lambda found, text=text: f"{found[1]}{text.strip()}\n{found[2]}", page)
    return page


# --- the search ----------------------------------------------------------------------------------------------------


def records(folder: Path) -> list[Record]:
    """What examples.real.lora_search has written so far."""
    return [json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))]


def top_rate(found: Mapping[float, Record]) -> float:
    """The rate at which most sampled answers keep their rule and do not repeat themselves; the smaller one of two."""
    return max(sorted(found), key=lambda rate: share(found[rate], "sampled", "sound").value)


def best_rate(found: Mapping[float, Record]) -> float:
    """The smallest rate at which no more than a standard error fewer answers do so than at the top one: larger rates
    that are better by chance are less stable.
    """
    top = share(found[top_rate(found)], "sampled", "sound")
    near = (rate for rate in found if share(found[rate], "sampled", "sound").value >= top.value - top.stderr)
    return min(near)


def share(record: Record, how: str, name: str) -> Share:
    """A share of a record's answers, those drawn in one way."""
    return Share(*record["scores"][how][name])


def search_tables(found: Sequence[Record]) -> tuple[Table, Table]:
    """(the comparison on the test's topics, every rate on development topics)."""
    return comparison(found), rates(found)


def search_in_words(found: Sequence[Record]) -> str:
    """What the comparison has found; nothing as long as one way has no run."""
    by_way = {way: [r for r in found if r["way"] == way and r["group"] == "test"] for way in ("all", "lora")}
    if not all(by_way.values()):
        return ""
    told = {}
    for way, runs in by_way.items():
        kept = _spread([100 * share(r, "sampled", "kept").value for r in runs], 1)
        minutes = _spread([sum(r["seconds"]) / 60 for r in runs], 1)
        told[way] = f"{kept} % of the rules in {minutes} minutes"
        told[f"{way} rate"] = f"(learning rate {runs[0]['lr']:g})"
        told[f"{way} price"] = _spread([r["ordinary"][0] for r in runs], 3, sign=True)
    n = min(map(len, by_way.values()))
    return (
        f"SmolLM2-135M-Instruct, the same CLAIR pairs, {n} seeds, each way at its best learning rate: an adapter of "
        f"rank {by_way['lora'][0]['lora_rank']} {told['lora rate']} keeps {told['lora']}, all parameters "
        f"{told['all rate']} keep {told['all']}. {' '.join(_difference(found))} The log-likelihood of ordinary "
        f"answers changes by {told['lora price']} nats a token with the adapter, and by {told['all price']} with all "
        "parameters."
    )


def comparison(found: Sequence[Record]) -> Table:
    """Each way to train at its best rate, over its seeds, and the model before."""
    rows = []
    for way, name in NAMES.items():
        runs = [r for r in found if r["way"] == way and r["group"] == "test"]
        if not runs:
            continue
        is_trained = way != "base"
        cells = [f"{name}, {runs[0]['lr']:g}" if is_trained else name, str(len(runs)) if is_trained else ""]
        for how, what in (("sampled", "kept"), ("greedy", "kept"), ("sampled", "sound")):
            cells.append(_spread([100 * share(r, how, what).value for r in runs], 1))
        cells.append(_spread([r["ordinary"][0] for r in runs], 3, sign=True) if is_trained else "")
        cells.append(_spread([sum(r["seconds"]) / 60 for r in runs], 1) if is_trained else "")
        cells.append(_spread([r["peak_bytes"] / 1e9 for r in runs], 2) if is_trained else "")
        rows.append(tuple(cells))
    header = ("", "seeds", "rules kept, T 0.7, %", "greedy, %", "kept and not repeating, T 0.7, %",
              "ordinary answers, nats a token", "minutes", "GB")  # fmt: skip
    return Table("search", "Each at its best rate", header, rows, 1, [*_difference(found), _about(found)])


def rates(found: Sequence[Record]) -> Table:
    """Every rate that was tried."""
    rows = []
    for way in ("all", "lora"):
        by_rate = {r["lr"]: r for r in found if r["way"] == way and r["group"] == "development"}
        for rate, record in sorted(by_rate.items()):
            taken = ", taken" if rate == best_rate(by_rate) else ""
            cells = [str(share(record, "sampled", what)) for what in ("kept", "sound")]
            rows.append((NAMES[way], f"{rate:g}{taken}", *cells, _with_error(record["ordinary"])))
    header = ("", "rate", "rules kept, T 0.7", "kept and not repeating", "ordinary answers, nats a token")
    n = next((share(r, "sampled", "kept").n for r in found if r["group"] == "development"), 0)
    notes = [
        f"One seed, {n} tasks on development topics; shares with 95 % intervals (Wilson). Taken: the smallest rate "
        "whose share is within a standard error of the best."
    ]
    notes += [stopped(r) for r in found if r["group"] == "stopped"]
    return Table("rates", "The rates that were tried", header, rows, 2, notes)


def stopped(run: Record) -> str:
    """What is to be said of a run that was stopped, since it did not come back."""
    chosen = run["logratios"]["chosen"]
    return (
        f"{NAMES[run['way']]} at {run['lr']:g} with seed {run['seed']} was stopped after {len(chosen)} of "
        f"{run['steps']} steps: the mean log-ratio of chosen responses was {chosen[1]:+.0f} nats after the first step "
        f"and {min(chosen):+.0f} at its lowest, and the loss stayed at {run['loss'][-1]:.2f}."
    )


def _difference(found: Sequence[Record]) -> list[str]:
    """What an adapter keeps more than all parameters, seed by seed, where both have been measured with several."""
    kept: dict[str, dict[int, float]] = {"all": {}, "lora": {}}
    for r in found:
        if r["way"] in kept and r["group"] == "test":
            kept[r["way"]][r["seed"]] = 100 * share(r, "sampled", "kept").value
    more = [kept["lora"][seed] - kept["all"][seed] for seed in sorted(kept["all"].keys() & kept["lora"].keys())]
    if len(more) < 2:
        return []
    seeds = ", ".join(f"{value:+.1f}" for value in more)
    return [
        f"Rules kept at T 0.7, LoRA less all parameters, seed by seed: {seeds} points, {_spread(more, 1, sign=True)}."
    ]


def _about(found: Sequence[Record]) -> str:
    """What the comparison is of."""
    trained = next((r for r in found if r["way"] != "base"), None)
    if trained is None:
        return "Nothing has been trained yet."
    rank = next((f" of rank {r['lora_rank']}" for r in found if r["way"] == "lora"), "")
    n = next((share(r, "sampled", "kept").n for r in found if r["group"] == "test"), 0)
    return (
        f"{trained['model']}, {trained['loss']} on {trained['n_pairs']} CLAIR pairs, {trained['epochs']} epochs in "
        f"batches of {trained['batch_size']}, RMSProp, beta {trained['beta']:g}; an adapter{rank} at every matrix of a "
        f"block. Means over seeds, ± their standard deviation; {n} tasks a seed on the test's topics, answers cut at "
        f"{MAX_ANSWER_TOKENS} tokens. Ordinary answers: change of the log-likelihood of the untrained model's answers "
        "to questions without a rule. Minutes are those of the steps, with the reference computed in the first epoch; "
        f"GB the most memory above the interpreter's own, at --micro-tokens {trained['micro_tokens']:,}. "
        f"{trained['machine']}, torch {trained['torch']}."
    )


def _spread(values: Sequence[float], digits: int, *, sign: bool = False) -> str:
    mean = number(fmean(values), digits, sign=sign)
    return mean if len(values) == 1 else f"{mean} ± {stdev(values):.{digits}f}"


def _with_error(mean_and_error: Sequence[float]) -> str:
    mean, error = mean_and_error
    return f"{mean:+.3f} ± {error:.3f}"


# --- the demo ------------------------------------------------------------------------------------------------------


def ratios(record: Record) -> dict[str, list[float]]:
    """Of each round: how many times the steps a second of all parameters an adapter's are, while the reference is
    computed ("first") and from epoch 2 on ("later"), and its share of their memory ("memory").
    """
    both = list(zip(record["rounds"]["all"], record["rounds"]["lora"], strict=True))
    return {
        "first": [a["seconds"][0] / b["seconds"][0] for a, b in both],
        "later": [a["seconds"][1] / b["seconds"][1] for a, b in both],
        "memory": [b["peak_bytes"] / a["peak_bytes"] for a, b in both],
    }


def demo_in_words(record: Record) -> str:
    """What the demo has found, in a paragraph."""
    found, (first, later) = ratios(record), record["by_operations"]
    expected = _expected(record)
    kept = {name: share({"scores": scores}, "sampled", "kept") for name, scores in record["scores"].items()}
    return (
        f"In the demo (learning rate {record['lr']:g}) an adapter of rank {record['lora_rank']} makes "
        f"{fmean(found['first']):.2f} times the steps a second of all parameters in epoch 1, while the reference is "
        f"computed, and {fmean(found['later']):.2f} times from epoch 2 on; by the operations that each needs it would "
        f"be {first:.2f} and {later:.2f}. Both have the same pairs and --micro-tokens {record['micro_tokens']}. The "
        f"adapter takes {fmean(found['memory']):.2f} of the memory (the plan says "
        f"{expected['lora'] / expected['all']:.2f}: {expected['lora'] / 1e9:.2f} GB of {expected['all'] / 1e9:.2f}), "
        f"not counting what Python and its libraries take. It keeps {kept['lora']} of the rules, the model before "
        f"{kept['base']}."
    )


def _expected(record: Record) -> dict[str, int]:
    return {name: rounds[0]["expected_bytes"] for name, rounds in record["rounds"].items()}


def demo_table(record: Record) -> Table:
    """Speed, memory and gain."""
    found, rounds, expected = ratios(record), record["rounds"], _expected(record)

    def row(name: str, value: Callable[[Record], float], ratio: str, digits: int = 2) -> tuple[str, ...]:
        means = (number(fmean(map(value, rounds[way])), digits) for way in ("all", "lora"))
        low, high = min(found[ratio]), max(found[ratio])
        return (name, "", *means, f"{fmean(found[ratio]):.2f} ({low:.2f} to {high:.2f})")

    planned = [number(expected[way] / 1e9) for way in ("all", "lora")]
    rows = [
        ("numbers that train", "", f"{record['n_parameters']:,}", f"{record['n_trained']:,}", ""),
        row("steps a minute, epoch 1", lambda r: 60 / r["seconds"][0], "first"),
        row("steps a minute, from epoch 2", lambda r: 60 / r["seconds"][1], "later"),
        row("most memory, GB", lambda r: r["peak_bytes"] / 1e9, "memory"),
        ("expected, GB", "", *planned, f"{expected['lora'] / expected['all']:.2f}"),
    ]
    for name, how, what in (
        ("rules kept, T 0.7", "sampled", "kept"), ("rules kept, greedy", "greedy", "kept"),
        ("kept and not repeating, T 0.7", "sampled", "sound"), ("empty or repeating, T 0.7", "sampled", "broken"),
    ):  # fmt: skip
        shares = {way: share({"scores": scores}, how, what) for way, scores in record["scores"].items()}
        rows.append((name, str(shares["base"]), "", str(shares["lora"]), ""))
    rows.append(("ordinary answers, nats a token", "", "", _with_error(record["ordinary"]), ""))
    note = (
        f"{record['model']}, {record['loss']} on {record['n_pairs']} CLAIR pairs, {record['epochs']} epochs in batches "
        f"of {record['batch_size']}, the adapter at {record['lr']:g}. Speed and memory: {record['n_timed']} of the "
        f"pairs for two epochs, {len(rounds['all'])} rounds in turn, each a process of its own, the first step of an "
        "epoch not counted; the ratio with its least and its most. Shares with 95 % intervals (Wilson). "
        f"{record['machine']}, torch {record['torch']}."
    )
    header = ("", "before", "all parameters", "LoRA", "ratio")
    return Table("demo", "Real model, adapter of rank " + str(record["lora_rank"]), header, rows, 1, [note])


# --- quantised bases -----------------------------------------------------------------------------------------------


def bases_table(record: Record) -> Table:
    """What each way to hold the base changes."""
    rows = []
    for kind, found in record["bases"].items():
        change = found["logps"]
        bits = 16 * found["bytes"] / found["float_bytes"]
        rows.append((
            kind, number(bits), number(found["matrix_error"], 4), number(found["kl"], 4),
            number(fmean(change), 2, sign=True), number(max(map(abs, change)), 1),
        ))  # fmt: skip
    header = ("base", "bits a number", "relative error of the matrices", "KL, nats a token",
              "log-prob of a response, mean change, nats", "most")  # fmt: skip
    note = (
        f"{record['model']}, {record['n_pairs']} pairs, {record['n_tokens']:,} response tokens, against the same "
        f"weights held whole; computed in float32. {record['machine']}, torch {record['torch']}."
    )
    return Table("bases", "What a quantised base changes", header, rows, 1, [note])


if __name__ == "__main__":
    cli.run(main)
