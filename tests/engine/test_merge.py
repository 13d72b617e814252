"""An adapter merged into its base: the numbers of W + s B A, whatever the base is held in and the sum is written in."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file

from data.forest import PackingOptions, pack
from engine import merge, train, weights
from engine.config import TrainConfig
from engine.model import FusedForward, adapters
from engine.model.quantisation import levels
from tests import tiny
from tests.engine import adapter_of_any_base, folders, peers
from tests.engine.adapter_of_any_base import added, tensors_of
from tests.families import lifted
from tests.rows import id_rows

pytestmark = pytest.mark.slow  # the fast set has tests/engine/test_adapters.py


def merged(adapter, out, *flags):
    """The folder that the command writes."""
    merge.main(["--adapter", str(adapter), "--out", str(out), *map(str, flags)])
    return out


def write_base(folder, shape="llama3", *, dtype=torch.float32, **changes):
    weights.save(tiny.random_llama(shape, **changes), folder, dtype=dtype)
    return folder


def logps(model, examples):
    """[responses] log-probs of a model of ours, in its own dtype."""
    packed = pack(examples, PackingOptions(divides_at=model.config.originals))
    with torch.no_grad():
        return FusedForward(model)(packed, with_reference=False).logps


def same(a, b):
    return a.dtype == b.dtype and torch.equal(a, b)


# --- the sum ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rslora", [False, True])
@pytest.mark.parametrize(
    ("base", "options"),
    [
        ("llama3", {}),
        ("llama3.2", {"targets": ("q_proj", "down_proj")}),
        ("llama3", {"whole": ("lm_head", "embed_tokens")}),
        ("llama3", {"rank": 1, "alpha": 7, "targets": (r"model\.layers\.1\..*",)}),
        ("phi3", {}),
        ("phi3", {"targets": ("qkv_proj",)}),
    ],
)
def test_a_merged_matrix_is_the_sum_and_all_else_is_the_bases(tmp_path, base, options, rslora):
    folder = tmp_path / "base"
    folders.write(folder, folders.PHI3) if base == "phi3" else write_base(folder, base)
    adapter = adapter_of_any_base.write(tmp_path / "adapter", folder, rslora=rslora, **options)
    out = merged(adapter, tmp_path / "out")
    before, after, changes = tensors_of(folder), tensors_of(out), added(adapter)
    assert before.keys() == after.keys() and changes.keys() <= before.keys()
    for name, change in changes.items():
        assert change.abs().max() > 0.01
        torch.testing.assert_close(after[name].double(), before[name].double() + change, rtol=0, atol=1e-6)
    own = load_file(adapter / "adapter_model.safetensors")
    whole = {f"{'model.' * (name != 'lm_head')}{name}.weight" for name in options.get("whole", ())}
    for name in before.keys() - changes.keys():
        expected = own[f"base_model.model.{name}"] if name in whole else before[name]
        assert same(after[name], expected), name
    assert not {p.name for p in out.iterdir()} & {"adapter_config.json", "adapter_model.safetensors", "engine.json"}
    configs = [json.loads((f / "config.json").read_text()) for f in (folder, out)]
    assert configs[1].pop("dtype") == "float32" and configs[1] == {k: v for k, v in configs[0].items() if k != "dtype"}


def test_a_zero_adapter_leaves_every_bit(tmp_path, capfd):
    base = write_base(tmp_path / "base")
    adapter = adapter_of_any_base.write(tmp_path / "adapter", base, b=0.0)
    out = merged(adapter, tmp_path / "out")
    assert (out / "model.safetensors").read_bytes() == (base / "model.safetensors").read_bytes()
    said = capfd.readouterr()
    assert said.out == f"{out}\n" and said.err == f"{out}: the adapter {adapter} changes nothing of {base.resolve()}\n"


@pytest.mark.parametrize("family", [n if n in ("Llama", "Phi3") else pytest.param(n, marks=pytest.mark.slow)
                                    for n in peers.FAMILIES])  # fmt: skip
def test_transformers_computes_with_a_merged_folder_what_the_adapters_model_does(family, tmp_path):
    base = peers.write(family, tmp_path / "base")
    adapter = adapter_of_any_base.write(tmp_path / "adapter", base)
    out = merged(adapter, tmp_path / "out")
    examples = tiny.random_examples([(5, 4, 6), (20, 3, 25), (1, 1, 12)], seed=5)
    ours = weights.load(adapter, torch.float64)
    with lifted():
        peer, plain = peers.read(out, family), peers.read(base, family)
        expected, before = (
            torch.tensor(
                [peers.logps(m, torch.tensor(e.prompt), torch.tensor(r)) for e in examples for r in e.responses]
            )
            for m in (peer, plain)
        )
    assert (expected - before).abs().min() > 0.01  # the adapter does something
    torch.testing.assert_close(logps(ours, examples), expected.double(), rtol=0, atol=1e-5)


def test_transformers_float32_logits_are_the_adapters(tmp_path):
    from transformers import AutoModelForCausalLM

    base = write_base(tmp_path / "base", std=0.1)
    adapter = adapter_of_any_base.write(tmp_path / "adapter", base)
    peer = AutoModelForCausalLM.from_pretrained(merged(adapter, tmp_path / "out"), dtype=torch.float32).eval()
    ids = torch.arange(40) % 101
    with torch.no_grad():
        torch.testing.assert_close(all_logits(weights.load(adapter), ids), peer(ids[None]).logits[0], rtol=0, atol=1e-5)


def all_logits(model, ids):
    """[T] -> [T, V] of ours, one causal document."""
    from engine.model import attention
    from engine.model.logits import wide_logits

    def attend(q, k, v, _):
        return attention.masked(q, k, v, torch.ones(len(q), len(q), dtype=torch.bool).tril())

    x, turned = model.embed(ids), tiny.turned(model, len(ids))
    for block in model.blocks:
        x = block(x, turned, attend)
    return wide_logits(model.norm(x), model.head.matrix(model.tied))


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning")  # PEFT asks transformers for it
@pytest.mark.parametrize("family", ["llama3", "phi3"])
def test_pefts_own_merge_gives_the_same_matrices(family, tmp_path):
    peft = pytest.importorskip("peft")
    from transformers import AutoModelForCausalLM

    base = tmp_path / "base"
    peers.write("Phi3", base) if family == "phi3" else write_base(base)
    adapter = adapter_of_any_base.write(tmp_path / "adapter", base, rslora=family == "phi3")
    out = merged(adapter, tmp_path / "out")
    theirs = peft.PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), adapter)
    expected, found = theirs.merge_and_unload().state_dict(), tensors_of(out)
    assert found.keys() <= expected.keys()
    for name, tensor in found.items():
        torch.testing.assert_close(tensor, expected[name], rtol=0, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("held", ["float32", "int8"])
def test_a_run_its_merged_folder_and_its_adapter_have_the_same_log_probs(held, tmp_path, monkeypatch):
    base = write_base(tmp_path / "base")
    rows = tiny.write_rows(tmp_path / "rows.jsonl", id_rows(8))
    asked = {"loss": "dpo", "lr": 1e-3, "batch_size": 4, "epochs": 2, "lora_rank": 4, "base_dtype": held}
    run = train.run(TrainConfig(model=str(base), data=(str(rows),), out=str(tmp_path / "run"), **asked))
    monkeypatch.chdir(tmp_path)
    out = merged(run.checkpoints[-1], tmp_path / "out", "--model", "base")
    examples = tiny.random_examples([(5, 4, 6), (9, 3, 2)], seed=2)
    found, expected = (logps(weights.load(f), examples) for f in (out, run.checkpoints[-1]))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)
    assert (found - logps(weights.load(base), examples)).abs().max() > 0.1
    card = (out / "README.md").read_text()
    assert "library_name: transformers" in card and "**Merged** into base since" in card
    assert "peft" not in card and "not in this folder" not in card and "How to load it" not in card


# --- a base that is held in fewer bits -------------------------------------------------------------------------------


def as_int8(w):
    scales = w.abs().amax(1, keepdim=True) / 127
    return (w / scales).round() * scales


def as_nf4(w):
    table, made = torch.tensor(levels()), torch.empty_like(w)
    for row, target in zip(w, made, strict=True):
        for block, into in zip(row.split(64), target.split(64), strict=True):
            scale = block.abs().max()
            nearest = (block[:, None] / scale - table).abs().argmin(1)
            into.copy_(table[nearest] * scale.bfloat16())
    return made


HELD = {"int8": as_int8, "nf4": as_nf4, "bfloat16": lambda w: w.bfloat16().float(), "float32": lambda w: w}


@pytest.mark.parametrize("by_flag", [False, True])
@pytest.mark.parametrize("held", HELD)
def test_what_is_added_to_is_the_base_as_it_was_held(held, by_flag, tmp_path, capfd):
    base = write_base(tmp_path / "base", hidden_size=96)
    options = {"b": 1e-3, "targets": ("q_proj", "up_proj"), "base_dtype": "float32" if by_flag else held}
    adapter = adapter_of_any_base.write(tmp_path / "adapter", base, **options)
    out = merged(adapter, tmp_path / "out", *(["--base-dtype", held] if by_flag else []))
    before, after, changes = tensors_of(base), tensors_of(out), added(adapter)
    for name, tensor in before.items():
        is_held = "_proj" in name  # those without an adapter too: the others were trained beside them
        expected = HELD[held](tensor) if is_held else tensor
        expected = expected.double() + changes.get(name, 0)
        torch.testing.assert_close(after[name].double(), expected, rtol=0, atol=1e-6)
    said = capfd.readouterr().err
    how = {"float32": "", "bfloat16": "rounded to bfloat16"}.get(held, f"quantised to {held} and dequantised")
    assert (how in said) and said.count(str(base)) == (held != "float32")
    assert ("as --base-dtype says" in said) == (by_flag and held != "float32")


def test_a_quantised_bases_model_is_the_merged_folders(tmp_path):
    base = write_base(tmp_path / "base")
    adapter = adapter_of_any_base.write(tmp_path / "adapter", base, base_dtype="nf4")
    out = merged(adapter, tmp_path / "out")
    examples = tiny.random_examples([(5, 4, 6), (9, 3, 2)], seed=2)
    expected = logps(weights.load(adapter), examples)  # by the codes
    torch.testing.assert_close(logps(weights.load(out), examples), expected, rtol=0, atol=1e-4)
    found = weights.read_adapter(adapter)
    other = weights.build_adapted(found, torch.float32, base, "float32").to_empty(device="cpu")
    weights.fill(other, adapter)
    assert (expected - logps(other, examples)).abs().max() > 0.5  # another model


# --- rounding --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A bf16 base, and an adapter that is one step of gradient ascent on what it is measured by, 5e-4 of the weights'
    size: (base, adapter, rows).
    """
    folder = tmp_path_factory.mktemp("small")
    sizes = {"hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 2}
    base = write_base(folder / "base", dtype=torch.bfloat16, std=0.05, **sizes)
    model = adapter_of_any_base.bare(base, rank=8, alpha=16)
    weights.draw_adapter(model, 0)
    examples = tiny.random_examples([(6, 8, 8)] * 32, seed=1)
    signs = torch.tensor([1.0, -1.0]).repeat(32)
    (FusedForward(model)(pack(examples), with_reference=False).logps * signs).sum().backward()
    layers = [layer for layer in model.modules() if isinstance(layer, adapters.FrozenLinear)]
    with torch.no_grad():
        changes = [2 * layer.lora_B.grad @ layer.lora_A for layer in layers]
        length = torch.stack(
            [(c / layer.weight.norm()).norm() for c, layer in zip(changes, layers, strict=True)]
        ).norm()
        for layer in layers:
            layer.lora_B.copy_(layer.lora_B.grad * 5e-4 / length * len(layers) ** 0.5)
    weights.save_adapter(model, folder / "adapter", base=str(base), base_dtype="float32")
    lines = [{"prompt_ids": e.prompt.tolist(), "chosen_ids": e.responses[0].tolist(),
              "rejected_ids": e.responses[1].tolist()} for e in examples]  # fmt: skip
    return base, folder / "adapter", tiny.write_rows(folder / "rows.jsonl", lines), examples


def slope(base, adapter, out, examples):
    """Of a folder's log-ratios on the adapter's, and the length of what is left beside them, in theirs."""
    plain, with_it, found = (logps(weights.load(folder), examples).double() for folder in (base, adapter, out))
    expected, kept = with_it - plain, found - plain
    assert expected.abs().mean() > 0.01
    return float(kept @ expected / (expected @ expected)), float((kept - expected).norm() / expected.norm())


def test_stochastic_rounding_keeps_the_log_ratios_that_rounding_to_the_nearest_loses(small, tmp_path):
    base, adapter, _, examples = small
    near = merged(adapter, tmp_path / "nearest", "--dtype", "bfloat16", "--rounding", "nearest")
    assert slope(base, adapter, near, examples)[0] < 0.8
    found = []
    for seed in range(8):
        out = merged(adapter, tmp_path / f"{seed}", "--dtype", "bfloat16", "--seed", seed)
        found.append(slope(base, adapter, out, examples)[0])
    assert sum(found) / len(found) == pytest.approx(1, abs=0.02)
    assert slope(base, adapter, merged(adapter, tmp_path / "whole"), examples)[0] == pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize("rounding", ["nearest", "stochastic"])
def test_what_survives_is_said_of_weights_and_of_log_ratios(small, rounding, tmp_path, capfd):
    base, adapter, rows, examples = small
    flags = ("--dtype", "bfloat16", "--rounding", rounding, "--data", rows)
    out = merged(adapter, tmp_path / "out", *flags)
    said = capfd.readouterr()
    assert said.out == f"{out}\n"
    before, after, changes = tensors_of(base), tensors_of(out), added(adapter)
    d = torch.cat([changes.get(n, torch.zeros(())).expand_as(t).flatten() for n, t in before.items()])
    kept = torch.cat([(after[n].double() - t.double()).flatten() for n, t in before.items()])
    share, noise = (kept @ d / (d @ d)).item(), ((kept - d).norm() / d.norm()).item()
    weighed = f"{out}: {share:.1%} of the change from the base survives, and rounding adds noise {noise:.2g} times as"
    assert weighed in said.err and f"; {(kept != 0).double().mean():.2%} of the weights differ from" in said.err
    share, error = slope(base, adapter, out, examples)
    ratios = f"{out}: of the adapter's log-ratios of 64 responses {share:.1%} survive, with an error {error:.2g} times"
    assert ratios in said.err


def test_the_same_seed_gives_the_same_bits_and_another_one_others(small, tmp_path):
    _, adapter, _, _ = small
    files = [
        merged(adapter, tmp_path / f"{i}", "--dtype", "bfloat16", "--seed", seed) / "model.safetensors"
        for i, seed in enumerate((3, 3, 4))
    ]
    first, again, other = (file.read_bytes() for file in files)
    assert first == again and first != other


def test_stochastic_rounding_is_of_places_in_whole_tensors(tmp_path):
    """A fused matrix is rounded as the one tensor that it is in the file: engine.convert's bits of the sums."""
    base = folders.write(tmp_path / "base", folders.PHI3)
    adapter = adapter_of_any_base.write(tmp_path / "adapter", base)
    whole = merged(adapter, tmp_path / "whole")
    found = tensors_of(merged(adapter, tmp_path / "out", "--dtype", "bfloat16", "--seed", 5))
    cast = weights.Cast(dtype=torch.bfloat16, rounding="stochastic", seed=5)
    assert all(same(found[name], cast(name, tensor)) for name, tensor in tensors_of(whole).items())


# --- what goes along -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(
    ("raw", "layout"),
    [
        (folders.GEMMA3, folders.HUB),
        (folders.GEMMA3, folders.INSIDE),
        (folders.MISTRAL3, folders.HUB),
        (folders.APERTUS, folders.HUB),
    ],
)
def test_what_a_base_carries_goes_along_byte_for_byte(raw, layout, dtype, tmp_path):
    base = folders.write(tmp_path / "base", raw, layout=layout)
    (base / "preprocessor_config.json").write_text('{"image_size": 8}')
    adapter = adapter_of_any_base.write(tmp_path / "adapter", base)
    out = merged(adapter, tmp_path / "out", "--dtype", dtype, "--rounding", "nearest")
    before, after, changes = folders.stored(base), folders.stored(out), added(adapter)
    assert before.keys() == after.keys()
    carried = {n for n in before if "vision_tower." in n or "multi_modal" in n or n.endswith(("act_fn.beta", ".eps"))}
    assert len(carried) == (4 if raw is folders.APERTUS else 5)
    inside = {layout[0]: "model.language_model.", layout[1]: ""} if "text_config" in raw else {}
    n_changed = 0
    for name, tensor in before.items():
        module = next((new + name.removeprefix(old) for old, new in inside.items() if name.startswith(old)), name)
        n_changed += module in changes
        if name in carried:
            assert same(after[name], tensor)
        elif module in changes:
            close = {"rtol": 0, "atol": 1e-6} if dtype == "float32" else {"rtol": 4e-3, "atol": 1e-6}
            torch.testing.assert_close(after[name].double(), tensor.double() + changes[module], **close)
        else:
            assert same(after[name], tensor.to(getattr(torch, dtype)))
    assert n_changed == len(changes) > 0
    assert (out / "preprocessor_config.json").read_text() == '{"image_size": 8}'


def test_the_adapters_tokenizer_and_template_go_along_and_its_end_of_turn_stops(tmp_path, capfd):
    base = tiny.write_model(tmp_path / "base", ["some words to learn merges from"] * 9)
    (base / "generation_config.json").write_text('{"temperature": 0.7, "eos_token_id": 396}')
    adapter = adapter_of_any_base.write(tmp_path / "adapter", base)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(base / name, adapter / name)
    (base / "tokenizer_config.json").write_text("{}")
    (base / "vocab.json").write_text("{}")  # of the base's tokenizer, which is not taken
    (adapter / "chat_template.jinja").write_text(tiny.TEMPLATE)
    (adapter / "optimizer.pt").write_text("")
    out = merged(adapter, tmp_path / "out")
    assert (out / "chat_template.jinja").read_text() == tiny.TEMPLATE and not (out / "vocab.json").exists()
    assert (out / "tokenizer_config.json").read_bytes() == (adapter / "tokenizer_config.json").read_bytes()
    asked = json.loads((out / "generation_config.json").read_text())
    added_tokens = json.loads((adapter / "tokenizer.json").read_text())["added_tokens"]
    end_of_turn = next(token["id"] for token in added_tokens if token["content"] == "<|eot_id|>")
    assert asked == {"temperature": 0.7, "eos_token_id": sorted([396, end_of_turn])}
    assert "not copied, because it is no part of a checkpoint: optimizer.pt\n" in capfd.readouterr().err


def test_without_a_tokenizer_of_the_adapter_the_bases_goes_along(tmp_path):
    base = tiny.write_model(tmp_path / "base", ["some words to learn merges from"] * 9)
    out = merged(adapter_of_any_base.write(tmp_path / "adapter", base), tmp_path / "out")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        assert (out / name).read_bytes() == (base / name).read_bytes()


def test_a_template_that_only_the_base_has_goes_along_beside_the_adapters_tokenizer(tmp_path):
    base = tiny.write_model(tmp_path / "base", ["some words to learn merges from"] * 9)
    adapter = adapter_of_any_base.write(tmp_path / "adapter", base)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(base / name, adapter / name)
    said = json.loads((base / "tokenizer_config.json").read_text())
    (base / "tokenizer_config.json").write_text(json.dumps(said | {"chat_template": tiny.TEMPLATE}))
    out = merged(adapter, tmp_path / "out")
    assert (out / "chat_template.jinja").read_text() == tiny.TEMPLATE


def test_a_tokenizer_needs_no_template_to_be_merged(tmp_path):
    base = tiny.write_model(tmp_path / "base", ["some words to learn merges from"] * 9)
    path = base / "tokenizer.json"  # without the control tokens that the built-in template asks for
    path.write_text(path.read_text().replace("_header_id|>", "_mark|>"))
    out = merged(adapter_of_any_base.write(tmp_path / "adapter", base), tmp_path / "out")
    assert (out / "tokenizer.json").read_bytes() == path.read_bytes()
    assert not list(out.glob("*.jinja"))
    assert json.loads((out / "generation_config.json").read_text())["eos_token_id"] == 396  # config.json's


def test_a_runs_card_says_that_it_was_merged(tmp_path):
    base = write_base(tmp_path / "base")
    adapter = adapter_of_any_base.write(tmp_path / "adapter", base)
    front = "---\nlibrary_name: peft\nbase_model_relation: adapter\ntags:\n- anchored-preference-optimization\n---\n"
    (adapter / "README.md").write_text(
        f"{front}\n# mine\n\n## How to load it\n\nWith peft\n\n## Trained from\n\n- it\n"
    )
    out = merged(adapter, tmp_path / "out", "--dtype", "bfloat16", "--seed", 3)
    text = (out / "README.md").read_text()
    front = front.replace("peft", "transformers").replace(": adapter", ": finetune")
    assert (
        text.startswith(f"{front}\n# mine\n\n## Trained from\n\n- it\n\n**Merged**") and "written in bfloat16" in text
    )
    assert "**Merged** into base since" in text and "stochastically with seed 3" in text
