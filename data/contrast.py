"""How much winners and losers differ: the measures of Table 1 of arXiv 2408.06266, and what stands behind them.

    python -m data.contrast clair.jsonl judge.jsonl        one row each, side by side

Minimally contrastive pairs share most of their words: a high Jaccard similarity, a low edit distance. The paper does
not say what its tokens are, so both are given: words (what stands between blanks), and, with --tokenizer, the model's
token ids.

    Jaccard        size of the intersection over size of the union, of the two responses' sets of words (or ids)
    Levenshtein    least number of single characters to insert, delete or replace
    copied         share of the loser's words that stand in the winner in the same order (longest common subsequence)
    revised        share of the winner's tokens, and of the loser's, that do not stand in the other one, whole words
                   taken together (data/revisions.py); without --tokenizer the share of its words
    length ratio   characters of the winner over those of the loser

A response is what the assistant says in it: its thoughts, contents and calls of tools, message by message. What a tool
answers is left out, as no one learns to say it.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tyro
from rapidfuzz.distance import LCSseq, Levenshtein
from rapidfuzz.process import cpdist

from data.revisions import revised
from data.rows import NotUsed, ReadingSettings, Record, find_model, is_model_folder, load_preferences, open_folder
from data.text import Message, Tokenizer
from system import InputError, cli, files
from system.flags import PathText

EXAMPLE = "python -m data.contrast pairs.jsonl"
CHUNK = 512  # texts that are encoded together
QUANTILES = (10, 25, 50, 75, 90)
TABLE_1 = (  # Jaccard in per cent, Levenshtein: the paper's four sets, answers of Llama-3-8B-Instruct
    ("CLAIR", 43.11, 1108),
    ("on-policy judge", 39.06, 1258),
    ("off-policy judge", 18.05, 1203),
    ("Stronger Preferred", 24.35, 1607),
)


@dataclass(frozen=True, kw_only=True)
class ContrastConfig(ReadingSettings):
    """Measure how much winners and losers differ in preference files, as in Table 1 of arXiv 2408.06266."""

    files: tyro.conf.Positional[tuple[PathText, ...]]
    """Pairs, or ranked answers whose best and worst are compared: .jsonl, .json, .csv or .parquet files, folders of
    such files, or hub ids."""
    tokenizer: PathText | None = None
    """Checkpoint folder or hub id whose tokenizer is used to measure tokens too. Unset: only words and characters are
    measured."""
    paper: bool = False
    """Add the paper's published values for its four data sets to the table (Table 1)."""
    skip_bad_rows: bool = False
    """Skip rows that cannot be used. By default such rows are an error."""
    plot: PathText | None = None
    """File for histograms of the measures (.png, .svg or .pdf); needs matplotlib."""
    out: PathText | None = None
    """JSON file for the mean and the quantiles of every measure."""
    config: PathText | None = None
    """YAML file with settings under the names of the flags. Flags on the command line win over it."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.files:
            raise InputError(f"python -m data.contrast needs files, such as: {EXAMPLE}")
        if self.plot is not None and Path(self.plot).suffix not in (".png", ".svg", ".pdf"):
            raise InputError(f"--plot: {self.plot} has to end in .png, .svg or .pdf")


class Contrast(NamedTuple):
    """Measures of every pair of a file, each [n]."""

    jaccard_words: np.ndarray
    """0 to 1."""
    jaccard_tokens: np.ndarray | None
    """0 to 1; None without a tokenizer."""
    levenshtein: np.ndarray
    """Characters."""
    copied: np.ndarray
    """0 to 1."""
    chosen_length: np.ndarray
    """Characters."""
    rejected_length: np.ndarray
    """Characters."""
    chosen_revised_words: np.ndarray
    """0 to 1, of the winner's words."""
    rejected_revised_words: np.ndarray
    """0 to 1, of the loser's."""
    chosen_revised_tokens: np.ndarray | None
    """0 to 1, of the winner's tokens; None without a tokenizer."""
    rejected_revised_tokens: np.ndarray | None
    """0 to 1, of the loser's."""

    @property
    def revised(self) -> tuple[np.ndarray, np.ndarray]:
        """The shares that were revised, of winners and of losers: of tokens, of words without a tokenizer."""
        if self.chosen_revised_tokens is None or self.rejected_revised_tokens is None:
            return self.chosen_revised_words, self.rejected_revised_words
        return self.chosen_revised_tokens, self.rejected_revised_tokens

    @property
    def length_ratio(self) -> np.ndarray:
        """Winner's length over the loser's."""
        return self.chosen_length / np.maximum(1, self.rejected_length)

    def measures(self) -> dict[str, np.ndarray]:
        """What there is of every pair, by name."""
        found = {name: value for name, value in self._asdict().items() if value is not None}
        return found | {"length_ratio": self.length_ratio}

    def summary(self) -> dict[str, dict[str, float]]:
        """Mean, and the 10, 25, 50, 75 and 90 % points, of each measure."""
        return {
            name: {"mean": float(values.mean())} | {f"p{q}": float(np.percentile(values, q)) for q in QUANTILES}
            for name, values in self.measures().items()
        }


def jaccard(left: Sequence[object], right: Sequence[object]) -> float:
    """Intersection over union of two sequences' sets; 1 where both are empty."""
    a, b = set(left), set(right)
    return len(a & b) / len(a | b) if a or b else 1.0


def contrast(pairs: Sequence[tuple[str, str]], tokenizer: Tokenizer | None = None) -> Contrast:
    """The measures of pairs of texts (winner, loser); edit distances on all cores."""
    winners, losers = [w for w, _ in pairs], [l for _, l in pairs]  # noqa: E741
    words = [(w.split(), l.split()) for w, l in pairs]  # noqa: E741
    distances = cpdist(winners, losers, scorer=Levenshtein.distance, workers=-1, dtype=np.int64)
    common = np.array([LCSseq.similarity(w, l) for w, l in words])  # noqa: E741
    n_w, n_l = (np.array([len(pair[k]) for pair in words]) for k in (0, 1))
    tokens = None if tokenizer is None else _of_tokens(winners, losers, tokenizer)
    return Contrast(
        jaccard_words=np.array([jaccard(w, l) for w, l in words]),  # noqa: E741
        jaccard_tokens=None if tokens is None else tokens[:, 0],
        levenshtein=distances,
        copied=common / np.maximum(1, n_l),
        chosen_length=np.array([len(w) for w in winners]),
        rejected_length=np.array([len(l) for l in losers]),  # noqa: E741
        chosen_revised_words=(n_w - common) / np.maximum(1, n_w),
        rejected_revised_words=(n_l - common) / np.maximum(1, n_l),
        chosen_revised_tokens=None if tokens is None else tokens[:, 1],
        rejected_revised_tokens=None if tokens is None else tokens[:, 2],
    )


def _of_tokens(winners: list[str], losers: list[str], tokenizer: Tokenizer) -> np.ndarray:
    """[n, 3] Jaccard similarity of token ids, the shares of the winner's and of the loser's tokens that were revised.

    Some at a time: an encoder takes some 70 times the memory of a text.
    """
    made = []
    for start in range(0, len(winners), CHUNK):
        ids = (tokenizer.encode(texts[start : start + CHUNK]) for texts in (winners, losers))
        for w, l in zip(*ids, strict=True):  # noqa: E741
            flags = revised(np.array(w, dtype=np.int32), np.array(l, dtype=np.int32), tokenizer)
            made.append((jaccard(w, l), *(side.mean() if len(side) else 0.0 for side in flags)))
    return np.array(made).reshape(-1, 3)


def table(found: dict[str, Contrast], *, paper: bool = False) -> str:
    """Table 1 in Markdown: a row a file, means over its pairs; then the distribution of each measure. paper: the
    paper's own rows too, whose Jaccard similarity is of tokens.
    """
    has_tokens = any(c.jaccard_tokens is not None for c in found.values())
    shows_tokens = has_tokens or paper
    titles = ["pairs", "Jaccard, words (%)", *(["Jaccard, tokens (%)"] if shows_tokens else []), "Levenshtein"]
    revised_of = f"revised {'tokens' if has_tokens else 'words'}"
    titles += [
        "copied (%)",
        f"{revised_of}, winner (%)",
        "loser",
        "winner, characters",
        "loser",
        "length ratio, median",
    ]
    lines = [_line("", *titles), "|---" * (len(titles) + 1) + "|"]
    for name, c in found.items():
        jaccards = [c.jaccard_words, *([c.jaccard_tokens] if c.jaccard_tokens is not None else [])]
        cells = [f"{len(c.copied):,}", *(f"{100 * values.mean():.2f}" for values in jaccards)]
        cells += ["-"] * (1 + shows_tokens - len(jaccards))
        cells += [f"{c.levenshtein.mean():,.0f}"]
        cells += [f"{100 * shares.mean():.1f}" for shares in (c.copied, *c.revised)]
        cells += [f"{c.chosen_length.mean():,.0f}", f"{c.rejected_length.mean():,.0f}"]
        lines.append(_line(name, *cells, f"{np.median(c.length_ratio):.2f}"))
    if paper:
        gap = ["-"] * (len(titles) - 4)
        lines += [
            _line(
                f"{name} (the paper's; its tokens are not said)", "-", "-", f"{similarity:.2f}", f"{distance:,}", *gap
            )
            for name, similarity, distance in TABLE_1
        ]
    lines += ["", _line("", "measure", "mean", *(f"{q} %" for q in QUANTILES)), "|---" * (3 + len(QUANTILES)) + "|"]
    for name, c in found.items():
        for measure, values in c.summary().items():
            lines.append(_line(name, measure.replace("_", " "), *(f"{value:,.4g}" for value in values.values())))
    return "\n".join(lines)


def _line(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


def draw(found: dict[str, Contrast], path: Path, kind: str) -> None:
    """A picture (kind: png, svg, pdf): histograms of similarity, distance and length ratio, the files in one."""
    try:
        import matplotlib
    except ImportError:
        raise InputError("--plot: drawing needs matplotlib; pip install matplotlib") from None
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 3, figsize=(12, 3.2), constrained_layout=True)
    kinds = (("jaccard_words", "Jaccard, words"), ("levenshtein", "Levenshtein"), ("length_ratio", "length ratio"))
    for axis, (measure, title) in zip(axes, kinds, strict=True):
        values = {name: c.measures()[measure] for name, c in found.items()}
        highest = max(float(np.percentile(v, 99)) for v in values.values())
        for name, v in values.items():
            axis.hist(v.clip(max=highest), bins=40, range=(0, highest or 1), histtype="step", label=name, density=True)
        axis.set_title(title)
        axis.set_yticks([])
    axes[0].legend(fontsize=8)
    figure.savefig(path, format=kind)
    plt.close(figure)


def main(argv: Sequence[str]) -> None:
    """The command."""
    config = cli.parse(ContrastConfig, argv, command="python -m data.contrast", example=EXAMPLE)
    for path in filter(None, (config.out, config.plot)):
        files.check_new_file(Path(path))
    tokenizer = _tokenizer_of(config.tokenizer) if config.tokenizer else None
    found = {name: contrast(_pairs(name, config, tokenizer), tokenizer) for name in config.files}
    print(table(found, paper=config.paper))
    if config.plot:
        with files.whole_file(Path(config.plot)) as temporary:
            draw(found, temporary, Path(config.plot).suffix.removeprefix("."))
    if config.out:
        files.write_json(Path(config.out), {n: {"pairs": len(c.copied)} | c.summary() for n, c in found.items()})


def _tokenizer_of(name: str) -> Tokenizer:
    """That of a folder or hub id: a model's, an adapter's or its base's, or a tokenizer alone. Raises InputError."""
    folder = find_model(name)
    found = open_folder(name)[1] if is_model_folder(folder) else Tokenizer(folder)
    if found is None:
        raise InputError(f"{folder}: has no tokenizer; give a folder that has one with --tokenizer")
    return found


def _pairs(name: str, config: ContrastConfig, tokenizer: Tokenizer | None) -> list[tuple[str, str]]:
    records = load_preferences(name, skip_bad_rows=config.skip_bad_rows, reading=config.reading)
    not_used = NotUsed()
    for record in records:
        not_used.add(record)
    for sentence in not_used.sentences():
        cli.notify(f"{name}: {sentence}")
    return texts_of(records, tokenizer)


def texts_of(records: Sequence[Record], tokenizer: Tokenizer | None = None) -> list[tuple[str, str]]:
    """What the assistant says in winner and loser of each pair. tokenizer: of rows of token ids.

    Raises InputError where a row is no pair, or one of token ids whose tokenizer is not known.
    """
    pairs = []
    for r in records:
        if len(r.responses) != 2:
            raise InputError(f"{r.location}: not a pair; contrast is measured on pairs of texts")
        if r.is_tokenised and tokenizer is None:
            raise InputError(
                f"{r.location}: a pair of token ids, but contrast is measured on texts; give their --tokenizer"
            )
        if r.is_tokenised and tokenizer is not None:
            winner, loser = (tokenizer.decode([i for i in ids if isinstance(i, int)]) for ids in r.responses)
        else:
            winner, loser = (_said(response) for response in r.conversations)
        pairs.append((winner, loser))
    return pairs


def _said(response: Sequence[Message]) -> str:
    """What the assistant says in a response, divided by blank lines."""
    parts: list[str] = []
    for message in response:
        if message.role == "assistant":
            parts += [message.reasoning_content or "", message.content, *map(_spelled, message.tool_calls or ())]
    return "\n\n".join(filter(None, parts))


def _spelled(call: Mapping[str, Any]) -> str:
    """A call as text: the function's name and its arguments, whether the row has these as an object or as text."""
    function = call.get("function", call)
    arguments = function.get("arguments", {})
    if not isinstance(arguments, str):
        arguments = json.dumps(arguments, ensure_ascii=False)
    return f"{function.get('name', '')} {arguments}"


if __name__ == "__main__":
    cli.run(main)
