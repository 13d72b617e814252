"""Tokens a second of engine.generate beside transformers' generate, on the same weights and prompts.

    python -m engine.bench_generation --shape tiny

200 prompts of mixed length are answered at temperature 1; one token in 96 of the vocabulary ends an answer, so that
answers are of mixed length too. transformers answers them 1, 8 and 32 at a time, sorted by length, padded on the left;
its fastest counts. Both in one run, in turn.
"""

import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from data.rows import open_model
from engine import weights
from engine.bench.bench import device_name, write_model
from engine.config import host
from engine.sampling import Sampling, generate
from system import InputError, cli
from system.flags import PathText, check_above_zero

EXAMPLE = "python -m engine.bench_generation --shape tiny"
PROMPT_TOKENS = (119, 0.8)  # UltraFeedback's prompts: median, and spread of their logarithms
SHORTEST, LONGEST = 8, 512
ENDING = 96  # one token in so many ends an answer


@dataclass(frozen=True, kw_only=True)
class BenchGenerationConfig:
    """Measure the tokens per second of engine.generate and of transformers on the same prompts."""

    shape: PathText
    """Model to measure: a name from engine.plan --shape, with random weights, or a checkpoint folder with its own."""
    layers: int | None = None
    """Number of layers, for a smaller version of a named shape. Unset: all of them."""
    prompts: int = 200
    """Number of prompts, of random token ids with the lengths of UltraFeedback's prompts."""
    max_new_tokens: int = 256
    """Maximum number of tokens per answer."""
    batch_size: int = 256
    """Number of answers that engine.generate decodes at the same time."""
    peer_batch_sizes: tuple[int, ...] = (1, 8, 32)
    """Batch sizes to measure transformers with; the fastest one is compared with engine.generate."""
    peer: bool = True
    """Measure transformers as well. --no-peer measures engine.generate alone."""
    rounds: int = 1
    """Number of measurements of engine.generate and transformers, alternating. The ratio compares their medians."""
    config: PathText | None = None
    """YAML file of settings with the names of these flags. Flags on the command line win over the file."""

    def __post_init__(self) -> None:
        check_above_zero(self, "prompts", "max_new_tokens", "batch_size", "rounds")
        if (least := min(self.peer_batch_sizes, default=1)) < 1:
            raise InputError(f"--peer-batch-sizes: {least} has to be above 0")


def main(argv: Sequence[str]) -> None:
    """The command."""
    config = cli.parse(BenchGenerationConfig, argv, command="python -m engine.bench_generation", example=EXAMPLE)
    with tempfile.TemporaryDirectory() as folder:
        if Path(config.shape).is_dir():
            model, _ = open_model(config.shape)
        else:
            model = Path(folder) / "model"
            write_model(model, config.shape, config.layers)
        print(f"{device_name()}; python -m engine.bench_generation {' '.join(argv)}")
        measure(model, config)


def _theirs(folder: Path, dtype: torch.dtype, device: str) -> Any:
    from transformers import AutoModelForCausalLM

    found: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)
    return found.to(device).eval()


def measure(folder: Path, config: BenchGenerationConfig) -> None:
    """Prints a line for each that is measured, and the ratio of ours to their fastest."""
    host.keep_pages()  # for both
    warnings.simplefilter("ignore")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    ours = weights.load(folder, dtype, device).eval()
    theirs = _theirs(folder, dtype, device) if config.peer else None
    rng, size = np.random.default_rng(0), ours.config.vocab_size
    median, spread = PROMPT_TOKENS
    longest = min(LONGEST, (ours.config.context or 2 * LONGEST) // 2)
    config = replace(config, max_new_tokens=min(config.max_new_tokens, longest))
    lengths = np.exp(np.log(median) + spread * rng.standard_normal(config.prompts)).clip(SHORTEST, longest).astype(int)
    prompts = [rng.integers(0, size, n).tolist() for n in lengths]
    stop = rng.choice(size, max(1, size // ENDING), replace=False).tolist()
    sampling = Sampling(max_new_tokens=config.max_new_tokens, batch_size=config.batch_size)

    def by_us() -> int:
        return sum(len(answer.ids) for answer in generate(ours, prompts, sampling, stop))

    kinds: dict[str, Callable[[], int]] = {"engine.generate": by_us}
    for n in config.peer_batch_sizes if config.peer else ():
        kinds[f"transformers, {n} at a time"] = lambda n=n: by_transformers(theirs, prompts, config, n, stop)
    rates: dict[str, list[float]] = {name: [] for name in kinds}
    generate(ours, prompts[:8], Sampling(max_new_tokens=8), stop)  # warm-up
    if config.peer:
        by_transformers(theirs, prompts[:8], replace(config, max_new_tokens=8), 8, stop)
    for _ in range(config.rounds):
        for name, answer_all in kinds.items():
            start = time.perf_counter()
            n_tokens = answer_all()
            seconds = time.perf_counter() - start
            rates[name].append(n_tokens / seconds)
            said = f"{n_tokens} tokens, {rates[name][-1]:.0f} a second, {config.prompts / seconds:.2f} answers a second"
            print(f"{name}: {said}", flush=True)
    mine, *others = (float(np.median(found)) for found in rates.values())
    if others:
        print(f"ratio to its fastest: {mine / max(others):.1f}")


def by_transformers(
    model: Any, prompts: Sequence[Sequence[int]], config: BenchGenerationConfig, n: int, stop: list[int]
) -> int:
    """Tokens of answers, without those that end them and the padding behind."""
    ordered, total = sorted(prompts, key=len), 0
    for start in range(0, len(ordered), n):
        batch = ordered[start : start + n]
        longest = max(map(len, batch))
        ids = torch.tensor([[0] * (longest - len(p)) + list(p) for p in batch], device=model.device)
        mask = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in batch], device=model.device)
        made = model.generate(
            ids, attention_mask=mask, do_sample=True, top_k=0, max_new_tokens=config.max_new_tokens,
            eos_token_id=stop, pad_token_id=stop[0],
        )  # fmt: skip
        ends = torch.isin(made[:, longest:], torch.tensor(stop, device=made.device))
        total += int((ends.cumsum(dim=1) == 0).sum())
    return total
