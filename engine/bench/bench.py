"""How fast the real training path is, where its time goes, and what each saving buys.

    python -m engine.bench --shape tiny --data pairs.jsonl --ablate --peer trl
    python -m engine.bench --shape tiny --data pairs.jsonl --lora-rank 16 --peer trl

Every row of the table is a run of engine.train in processes of its own, on random weights of the shape: two epochs of
--steps steps, the first step of each a warm-up. Epoch 1 computes the reference, epoch 2 reads its log-probs. What is
compared is measured in turn, --rounds times, and given as a ratio with the spread of its rounds. An adapter's run
stands beside one that trains all parameters, and beside PEFT's adapter in TRL with the reference precomputed.
"""

import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, cast, get_args

import numpy as np
import torch

from data.rows import Example, Limits, Reading, Record, open_model, read_examples, read_records
from engine import weights
from engine.bench import peers as trl
from engine.bench.measure import arguments
from engine.bench.table import rate, table
from engine.config import ALIASES, AdapterConfig, BaseDtype, MasterWeights, Reshard, TrainConfig
from engine.model import SHAPES, XIELU, Quantisation, Shape, Transformer, raw_config, read_config
from system import InputError, RunError, cli, files
from system.flags import PathText, check_above_zero

EXAMPLE = "python -m engine.bench --shape tiny --data ultrafeedback"
# Tokens of UltraFeedback's prompts, winners and losers before the cut at 512: medians and spread of their logarithms.
LENGTHS = ((119, 0.8), (340, 0.75), (340, 0.75))
SAVINGS = ("packing", "prompt-sharing", "response-rows", "reference-cache", "kept-logits", "used-pages", "balance")


@dataclass(frozen=True, kw_only=True)
class BenchConfig:
    """Measure the speed and peak memory of training steps, run through engine.train itself."""

    shape: PathText = "tiny"
    """Model to measure: a name from engine.plan --shape, with random weights, or a checkpoint folder with its own."""
    layers: int | None = None
    """Number of layers, for a smaller version of a named shape. Unset: all of them."""
    data: PathText = "ultrafeedback"
    """Pairs to train on, or "ultrafeedback" for random token ids with the lengths of that data set. Text is encoded by
    the tokenizer of the checkpoint folder; for a named shape a tokenizer is trained on the rows first."""
    lengths: tuple[int, ...] = ()
    """Use random token ids of fixed lengths instead of --data: three numbers, the tokens of prompt, chosen and rejected
    response in every pair, such as 4096 6144 6144. Unset: --data."""
    steps: int = 3
    """Number of optimizer steps per epoch. The first step of each epoch is a warm-up and not counted."""
    batch_size: int = 16
    """Pairs per optimizer step."""
    loss: PathText = "apo_zero"
    """Objective to train with, as in engine.train."""
    beside: tuple[PathText, ...] = ()
    """Other objectives to measure too, one table line each; none measures --loss alone. Unset: ld_dpo and tdpo2 for
    --shape tiny with --reference fused and no --lora-rank, otherwise --loss alone."""
    lora_rank: int | None = None
    """Rank of a LoRA adapter to train on every linear layer of the blocks. A second line then measures the training of
    all parameters. Unset: all parameters are trained."""
    lora_alpha: float | None = None
    """As in engine.train: the adapter's output is scaled by alpha / rank. Unset: twice the rank."""
    base_dtype: BaseDtype | None = None
    """As in engine.train: how the frozen matrices below an adapter are stored in memory."""
    micro_tokens: int | None = None
    """Maximum number of tokens per forward and backward pass. Unset: chosen as in engine.train."""
    master_weights: MasterWeights = "auto"
    """As in engine.train: how float32 master weights are stored."""
    square_avg: Literal["float32", "bfloat16"] = "float32"
    """As in engine.train: dtype of the optimizer's running means with split master weights."""
    max_grad_norm: float = 1.0
    """As in engine.train: gradient clipping. With split master weights, 0 saves the memory of the gradients."""
    reshard: Reshard = "auto"
    """As in engine.train: whether the gathered weights of a block are freed after its forward pass."""
    reference: Literal["fused", "precompute"] = "fused"
    """When to compute the reference log-probs. fused: run two epochs; the first computes them, the second reads them
    from the cache. precompute: compute them first, then run one epoch."""
    profile: PathText | None = None
    """File for the time of each GPU kernel in one step of the first configuration measured. Unset: none."""
    gpu_memory: float | None = None
    """Memory to use on each GPU, in GB (10^9 bytes). Set it to share a GPU with other programs. Unset: all that is free
    when the run starts."""
    dtype: Literal["float32", "bfloat16"] | None = None
    """Dtype of forward and backward passes. Unset: bfloat16 on a GPU, float32 on the CPU."""
    ablate: bool = False
    """Add lines with one optimisation of the engine turned off at a time, one with all of them off, and one with the
    other setting of engine.train --compile (yes on the CPU, no on a GPU)."""
    ranks: int = 1
    """Number of processes. Above 1, a single process is measured too, with all threads if it runs on the CPU."""
    peer: Literal["trl"] | None = None
    """Also measure TRL's DPOTrainer on the same weights, rows and settings; install it by pip install -e '.[peer]'.
    Several configurations are tried and the fastest counts: reference log-probs per step or precomputed; 1, 2 or 4
    pairs at a time; compiled; on a GPU also bf16 weights and, if it is installed, flash attention. With --lora-rank it
    trains a PEFT adapter."""
    rounds: int = 2
    """Number of times that each configuration is measured, alternating. The table shows the median and the range."""
    out: PathText | None = None
    """JSON file to write all measurements to. Unset: only the table is printed."""
    config: PathText | None = None
    """YAML file of settings with the names of these flags. Flags on the command line win over the file."""

    def __post_init__(self) -> None:
        check_above_zero(self, "layers", "batch_size", "micro_tokens", "ranks", "rounds")
        if self.steps < 2:
            raise InputError(f"--steps: {self.steps} has to be at least 2, since the first step is not counted")
        if self.lengths and (len(self.lengths) != 3 or min(self.lengths) < 1):
            raise InputError("--lengths: give three numbers above 0, of the prompt, the winner and the loser")
        AdapterConfig(rank=self.lora_rank, alpha=self.lora_alpha, base_dtype=self.base_dtype)
        if self.peer and self.base_dtype in get_args(Quantisation):
            raise InputError(
                f"--base-dtype {self.base_dtype}: cannot be combined with --peer, because TRL quantises in "
                "another way; leave out one of the two"
            )

    @property
    def others(self) -> tuple[str, ...]:
        """The objectives beside --loss."""
        if self.beside:
            return () if self.beside == ("none",) else self.beside
        is_plain = self.reference == "fused" and self.lora_rank is None
        return ("ld_dpo", "tdpo2") if self.shape == "tiny" and is_plain else ()

    @property
    def adapter(self) -> dict[str, Any]:
        """Settings of an adapter's run; none where all parameters train."""
        if self.lora_rank is None:
            return {}
        return {"lora_rank": self.lora_rank, "lora_alpha": self.lora_alpha, "base_dtype": self.base_dtype}


def main(argv: Sequence[str]) -> None:
    """The command."""
    config = cli.parse(BenchConfig, argv, command="python -m engine.bench", example=EXAMPLE, aliases=ALIASES)
    _check_peer(config)
    TrainConfig(**arguments(_settings(config)))  # what does not go together is told before anything is written
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(config, Path(folder))
        made = {"device": device_name(), "command": f"python -m engine.bench {' '.join(argv)}", "rows": []}
        for made["rows"] in bench.measure_all():
            if config.out:  # after each run: what was measured stays where the next one fails
                files.write_json(Path(config.out), made)
    print(table(made))


class Bench:
    """A model and rows in a folder, and what is measured on them."""

    def __init__(self, config: BenchConfig, folder: Path) -> None:
        """Raises InputError where the shape or the rows cannot be used."""
        self._config, self._folder = config, folder
        self._model = folder / "model"
        write_model(self._model, config.shape, config.layers)
        examples = _examples(config, self._model)
        n = config.steps * config.batch_size
        if len(examples) < n:
            raise InputError(
                f"{config.data}: has {len(examples)} pairs, but {n} are needed; lower --steps or --batch-size"
            )
        self._rows = folder / "rows.jsonl"
        self._rows.write_text("".join(_id_row(e) for e in examples[:n]), encoding="utf-8")
        self._count = 0

    def measure_all(self) -> Iterator[list[dict[str, Any]]]:
        """All rows of the table so far, after each run; round by round where several are compared."""
        c = self._config
        kinds: dict[str, dict[str, Any]] = {"all savings": {}}
        if c.adapter:
            kinds["all parameters"] = dict.fromkeys(c.adapter)
        kinds |= {f"--loss {name}": {"loss": name} for name in c.others}
        if c.ranks > 1:
            kinds["one process"] = {"ranks": 1}
        if c.ablate:
            kinds |= {
                f"without {saving}": {"disable": [saving]} for saving in SAVINGS if saving != "balance" or c.ranks > 1
            }
            kinds["without any"] = {"disable": list(SAVINGS)}
            others = ["no"] if torch.cuda.is_available() else ["yes"]
            kinds |= {f"compile: {kind}": {"compile": kind} for kind in others}
        peers = trl.first(has_adapter=bool(c.adapter)) if c.peer else {}
        runs: dict[str, list[dict[str, Any]]] = {}
        for turn in range(c.rounds):
            for name, changes in kinds.items():
                runs.setdefault(name, []).append(self._ours(name, changes, kernels=turn == 0 and not changes))
                yield _rows(runs)
            for name, options in peers.items():
                runs.setdefault(name, []).append(self._theirs(name, options))
                yield _rows(runs)
            if turn == 0 and peers:
                rate_of = lambda name, epoch: rate(runs[name][0], epoch)  # noqa: E731
                others = trl.more(peers, rate_of)
                for name, options in others.items():
                    runs[name] = [self._theirs(name, options)]
                    yield _rows(runs)
                peers = trl.kept(peers | others, rate_of)

    def _ours(self, name: str, changes: dict[str, Any], *, kernels: bool) -> dict[str, Any]:
        c = self._config
        n_ranks = changes.get("ranks", c.ranks)
        places = {"model": str(self._model), "data": [str(self._rows)], "out": str(self._folder / self._next())}
        settings = _settings(c) | places | {k: v for k, v in changes.items() if k != "ranks"}
        more = {"kernels": kernels and not torch.cuda.is_available(), "profile": c.profile if kernels else None}
        return self._run(name, "engine.bench.measure", {"config": settings, **more}, n_ranks)

    def _theirs(self, name: str, options: dict[str, Any]) -> dict[str, Any]:
        c = self._config
        job = {
            "model": str(self._model), "rows": str(self._rows), "out": str(self._folder / self._next()),
            "loss": c.loss, "batch_size": c.batch_size, "steps": c.steps, "dtype": c.dtype,
            "max_grad_norm": c.max_grad_norm, **c.adapter, **options,
        }  # fmt: skip
        return self._run(name, "engine.bench.measure_trl", job, 1)

    def _run(self, name: str, module: str, job: dict[str, Any], n_ranks: int) -> dict[str, Any]:
        """The result of a measuring process, or of n_ranks of them that share the cores."""
        print(f"measuring: {name}", file=sys.stderr)
        path, result = self._folder / f"{self._next()}.json", self._folder / f"{self._next()}.json"
        given = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0]  # of nested levels the first is torch's
        threads = int(given) if given else max(1, (os.cpu_count() or 1) // n_ranks)
        path.write_text(json.dumps(job | {"result": str(result), "threads": threads if n_ranks > 1 else 0}))
        code = [sys.executable, "-c", f"from {module} import main; main()", str(path)]
        torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--no-python"]
        command = code if n_ranks == 1 else [*torchrun, "--nproc_per_node", str(n_ranks), *code]
        root = str(Path(__file__).resolve().parents[2])
        path = os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH"))))
        env = os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": str(threads)}
        done = subprocess.run(command, stdout=subprocess.DEVNULL, check=False, env=env)
        if done.returncode or not result.exists():
            raise RunError(f"{name}: the measured run failed; its error message is above")
        return json.loads(result.read_text())

    def _next(self) -> str:
        self._count += 1
        return str(self._count)


def _settings(c: BenchConfig) -> dict[str, Any]:
    """What the runs have in common, by engine.train's flags; where they read and write is still to be named."""
    longest = {"max_prompt_tokens": max(c.lengths), "max_response_tokens": max(c.lengths)} if c.lengths else {}
    return {
        "model": "", "data": [""], "out": "", **longest,
        "loss": c.loss, "epochs": 2 if c.reference == "fused" else 1, "batch_size": c.batch_size,
        "micro_tokens": c.micro_tokens, "dtype": c.dtype, "keep_checkpoints": 1, "state_every": 0,
        "reference": c.reference,
        "master_weights": c.master_weights, "square_avg": c.square_avg, "gpu_memory": c.gpu_memory, **c.adapter,
        "reshard": c.reshard, "max_grad_norm": c.max_grad_norm,
    }  # fmt: skip


def _rows(runs: dict[str, list[dict[str, Any]]]) -> list[dict[str, Any]]:
    return [{"name": name, "runs": found} for name, found in runs.items()]


def device_name() -> str:
    """What it was measured on."""
    if torch.cuda.is_available():
        return f"{torch.cuda.get_device_name()}, torch {torch.__version__}"
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    name = names[0] if names else platform.processor()
    return f"{os.cpu_count()} cores of {name}, torch {torch.__version__}"


def _check_peer(config: BenchConfig) -> None:
    """Raises InputError where the peer, or what it takes for an adapter, is not installed."""
    needed = {"trl": "TRL", **({"peft": "PEFT"} if config.adapter else {})} if config.peer else {}
    for package, name in needed.items():
        if find_spec(package) is None:
            raise InputError(f"--peer trl: {name} is not installed; pip install -e '.[peer]'")


# --- the model and the rows ----------------------------------------------------------------------------------------


def write_model(folder: Path, shape: str, layers: int | None) -> None:
    """Random weights of a named shape as a checkpoint folder, or a copy of a folder. Raises InputError."""
    if shape not in SHAPES:
        source, _ = open_model(shape)
        if weights.is_adapter(source):
            raise InputError(f"--shape: {shape}: is an adapter; name its base, and its rank with --lora-rank")
        if layers is not None:
            raise InputError("--layers: applies to a named shape only; leave it out for a checkpoint folder")
        shutil.copytree(source, folder)
        return
    raw = raw_config(cast(Shape, shape), layers)
    dtype = torch.float32 if shape == "tiny" else torch.bfloat16
    device = (
        "cuda" if torch.cuda.is_available() and dtype == torch.bfloat16 else "cpu"
    )  # 8 billion numbers take minutes
    with torch.device("meta"):
        model = Transformer(read_config(raw, "config.json")).to(dtype)
    model.to_empty(device=device)
    constants = dict(XIELU().named_buffers())
    for name, buffer in model.named_buffers():
        buffer.copy_(constants[name.rpartition(".")[2]])
    generator = torch.Generator(device).manual_seed(0)
    for name, parameter in model.named_parameters():
        if "norm" in name:
            torch.nn.init.constant_(parameter, float(not model.config.norm_adds_one))
        else:
            torch.nn.init.normal_(parameter, std=0.02, generator=generator)
    weights.save(model, folder, dtype=dtype)
    del model
    if device == "cuda":
        torch.cuda.empty_cache()


def _examples(config: BenchConfig, model: Path) -> list[Example]:
    n_ids = json.loads((model / "config.json").read_text())["vocab_size"]
    if config.lengths:
        return _examples_of(config.lengths, config.steps * config.batch_size, n_ids)
    if config.data == "ultrafeedback":
        return _random_examples(config.steps * config.batch_size, n_ids)
    _, chat = open_model(str(model))
    first = next((r for r in read_records(config.data) if isinstance(r, Record)), None)
    if chat is None and first is not None and not first.is_tokenised:
        return _encoded_by_a_tokenizer_of_its_own(config.data, n_ids)
    return [
        e
        for e in read_examples([config.data], chat, Limits(), Reading(), n_ids=n_ids).examples
        if len(e.responses) == 2
    ]


def _examples_of(lengths: Sequence[int], n: int, n_ids: int) -> list[Example]:
    random = np.random.default_rng(0)
    drawn = ([random.integers(0, n_ids, length).astype(np.int32) for length in lengths] for _ in range(n))
    return [Example("", prompt, (chosen, rejected)) for prompt, chosen, rejected in drawn]


def _random_examples(n: int, n_ids: int) -> list[Example]:
    random = np.random.default_rng(0)

    def ids(median: float, spread: float) -> np.ndarray:
        length = int(np.clip(median * np.exp(spread * random.standard_normal()), 1, 512))
        return random.integers(0, n_ids, length).astype(np.int32)

    return [Example("", ids(*LENGTHS[0]), (ids(*LENGTHS[1]), ids(*LENGTHS[2]))) for _ in range(n)]


def _encoded_by_a_tokenizer_of_its_own(source: str, n_ids: int) -> list[Example]:
    """Pairs of text as ids of a byte-level BPE that is trained on them: lengths about those of a real one's."""
    from tokenizers import ByteLevelBPETokenizer

    pairs = [
        r for r in read_records(source) if not isinstance(r, InputError) and r.form == "pairs" and not r.is_tokenised
    ]
    texts = [("\n\n".join(m.content for m in r.messages), *r.texts) for r in pairs]
    tokenizer = ByteLevelBPETokenizer()
    tokenizer.train_from_iterator((t for pair in texts for t in pair), vocab_size=n_ids, show_progress=False)
    made = []
    for prompt, *responses in texts:
        ids = [np.asarray(tokenizer.encode(t).ids, dtype=np.int32) for t in (prompt, *responses)]
        made.append(Example("", ids[0][-512:], tuple(r[:512] for r in ids[1:])))
    return [e for e in made if len(e.prompt) and all(map(len, e.responses))]


def _id_row(e: Example) -> str:
    chosen, rejected = (r.tolist() for r in e.responses)
    return json.dumps({"prompt_ids": e.prompt.tolist(), "chosen_ids": chosen, "rejected_ids": rejected}) + "\n"
