"""Adapters in blocks that are not Llama's: parts of a fused matrix, layers that differ, models that see, sampling."""

import functools
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from data.forest import pack
from data.text import read_json
from engine import weights
from engine.model import Adapter, FrozenLinear, FusedForward, Transformer, adapters
from engine.model.quantisation import dequantise
from engine.sampling import Sampling, generate
from engine.sampling.decoding import Slots
from system import InputError, write_json
from tests import tiny
from tests.engine import folders
from tests.engine.adapted import beside, logits_of, multiplied_out
from tests.engine.variants import model_of
from tests.metrics import lines
from tests.rows import id_rows

pytestmark = pytest.mark.slow  # the fast set has tests/engine/test_adapters.py

# Layers that turn otherwise or not at all, fused matrices, no gate, norms behind, factors, biases, a wrapper.
VARIANTS = [
    "phi3 longrope, part of a head, a window", "gemma3 a cap of logits", "smollm3 no_rope_layers", "olmo3 5.x spelling",
    "apertus llama3, biases", "granite biases", "gemma3 wrapper ", "exaone4 with a window", "ministral3 ",
]  # fmt: skip
CPU = torch.device("cpu")


def forest():
    return pack(tiny.random_examples([(5, 4, 6), (7, 3, 2), (20, 1, 9)], seed=3))


def weighed(logps):
    """A smooth function of log-probs in which every sequence has a weight of its own."""
    return (logps * torch.linspace(-1, 2, len(logps), dtype=torch.float64)).sum()


def gradients(model: Transformer) -> dict[str, torch.Tensor]:
    """Of what trains, by name."""
    return {name: p.grad.clone() for name, p in model.trained() if p.grad is not None}


@pytest.mark.parametrize("name", VARIANTS)
def test_an_adapter_computes_what_its_product_added_to_the_matrix_does(name):
    plain = model_of(name)
    model = beside(plain, b=0.05)
    base = FusedForward(plain)(forest(), with_reference=False).logps.detach()
    found = FusedForward(model, adapters.reference_of(model, None, CPU))(forest(), with_reference=True)
    assert torch.equal(found.ref_logps, base)  # the base's bits
    expected = FusedForward(multiplied_out(plain, model, 2.0))(forest(), with_reference=False).logps
    assert (expected - base).abs().max() > 1  # it does something
    torch.testing.assert_close(found.logps, expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("name", VARIANTS)
def test_recomputed_blocks_and_a_reference_beside_them_leave_the_gradient_as_it_is(name):
    model = beside(model_of(name), b=0.05)
    found = []
    for n_recomputed in (0, 4):
        model.zero_grad()
        model.recompute(n_recomputed)
        fused = FusedForward(model, adapters.reference_of(model, None, CPU))
        weighed(fused(forest(), with_reference=True).logps).backward()
        found.append(gradients(model))
    assert found[0].keys() == found[1].keys() == dict(adapters.own_parameters(model)).keys()
    assert all(g.any() and torch.equal(g, found[1][name]) for name, g in found[0].items())


def part(model: Transformer, name: str) -> FrozenLinear:
    """One of our layers."""
    module = model.get_submodule(name)
    assert isinstance(module, FrozenLinear)
    return module


@pytest.mark.parametrize(
    "names", [[f"attention.{x}" for x in "qkv"], ["mlp.gate", "mlp.up"]], ids=["qkv_proj", "gate_up_proj"]
)
def test_the_gradient_of_a_shared_a_is_the_fused_matrixs(names):
    """y = W x + s B A x of the fused matrix, by hand: its B is the parts' under one another, its A the first one's."""
    model = beside(model_of("phi3 plain"))
    parts = [part(model, f"blocks.1.{name}") for name in names]
    assert [p.lora_A is not None for p in parts] == [True] + [False] * (len(parts) - 1)
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(9, 32, dtype=torch.float64, generator=generator)
    sizes = [p.out_features for p in parts]
    dy = torch.randn(9, sum(sizes), dtype=torch.float64, generator=generator)
    a, b = parts[0].lora_A, [p.lora_B for p in parts]
    assert a is not None
    alone = []
    for p, slope in zip(parts, dy.split(sizes, dim=1), strict=True):
        alone.append(torch.autograd.grad((p(x) * slope).sum(), a)[0])
    (torch.cat([p(x) for p in parts], dim=1) * dy).sum().backward()
    whole_a, whole_b = a.detach().clone().requires_grad_(), torch.cat([p.detach() for p in b if p is not None])
    whole_b.requires_grad_()
    y = x @ torch.cat([p.matrix() for p in parts]).T + 8 / 4 * (x @ whole_a.T) @ whole_b.T
    torch.testing.assert_close(torch.cat([p(x) for p in parts], dim=1), y, rtol=0, atol=1e-12)
    (y * dy).sum().backward()
    assert a.grad is not None and whole_a.grad is not None and whole_b.grad is not None
    torch.testing.assert_close(a.grad, whole_a.grad, rtol=0, atol=1e-11)
    torch.testing.assert_close(sum(alone), whole_a.grad, rtol=0, atol=1e-11)
    assert min(one.abs().max() for one in alone) > 1  # each part has its share
    for p, expected in zip(b, whole_b.grad.split(sizes), strict=True):
        assert p is not None and p.grad is not None
        torch.testing.assert_close(p.grad, expected, rtol=0, atol=1e-11)


def saved(folder: Path, raw: dict, targets=(), rank=4, **changes) -> tuple[Path, Path]:
    """Folders of a tiny base and of an adapter beside it, whose config has some changes."""
    base = folders.write(folder / "base", raw)
    plain = weights.load(base, torch.float64)
    model = beside(plain, targets=targets, rank=rank)
    weights.save_adapter(model, folder / "adapter", base=str(base), base_dtype="float32")
    path = folder / "adapter/adapter_config.json"
    write_json(path, read_json(path) | changes)
    return base, folder / "adapter"


def test_the_parts_of_a_fused_matrix_are_one_in_the_folder(tmp_path):
    base, adapter = saved(tmp_path, folders.PHI3)
    found = load_file(adapter / "adapter_model.safetensors")
    stem = "base_model.model.model.layers.{}.{}.lora_{}.weight"
    shapes = {"self_attn.qkv_proj": (40, 24), "self_attn.o_proj": (24, 24), "mlp.gate_up_proj": (26, 24),
              "mlp.down_proj": (24, 13)}  # fmt: skip
    expected = {stem.format(k, name, "A"): (4, n_in) for k in range(2) for name, (_, n_in) in shapes.items()}
    expected |= {stem.format(k, name, "B"): (out, 4) for k in range(2) for name, (out, _) in shapes.items()}
    assert {name: tuple(tensor.shape) for name, tensor in found.items()} == expected
    config = read_json(adapter / "adapter_config.json")
    assert config["target_modules"] == ["down_proj", "gate_up_proj", "o_proj", "qkv_proj"]
    model = weights.load(adapter, torch.float64)
    rows = 0
    for x, n in zip("qkv", (24, 8, 8), strict=True):
        p = part(model, f"blocks.1.attention.{x}")
        assert p.lora_B is not None
        assert torch.equal(p.lora_B, found[stem.format(1, "self_attn.qkv_proj", "B")][rows : rows + n])
        rows += n
    ids = np.random.default_rng(0).integers(0, 101, 20).tolist()
    own, plain = dict(folders.stored(base)), weights.load(base, torch.float64)
    for k in range(2):  # W + s B A of the file's own matrices
        for name in shapes:
            product = found[stem.format(k, name, "B")].double() @ found[stem.format(k, name, "A")].double()
            own[f"model.layers.{k}.{name}.weight"] = own[f"model.layers.{k}.{name}.weight"].double() + 2 * product
    save_file(own, base / "model.safetensors")
    merged = weights.load(base, torch.float64)
    assert (logits_of(merged, ids) - logits_of(plain, ids)).abs().max() > 0.1
    torch.testing.assert_close(logits_of(model, ids), logits_of(merged, ids), rtol=0, atol=1e-10)


@pytest.mark.slow
def test_parts_of_a_fused_matrix_on_two_ranks_train_as_on_one(tmp_path):
    """Of 3 rows of A one rank holds 2, the other 1; rows of each part's B are gathered by themselves when saved."""
    base, adapter = saved(tmp_path, folders.PHI3, rank=3)
    tiny.write_rows(tmp_path / "rows.jsonl", id_rows(16))
    flags = [
        "engine.train",
        "--model",
        base,
        "--adapter",
        adapter,
        "--data",
        "rows.jsonl",
        "--batch-size",
        8,
        "--epochs",
    ]
    flags += [2, "--lr", 1e-3, "--loss", "apo_zero", "--track", "none", "--out"]
    two = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", 2, "-m", *flags, "two"]
    for command in (["-m", *flags, "one"], two):
        given = list(map(str, [sys.executable, *command]))
        done = subprocess.run(given, capture_output=True, text=True, cwd=tmp_path, env=tiny.environment(), timeout=300)
        assert done.returncode == 0, done.stderr[-2000:]
    one, two = (lines(tmp_path / out) for out in ("one", "two"))
    assert len(one) == len(two) == 4
    for a, b in zip(two, one, strict=True):
        for name in ("loss", "grad_norm", "rewards/chosen", "rewards/rejected"):
            assert a[name] == pytest.approx(b[name], rel=1e-5, abs=1e-5), (b["step"], name)
    files = [
        path / "adapter_model.safetensors" for path in (adapter, tmp_path / "one/epoch-02", tmp_path / "two/epoch-02")
    ]
    start, a, b = map(load_file, files)
    assert start.keys() == a.keys() == b.keys()
    for name, tensor in a.items():
        assert ((tensor - start[name]).abs() > 2e-3).any(), name  # it has trained
        torch.testing.assert_close(b[name], tensor, rtol=0, atol=2e-4)  # RMSProp's first steps are signs times 1e-2


SEEN = "model.language_model.layers.{}.{}"


@pytest.mark.parametrize("raw", [folders.GEMMA3, folders.MISTRAL3], ids=lambda raw: raw["model_type"])
def test_layers_of_a_model_that_sees_are_named_whole(raw, tmp_path):
    """PEFT would put adapters into its vision tower, too, where they are called q_proj alone."""
    _, adapter = saved(tmp_path, raw, targets=("q_proj", "down_proj"))
    asked = sorted(SEEN.format(k, name) for k in range(2) for name in ("mlp.down_proj", "self_attn.q_proj"))
    assert read_json(adapter / "adapter_config.json")["target_modules"] == asked
    stored = load_file(adapter / "adapter_model.safetensors")
    assert {name.partition(".lora_")[0] for name in stored} == {f"base_model.model.{name}" for name in asked}
    assert list(weights.read_adapter(adapter).modules) == asked
    weights.load(adapter)


@pytest.mark.parametrize(
    "changes",
    [
        {"target_modules": ["q_proj", "down_proj"], "exclude_modules": ["vision_tower"]},
        {"target_modules": r".*language_model.*(q_proj|down_proj)"},
        {"target_modules": "all-linear", "exclude_modules": r".*\.(k_proj|v_proj|o_proj|gate_proj|up_proj)"},
        {
            "target_modules": ["mlp.down_proj", "0.self_attn.q_proj", "1.self_attn.q_proj"]
        },  # as PEFT shortens long lists
    ],
)
def test_targets_that_peft_writes_of_it_are_read(changes, tmp_path):
    _, adapter = saved(tmp_path, folders.GEMMA3, targets=("q_proj", "down_proj"), **changes)
    found = {name.rpartition(".")[2] for name in weights.read_adapter(adapter).modules}
    assert found == {"q_proj", "down_proj"} and weights.load(adapter).adapter is not None


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"exclude_modules": ["layers.1.mlp.down_proj"]}, r"does not name .*layers\.1\.mlp\.down_proj, and"),
        ({"exclude_modules": "(q_proj"}, r"exclude_modules: '\(q_proj' is not a regular expression"),
        ({"exclude_modules": 3}, r"exclude_modules is 3; it has to be null, an expression or a list of names"),
    ],
)
def test_what_is_excluded_has_to_agree_with_the_tensors(changes, said, tmp_path):
    _, adapter = saved(tmp_path, folders.PHI3, targets=("qkv_proj", "down_proj"), **changes)
    with pytest.raises(InputError, match=said):
        weights.load(adapter)


def test_an_adapter_of_what_sees_is_refused(tmp_path):
    _, adapter = saved(tmp_path, folders.GEMMA3, targets=("q_proj",), target_modules=["q_proj"])
    path = adapter / "adapter_model.safetensors"
    found, stem = load_file(path), "base_model.model.model.vision_tower.encoder.layers.0.self_attn.q_proj.lora_"
    save_file(found | {f"{stem}A.weight": torch.zeros(4, 8), f"{stem}B.weight": torch.zeros(8, 4)}, path)
    with pytest.raises(InputError, match=r"vision_tower\..*q_proj, a part that is not trained here .*exclude_modules"):
        weights.load(adapter)


@pytest.mark.parametrize("held", [torch.float64, "int8", "nf4"])
@pytest.mark.parametrize("name", [VARIANTS[0], VARIANTS[2]])
def test_text_is_sampled_from_an_adapter_as_from_its_product_in_the_matrix(name, held, monkeypatch):
    """Prompts in pieces and answers with a cache, several in a pass: every row is one token's."""
    plain, step, seen = model_of(name), Slots.step, []
    model = beside(plain, held=held, b=0.05)
    with torch.no_grad():
        own = dict(plain.named_parameters())
        for layer, frozen in adapters.quantised_layers(model):
            assert frozen.kind is not None and frozen.codes is not None and frozen.scales is not None
            exact = dequantise(frozen.codes, frozen.scales, frozen.kind, frozen.in_features, torch.float64)
            own[f"{layer}.weight"].copy_(exact)
    multiplied_out(plain, model, 2.0)

    def noted(self, prefill_tokens):
        due, logits = step(self, prefill_tokens)
        seen.extend(((*r.prompt, *r.answer.ids), row.clone()) for r, row in zip(due, logits, strict=True))
        return due, logits

    monkeypatch.setattr(Slots, "step", noted)
    prompts = [np.random.default_rng(n).integers(0, 101, n).tolist() for n in (12, 3, 17)]
    sampling = Sampling(n=2, temperature=0.7, batch_size=4, prefill_tokens=5, max_new_tokens=6)
    generate(model, prompts, sampling, ())
    assert len(seen) == 2 * 3 * 6
    for ids, row in seen:
        torch.testing.assert_close(row, logits_of(plain, ids)[-1], rtol=0, atol=1e-9)


def test_text_is_sampled_in_bfloat16_beside_an_embedding_that_trains_whole(monkeypatch):
    """Which is float32, while keys and values are bfloat16."""
    with torch.device("meta"):
        model = Transformer(tiny.random_llama().config)
    adapters.freeze(model, torch.bfloat16, torch.bfloat16)
    modules = adapters.select(adapters.layers_of(model), ())
    adapters.attach(model, Adapter(rank=4, alpha=8.0, modules=modules, whole=("lm_head", "embed_tokens")))
    model.to_empty(device="cpu")
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            mean = 1.0 if "norm" in name else 0.0
            parameter.copy_(mean + 0.2 * torch.randn(parameter.shape, generator=generator))
    assert model.embed.weight.dtype == torch.float32
    prompts = [[5, 9, 2], list(range(3, 15))]
    answers = generate(model, prompts, Sampling(temperature=0, batch_size=2, max_new_tokens=6), ())
    for answer in answers:
        ids = [*prompts[answer.prompt], *answer.ids]
        anew = logits_of(model, ids).float()[len(prompts[answer.prompt]) - 1 : -1]
        taken = anew.gather(1, torch.tensor(answer.ids)[:, None])[:, 0]
        assert (anew.amax(dim=1) - taken).max() < 0.1  # of logits up to 8: the likeliest but for bfloat16's rounding


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of the compiler's own
@pytest.mark.parametrize(
    ("name", "targets"),
    [(VARIANTS[0], ()), (VARIANTS[0], (r".*layers\.[02]\..*", "down_proj")), (VARIANTS[1], ())],
    ids=["phi3", "phi3, some layers", "gemma3"],
)
def test_compiled_blocks_give_the_same_and_are_not_compiled_for_each_layer(name, targets, monkeypatch):
    """Training, held-out rows, a reference and recomputed blocks, of lengths that differ; more kinds of blocks than the
    compiler takes would be an error here, and slow in a run. aot_eager has the graphs, and no kernels to be made.
    """
    from torch._dynamo import config, reset
    from torch._dynamo.utils import counters  # brings the compiler, for the slow tests alone

    model = beside(model_of(name), b=0.05, targets=targets)
    fused = FusedForward(model, adapters.reference_of(model, None, CPU))
    lengths = [[(5, 4, 6), (20, 1, 9)], [(7, 3, 2)], [(9, 9, 1)]]
    packs = [pack(tiny.random_examples(each, seed=3)) for each in lengths]

    def everything():
        found = []
        for one in packs:
            model.zero_grad()
            logps, reference, _ = fused(one, with_reference=True)
            weighed(logps).backward()
            with torch.no_grad():
                alone = fused(one, with_reference=False).logps
            found.append({"logps": logps.detach(), "reference": reference, "alone": alone} | gradients(model))
        return found

    plain = everything()
    reset()
    counters.clear()
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="aot_eager"))
    model.recompute(1)
    for each in (fused.policy, fused.reference):
        assert each is not None
        each.compile_blocks()
    with config.patch(fail_on_recompile_limit_hit=True):
        for a, b in zip(plain, everything(), strict=True):
            torch.testing.assert_close(b, a, rtol=1e-9, atol=1e-9)
        n_graphs = counters["stats"]["unique_graphs"]
        everything()
    assert counters["stats"]["unique_graphs"] == n_graphs > 0
