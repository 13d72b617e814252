"""Adapters and their flags that cannot be used: one sentence each that names what, before anything is written."""

import json
import math
import re
import shutil
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file

from engine import plan, train
from engine.run import adapting
from system import InputError
from tests import forks, tiny

pytestmark = pytest.mark.slow  # the fast set has tests/engine/test_adapters.py

WORDS = ["some words to merge and to answer with"] * 20
PREFIX = "base_model.model.model.layers."
SIZES = {  # [out, in] of tests/tiny.py
    **dict.fromkeys(("self_attn.q_proj", "self_attn.o_proj"), (32, 32)),
    **dict.fromkeys(("self_attn.k_proj", "self_attn.v_proj"), (16, 32)),
    **dict.fromkeys(("mlp.gate_proj", "mlp.up_proj"), (56, 32)),
    "mlp.down_proj": (32, 56),
}
PLAIN = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": 2, "lora_alpha": 4, "bias": "none",
         "target_modules": [name.rpartition(".")[2] for name in SIZES]}  # fmt: skip
Q = f"{PREFIX}0.self_attn.q_proj"
HEAD, EMBED = "base_model.model.lm_head.weight", "base_model.model.model.embed_tokens.weight"


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a model, one that is tied, an adapter of two layers and rows."""
    folder = tmp_path_factory.mktemp("place")
    tiny.write_model(folder / "model", WORDS)
    tiny.write_model(folder / "tied", WORDS, shape="llama3.2")
    (folder / "model/chat_template.jinja").write_text(tiny.TEMPLATE)
    tiny.write_rows(folder / "rows.jsonl", [{"prompt": "some", "chosen": "words", "rejected": "some"}] * 4)
    write_adapter(folder / "good", folder / "model")
    return folder


def write_adapter(folder, model, rank=2):
    """An adapter in PEFT's format, of every layer of a tiny model."""
    folder.mkdir()
    (folder / "adapter_config.json").write_text(json.dumps(PLAIN | {"r": rank, "base_model_name_or_path": str(model)}))
    tensors = {}
    for layer in range(3):
        for name, (n_out, n_in) in SIZES.items():
            tensors[f"{PREFIX}{layer}.{name}.lora_A.weight"] = torch.full((rank, n_in), 0.01)
            tensors[f"{PREFIX}{layer}.{name}.lora_B.weight"] = torch.full((n_out, rank), 0.01)
    save_file(tensors, folder / "adapter_model.safetensors")


def says(**changes):
    """Changes adapter_config.json; a value of ... takes the key out."""

    def change(folder):
        path = folder / "adapter_config.json"
        made = json.loads(path.read_text()) | changes
        path.write_text(json.dumps({name: value for name, value in made.items() if value is not ...}))

    return change


def holds(take=(), **put):
    """Changes the tensors: some are taken out, others put in ("@" stands for lora_A or lora_B's .weight)."""

    def change(folder):
        path = folder / "adapter_model.safetensors"
        tensors = load_file(path)
        for name in take:
            del tensors[name]
        save_file(tensors | put.get("put", {}), path)

    return change


def both(*changes):
    """Several changes, one after the other."""

    def change(folder):
        for one in changes:
            one(folder)

    return change


def cut(folder):
    path = folder / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def pickled(folder):
    (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin")


def named_twice(folder):
    path = folder / "adapter_model.safetensors"
    content = path.read_bytes()
    n = int.from_bytes(content[:8], "little")
    head = content[8 : 8 + n].replace(b"layers.1.self_attn.q_proj.lora_A", b"layers.0.self_attn.q_proj.lora_A")
    assert len(head) == n
    path.write_bytes(content[:8] + head + content[8 + n :])


def with_other_words(folder):
    tiny.write_tokenizer(folder, ["quite other text: letters, 12345, and more of them"] * 20)


def put(name, *shape, value=0.0):
    return holds(put={name: torch.full(shape, value)})


FOLDERS = {  # what is wrong -> (how it comes to be, what is said)
    "no adapter_config.json": (
        lambda f: (f / "adapter_config.json").unlink(), "adapter: no adapter_config.json; give the folder of an adapter"
    ),
    "JSON that is none": (
        lambda f: (f / "adapter_config.json").write_text("{'r': 2}"), r"adapter_config.json: not JSON \(Expecting"
    ),
    "JSON that is a list": (
        lambda f: (f / "adapter_config.json").write_text("[]"), "adapter_config.json: a list, not an object"
    ),
    "no kind": (says(peft_type=...), "adapter_config.json: peft_type is None; only LORA is supported"),
    "another kind": (says(peft_type="IA3"), "adapter_config.json: peft_type is 'IA3'; only LORA is supported"),
    "another task": (says(task_type="SEQ_CLS"), "task_type is 'SEQ_CLS'; it has to be CAUSAL_LM"),
    "no rank": (says(r=...), r"r is missing; it has to be the rank, a whole number above 0 \(PEFT would take 8\)"),
    "rank 0": (says(r=0), "r is 0; it has to be the rank, a whole number above 0"),
    "a rank in halves": (says(r=2.5), "r is 2.5; it has to be the rank, a whole number above 0"),
    "no alpha": (says(lora_alpha=...), r"lora_alpha is missing; it has to be a number above 0 \(PEFT would take 8\)"),
    "alpha 0": (says(lora_alpha=0), "lora_alpha is 0; it has to be a number above 0"),
    "alpha that is no number": (says(lora_alpha=math.nan), "lora_alpha is nan; it has to be a number above 0"),
    "no targets": (says(target_modules=...), r"target_modules is missing; .* \(PEFT would take q_proj and v_proj\)"),
    "targets that are none": (says(target_modules=[]), r"target_modules is \[\]; it has to name the layers"),
    "rslora in words": (says(use_rslora="no"), "use_rslora is 'no'; it has to be true or false"),
    "DoRA": (says(use_dora=True), "use_dora is True, and DoRA is not supported; use an adapter without it"),
    "biases": (says(bias="lora_only"), "bias is 'lora_only', and trained biases are not supported"),
    "a bias of B": (says(lora_bias=True), "lora_bias is True, and adapters have no bias here"),
    "ranks of layers": (says(rank_pattern={"q_proj": 4}), "rank_pattern is {'q_proj': 4}, and one rank is for all lay"),
    "alphas of layers": (says(alpha_pattern={"q_proj": 4}), "alpha_pattern is {'q_proj': 4}, and one alpha is for all"),
    "some layers": (says(layers_to_transform=[0]), r"layers_to_transform is \[0\], and name the layers in target_modu"),
    "parameters": (says(target_parameters=["x"]), r"target_parameters is \['x'\], and adapters are of linear layers"),
    "rows of tokens": (says(trainable_token_indices=[3]), r"trainable_token_indices is \[3\], and single rows of the"),
    "aLoRA": (says(alora_invocation_tokens=[3]), r"alora_invocation_tokens is \[3\], and adapters are always on here"),
    "a base that was moved": (says(init_lora_weights="pissa"), "init_lora_weights is 'pissa': the adapter is of a bas"),
    "a whole layer": (says(modules_to_save=["score"]), "modules_to_save names score; lm_head and embed_tokens are tak"),
    "a whole head that is not there": (
        says(modules_to_save=["lm_head"]), "modules_to_save names lm_head, and adapter_model.safetensors lacks it"
    ),
    "a whole embedding that is not named": (
        put(EMBED, 400, 32), r"has embed_tokens whole, which modules_to_save of adapter_config.json does not name \(PEF"
    ),
    "a head of another vocabulary": (
        both(says(modules_to_save=["lm_head"]), put(HEAD, 405, 32)),
        r"base_model.model.lm_head.weight is \[405, 32\], and with .*/model and adapter_config.json it is \[400, 32\];",
    ),
    "a head by another name": (
        both(says(modules_to_save=["lm_head"]), put("base_model.model.model.lm_head.weight", 400, 32)),
        "has base_model.model.model.lm_head.weight, which .*/model lacks; give the base that it was trained on",
    ),
    "a layer too many": (
        both(put(f"{PREFIX}3.self_attn.q_proj.lora_A.weight", 2, 32),
             put(f"{PREFIX}3.self_attn.q_proj.lora_B.weight", 32, 2)),
        "has an adapter for model.layers.3.self_attn.q_proj, which .*/model lacks; give the base that it was trained o",
    ),
    "targets without tensors": (
        holds(take=[f"{Q}.lora_A.weight", f"{Q}.lora_B.weight"]),
        "target_modules names model.layers.0.self_attn.q_proj, and adapter_model.safetensors has no tensors of it",
    ),
    "tensors without a target": (
        says(target_modules=["q_proj"]),
        "target_modules does not name model.layers.0.mlp.down_proj, and adapter_model.safetensors has tensors of it",
    ),
    "a target that nothing has": (
        says(target_modules=["q_proj", "c_attn"]), "target_modules: c_attn: no linear layer of a block has this name;"
    ),
    "an expression that is none": (says(target_modules="(q"), r"target_modules: '\(q' is not a regular expression"),
    "layers that are left out and are there": (
        says(exclude_modules=["q_proj"]), "target_modules does not name model.layers.0.self_attn.q_proj, and"
    ),
    "r unlike the tensors": (says(r=4), r"lora_A.weight is \[2, 56\], and r of adapter_config.json is 4; they have to"),
    "half an adapter": (holds(take=[f"{Q}.lora_B.weight"]), f"lacks {Q}.lora_B.weight; copy the folder again"),
    "a B of another size": (
        put(f"{Q}.lora_B.weight", 48, 2), rf"{Q}.lora_B.weight is \[48, 2\], and with .* it is \[32, 2\]; give the base"
    ),
    "a name of nothing": (put(f"{Q}.weight", 2, 2), f"has an unknown tensor, {Q}.weight; give an adapter whose"),
    "a name without its beginning": (
        put("model.layers.0.x.lora_A.weight", 2, 2), "model.layers.0.x.lora_A.weight does not begin with base_model.mod"
    ),
    "a magnitude": (put(f"{Q}.lora_magnitude_vector", 32), "lora_magnitude_vector belongs to DoRA, which is not supp"),
    "an adapter of the head": (
        put("base_model.model.lm_head.lora_A.weight", 2, 32), "adapters of head and embedding are not supported; tr"
    ),
    "an adapter of the embedding": (
        put("base_model.model.model.embed_tokens.lora_embedding_A", 2, 400), "adapters of head and embedding are not"
    ),
    "whole numbers": (
        holds(put={f"{Q}.lora_A.weight": torch.zeros(2, 32, dtype=torch.int32)}), f"{Q}.lora_A.weight is I32; it has to"
    ),
    "NaN": (put(f"{Q}.lora_B.weight", 32, 2, value=math.nan), f"{Q}.lora_B.weight holds NaN or infinity; copy the fol"),
    "a cut file": (cut, r"adapter_model.safetensors: cannot be read \(.*\); copy it again"),
    "a name twice": (named_twice, r"adapter_model.safetensors: cannot be read \(.*q_proj.lora_A.weight stands twice\)"),
    "a pickle": (pickled, "adapter_model.bin is a pickle file, which can run code when it is loaded; save it again"),
    "no tensors": (
        lambda f: (f / "adapter_model.safetensors").unlink(), "adapter: no adapter_model.safetensors; copy the folder a"
    ),
    "another holding": (
        lambda f: (f / "engine.json").write_text('{"base_dtype": "fp4"}'), "engine.json: base_dtype is 'fp4'; it has to"
    ),
    "other words": (with_other_words, "token [0-9]+ of its tokenizer is '.*', and '.*' in .*/model; give the base"),
}  # fmt: skip


def command(place, out, *flags, model="model"):
    return ["--model", str(place / model), "--data", str(place / "rows.jsonl"), "--loss", "apo_zero", "--out", str(out),
            "--epochs", "1", "--batch-size", "4", *flags]  # fmt: skip


def refused(place, out, *flags, model="model"):
    """What the command says; nothing was written."""
    with pytest.raises(InputError) as fault:
        train.main(command(place, out, *flags, model=model))
    assert "\n" not in str(fault.value) and not (out / "metrics.jsonl").exists()
    assert not out.exists()
    return str(fault.value)


@pytest.mark.parametrize("name", FOLDERS)
def test_a_folder_that_cannot_be_used_is_named_with_what_is_wrong(place, tmp_path, name):
    change, said = FOLDERS[name]
    adapter = shutil.copytree(place / "good", tmp_path / "adapter")
    change(adapter)
    found = refused(place, tmp_path / "out", "--adapter", str(adapter))
    assert found.startswith(str(adapter)) and re.search(said, found), found


@pytest.mark.parametrize("name", ["NaN", "DoRA", "a pickle", "a layer too many"])
def test_so_is_one_of_the_reference(place, tmp_path, name):
    change, said = FOLDERS[name]
    adapter = shutil.copytree(place / "good", tmp_path / "adapter")
    change(adapter)
    found = refused(place, tmp_path / "out", "--lora-rank", "2", "--reference-model", str(adapter))
    assert found.startswith(str(adapter)) and re.search(said, found), found


def test_the_folder_that_all_of_them_were_made_from_trains(place, tmp_path):
    train.main(command(place, tmp_path / "out", "--adapter", str(place / "good"), "--lr", "1e-4"))
    assert (tmp_path / "out/epoch-01/adapter_model.safetensors").is_file()


FLAGS = {  # flags -> what is said
    "--lora-alpha 8": "--lora-alpha: needs --lora-rank; add it, such as --lora-rank 16, or leave this flag out",
    "--lora-targets q_proj": "--lora-targets: needs --lora-rank",
    "--lora-rslora": "--lora-rslora: needs --lora-rank",
    "--train-also lm_head": "--train-also: needs --lora-rank",
    "--lora-rank 0": "--lora-rank: 0 has to be above 0; 16 is usual",
    "--lora-rank -3": "--lora-rank: -3 has to be above 0",
    "--lora-rank 2 --lora-alpha 0": "--lora-alpha: 0.0 has to be above 0",
    "--lora-rank 2 --lora-alpha nan": "--lora-alpha: nan has to be above 0",
    "--lora-rank 17": "--lora-rank: rank 17 is above the smaller side of model.layers.0.self_attn.k_proj (16); lower",
    "--lora-rank 2 --lora-targets q_proj c_attn": "--lora-targets: c_attn: no linear layer of a block has this name",
    "--lora-rank 2 --lora-targets lm_head": "--train-also trains head and embedding in full",
    "--lora-rank 2 --lora-targets (q": "--lora-targets: '(q' is not a regular expression",
    "--lora-rank 2 --train-also lm_head lm_head": "--train-also: lm_head lm_head: names one twice",
    "--adapter GOOD --lora-rank 2": "--lora-rank: cannot be combined with --adapter, whose own is used; leave out one",
    "--adapter GOOD --lora-alpha 2": "--lora-alpha: cannot be combined with --adapter",
    "--adapter GOOD --lora-targets q_proj": "--lora-targets: cannot be combined with --adapter",
    "--adapter MODEL": "a model, not an adapter (adapter_config.json is not there); name it with --model",
    "--adapter NOWHERE": "nowhere: no such file or folder",
    "--adapter GOOD/adapter_model.safetensors": "adapter_model.safetensors: this is a file; give the folder that",
    "--base-dtype nf4": "--base-dtype nf4: applies to frozen weights, and all weights are trained; add --lora-rank 16",
    "--base-dtype int8": "--base-dtype int8: applies to frozen weights, and all weights are trained",
    "--base-dtype int4 --lora-rank 2": "--base-dtype: 'int4' is not",
    "--lora-rank 2 --master-weights split": "--master-weights split: cannot be combined with an adapter",
    "--lora-rank 2 --reference-update soft": "--reference-update soft: cannot be combined with an adapter",
    "--lora-rank 4 --reference-model GOOD --reference-update hard": "--reference-update hard: copies the policy",
    "--lora-rank 2 --optimizer muon": "--optimizer muon: cannot be combined with an adapter",
    "--lora-rank 2 --save-dtype bfloat16": "--save-dtype bfloat16: cannot be combined with an adapter",
    "--reference-model base": "--reference-model base: means the base of an adapter, and all weights are trained;",
    "--lora-rank 2 --loss cpo --reference none --reference-model base": "cannot be combined with --reference none",
    "--lora-dropout 0.1": "--lora_dropout is not supported: what it drops would depend on how rows",
    "--use-dora": "--use_dora is not supported: PEFT leaves the norm out of DoRA's gradient",
    "--load-in-4bit": "--load_in_4bit is --base-dtype nf4 here",
}


@pytest.mark.parametrize("flags", FLAGS)
def test_flags_that_do_not_go_together_are_named(place, tmp_path, flags):
    known = {"GOOD": str(place / "good"), "MODEL": str(place / "model"), "NOWHERE": str(place / "nowhere")}
    given = [re.sub("^(GOOD|MODEL|NOWHERE)", lambda m: known[m[1]], word) for word in flags.split()]
    if "--loss" in given:
        at = given.index("--loss")
        loss, given = given[at + 1], given[:at] + given[at + 2 :]
        argv = [word if word != "apo_zero" else loss for word in command(place, tmp_path / "out", *given)]
        with pytest.raises(InputError) as fault:
            train.main(argv)
        found = str(fault.value)
    else:
        found = refused(place, tmp_path / "out", *given)
    assert FLAGS[flags] in found, found


@pytest.mark.parametrize("name", ["lm_head", "embed_tokens"])
def test_a_tied_head_trains_neither_by_a_flag_nor_by_a_folder(place, tmp_path, name):
    found = refused(place, tmp_path / "out", "--lora-rank", "2", "--train-also", name, model="tied")
    assert found.startswith(
        f"--train-also: {name}: embedding and head of this model are one tensor (tie_word_embeddings)"
    )
    adapter = shutil.copytree(place / "good", tmp_path / "adapter")
    both(says(modules_to_save=[name]), put(HEAD if name == "lm_head" else EMBED, 400, 32))(adapter)
    found = refused(place, tmp_path / "out", "--adapter", str(adapter), model="tied")
    assert found.startswith(f"{adapter}: {name}: embedding and head of this model are one tensor")


def test_an_adapter_is_no_model_and_a_model_with_one_in_it_is_neither(place, tmp_path):
    found = refused(place, tmp_path / "out", "--lora-rank", "2", model="good")
    assert "is an adapter; name its base by --model and the adapter by --adapter to train it further" in found
    mixed = shutil.copytree(place / "model", tmp_path / "mixed")
    for path in (place / "good").iterdir():
        shutil.copy(path, mixed)
    found = refused(place, tmp_path / "out", "--lora-rank", "2", model=str(mixed))
    assert found.startswith(f"{mixed}/adapter_config.json: an adapter of ") and "beside a whole model" in found


def test_an_adapters_own_folder_holds_no_run(place, tmp_path):
    adapter = shutil.copytree(place / "good", tmp_path / "adapter")
    found = refused(place, adapter / "run", "--adapter", str(adapter))
    assert (
        found == f"{adapter}/run: is inside the folder of the adapter that is trained ({adapter}); give another --out"
    )


def test_4_bits_in_float32_are_refused_on_a_gpu(place, tmp_path, monkeypatch):
    monkeypatch.setattr(adapting.torch.cuda, "is_available", lambda: True)
    flags = ("--lora-rank", "2", "--base-dtype", "nf4", "--dtype", "float32")
    assert refused(place, tmp_path / "out", *flags).startswith(
        "--base-dtype nf4: cannot be combined with --dtype float32 on a GPU, which"
    )


def test_the_command_ends_with_2_and_one_line(place, tmp_path):
    adapter = shutil.copytree(place / "good", tmp_path / "adapter")
    says(use_dora=True)(adapter)
    argv = command(place, tmp_path / "out", "--adapter", str(adapter))
    done = forks.run([sys.executable, "-m", "engine.train", *argv], env=tiny.environment())
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.splitlines()[-1].endswith("DoRA is not supported; use an adapter without it")
    assert "Traceback" not in done.stderr and not (tmp_path / "out").exists()


# --- what is said, and done all the same ---------------------------------------------------------------------------


def trained(place, tmp_path, capsys, *flags):
    """What a run says."""
    train.main(command(place, tmp_path / "out", *flags))
    return capsys.readouterr().err


def test_a_rate_of_whole_models_is_said(place, tmp_path, capsys):
    said = "an adapter hardly changes below 1e-06, and 2e-06 to 1e-5 is usual"
    assert f"--lr 2e-07: suits the training of all parameters; {said}" in trained(
        place, tmp_path, capsys, "--lora-rank", "2", "--lr", "2e-7"
    )
    assert said not in trained(place, tmp_path / "b", capsys, "--lora-rank", "2")


def test_a_rank_that_is_not_served_is_said(tmp_path, capsys, monkeypatch, place):
    monkeypatch.setattr(adapting, "MOST_RANK", 1)
    assert "rank 2: vLLM serves adapters of rank 1 at most" in trained(place, tmp_path, capsys, "--lora-rank", "2")


def test_a_start_far_from_its_reference_is_said(place, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(adapting, "FAR", 0.5)  # responses are a word long
    adapter = shutil.copytree(place / "good", tmp_path / "adapter")
    holds(put={f"{PREFIX}{i}.mlp.down_proj.lora_B.weight": torch.full((32, 2), 5.0 * (-1) ** i) for i in range(3)})(
        adapter
    )
    said = trained(place, tmp_path, capsys, "--adapter", str(adapter), "--reference-model", "base")
    line = next(line for line in said.splitlines() if line.startswith("step 1: the mean log-ratio "))
    assert re.search(r"nats for chosen responses and .* nats for rejected responses", line)
    assert "without --reference-model the run begins at 0" in line
    assert "step 1: the mean log-ratio" not in trained(place, tmp_path / "b", capsys, "--adapter", str(adapter))


def test_an_adapter_of_a_quantised_base_is_said_to_meet_another(place, tmp_path, capsys):
    adapter = shutil.copytree(place / "good", tmp_path / "adapter")
    (adapter / "engine.json").write_text('{"base_dtype": "nf4"}')
    said = trained(place, tmp_path, capsys, "--adapter", str(adapter))
    assert "was trained on a base in nf4 and continues with one in float32" in said
    flags = ("--adapter", str(adapter), "--base-dtype", "nf4")
    assert "continues with one in" not in trained(place, tmp_path / "b", capsys, *flags)


def test_layers_that_peft_left_out_are_left_out(place, tmp_path, capsys):
    adapter = shutil.copytree(place / "good", tmp_path / "adapter")
    names = [f"{PREFIX}{i}.{kind}.lora_{x}.weight" for i in range(3) for kind in SIZES if "mlp" in kind for x in "AB"]
    both(says(target_modules="all-linear", exclude_modules=r".*\.mlp\..*"), holds(take=names))(adapter)
    assert "on k_proj, o_proj, q_proj, v_proj: " in trained(place, tmp_path, capsys, "--adapter", str(adapter))


def test_a_reference_adapter_whose_base_has_moved_is_on_the_models_own(place, tmp_path, capsys):
    """As an adapter that is trained further: which base it names is said, and it is put on --model."""
    adapter = shutil.copytree(place / "good", tmp_path / "adapter")
    says(base_model_name_or_path=str(tmp_path / "gone"))(adapter)
    said = trained(place, tmp_path, capsys, "--lora-rank", "2", "--reference-model", str(adapter))
    assert f"{adapter}: names {tmp_path / 'gone'} as its base, and is used with {place / 'model'}" in said
    assert "is the reference with one in" not in said
    (adapter / "engine.json").write_text('{"base_dtype": "int8"}')
    said = trained(place, tmp_path / "b", capsys, "--lora-rank", "2", "--reference-model", str(adapter))
    assert "was trained on a base in int8 and is the reference with one in float32" in said


def test_a_plan_may_be_made_in_an_adapters_own_folder(place, capsys, monkeypatch):
    monkeypatch.chdir(place / "good")
    plan.main(["--model", str(place / "model"), "--adapter", ".", "--gpus", "0"])
    assert "parameters frozen, 0.0 million train" in capsys.readouterr().out
