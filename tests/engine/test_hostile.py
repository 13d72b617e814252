"""Model folders that are damaged or lie: refused by content, before anything is allocated, in one sentence."""

import json
import os
import pickle
import resource
import shutil
import struct
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from engine import weights
from engine.weights import safetensors_header
from system import InputError
from tests import forks, tiny

NORM = "model.norm.weight"
INDEX = "model.safetensors.index.json"


def raw(header, data=b""):
    """A safetensors file with a header of our own making."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def tensor(start, end, dtype="F32", shape=None):
    return {"dtype": dtype, "shape": shape or [(end - start) // 4], "data_offsets": [start, end]}


def many_tensors():
    return raw(json.dumps({f"t{i}": tensor(0, 0, shape=[0]) for i in range(200_000)}).encode())


FILES = {  # content of model.safetensors -> what is said of it
    "empty": (b"", "cut in its header"),
    "seven bytes": (b"\x01" * 7, "cut in its header"),
    "a header of nothing": (raw(b""), "its header is not JSON"),
    "a header of 2^63 bytes": (struct.pack("<Q", 2**63) + b"{}", "cut in its header"),
    "a header longer than the file": (struct.pack("<Q", 1000) + b"{}", "cut in its header"),
    "a header of 12 MB": (many_tensors(), "above 8,388,608"),
    "a header that is not JSON": (raw(b"{'a': 1}"), "its header is not JSON"),
    "a header that is a list": (raw(b"[]"), "its header is not an object"),
    "a deep header": (raw(b"[" * 100_000), "its header is not JSON"),
    "a pickle": (pickle.dumps({"a": [1] * 100}), "cut in its header"),
    "a zip of pickles": (b"PK\x03\x04" + bytes(100), "cut in its header|not JSON"),
    "a pointer of Git LFS": (b"version https://git-lfs.github.com/spec/v1\n", "a Git LFS pointer"),
    "an overlap": (raw({"a": tensor(0, 8), "b": tensor(4, 12)}, bytes(12)), "b overlaps"),
    "a hole": (raw({"a": tensor(0, 4), "b": tensor(8, 12)}, bytes(12)), "leaves a hole"),
    "the same bytes twice": (raw({"a": tensor(0, 4), "b": tensor(0, 4)}, bytes(4)), "b overlaps"),
    "a place that goes back": (raw({"a": tensor(4, 0, shape=[1])}, bytes(4)), "a overlaps"),
    "a byte too many": (raw({"a": tensor(0, 4)}, bytes(5)), "take 4 bytes and it holds 5"),
    "a byte too few": (raw({"a": tensor(0, 4)}, bytes(3)), "take 4 bytes and it holds 3"),
    "a name twice": (raw(b'{"a": {}, "a": {}}'), "a stands twice"),
    "no place": (raw({"a": {"dtype": "F32", "shape": [1]}}, bytes(4)), "a has no shape or place"),
    "a place of text": (raw({"a": {"dtype": "F32", "shape": [1], "data_offsets": ["0", 4]}}, bytes(4)), "cannot be"),
    "a shape below zero": (raw({"a": tensor(0, 4, shape=[-1])}, bytes(4)), "cannot be"),
    "a shape that overflows": (raw({"a": tensor(0, 4, shape=[2**62, 4])}, bytes(4)), "cannot be read"),
    "a shape of other bytes": (raw({"a": tensor(0, 4, shape=[2])}, bytes(4)), "cannot be read"),
    "an unknown dtype": (raw({"a": tensor(0, 4, "F33")}, bytes(4)), "cannot be read"),
}


@pytest.mark.parametrize(("content", "said"), FILES.values(), ids=FILES)
def test_a_file_that_is_no_safetensors_is_refused_by_content(tmp_path, content, said):
    (tmp_path / "config.json").write_text(json.dumps(tiny.raw_config()))
    (tmp_path / "model.safetensors").write_bytes(content)
    start = time.monotonic()
    with pytest.raises(InputError, match=said) as fault:
        weights.check(tmp_path, weights.build(tmp_path))
    assert time.monotonic() - start < 10  # and not the minutes of reading all of it
    assert "\n" not in str(fault.value) and str(tmp_path / "model.safetensors") in str(fault.value)


def test_a_huge_header_is_refused_in_little_memory(tmp_path):
    with open(tmp_path / "model.safetensors", "wb") as file:
        file.write(struct.pack("<Q", 2**30))
        file.truncate(2**31)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(InputError, match="a header of 1,073,741,824 bytes"):
        safetensors_header.read(tmp_path / "model.safetensors")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50 * 1024


@pytest.fixture
def folder(tmp_path):
    """A sharded folder."""
    path = tmp_path / "model"
    weights.save(tiny.random_llama(), path, shard_bytes=20_000)
    return path


def refused(folder):
    with pytest.raises(InputError) as fault:
        weights.load(folder)
    assert "\n" not in str(fault.value) and str(folder) in str(fault.value)
    return str(fault.value)


def edit(path, **changes):
    value = json.loads(path.read_text())
    path.write_text(json.dumps(value | changes))


def edit_shard(folder, name, change):
    """Rewrites the shard that holds a tensor, after a change to its dictionary of tensors."""
    file = folder / json.loads((folder / INDEX).read_text())["weight_map"][name]
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file)


def put(folder, where):
    index = json.loads((folder / INDEX).read_text())
    index["weight_map"][NORM] = where
    (folder / INDEX).write_text(json.dumps(index))


@pytest.mark.parametrize("where", ["../x", "/etc/x", "a/b", "a\\b", "C:x", "./x", ".x", "", "..", "a/./b"])
def test_an_index_never_leads_out_of_its_folder(folder, where):
    put(folder, f"{where}.safetensors")
    assert "files beside the index only" in refused(folder)


def test_a_link_out_of_the_folder_is_refused_but_a_hubs_is_not(folder, tmp_path):
    name = json.loads((folder / INDEX).read_text())["weight_map"][NORM]
    outside = tmp_path / "elsewhere.safetensors"
    shutil.move(folder / name, outside)
    (folder / name).symlink_to(outside)
    assert f"is a link to {outside}, outside of its folder" in refused(folder)
    snapshot, blobs = tmp_path / "hub" / "snapshots" / "abc", tmp_path / "hub" / "blobs"
    (folder / name).unlink()
    shutil.move(outside, folder / name)
    blobs.mkdir(parents=True)
    snapshot.mkdir(parents=True)
    for path in folder.iterdir():
        shutil.move(path, blobs / path.name)
        (snapshot / path.name).symlink_to(Path("../../blobs") / path.name)
    assert torch.equal(weights.load(snapshot).embed.weight, tiny.random_llama().embed.weight)


@pytest.mark.timeout(20)
@pytest.mark.parametrize("kind", ["a pipe", "a folder", "a link to nothing", "absent"])
def test_a_shard_that_is_no_file_is_refused(folder, kind):
    path = folder / json.loads((folder / INDEX).read_text())["weight_map"][NORM]
    path.unlink()
    if kind == "a pipe":
        os.mkfifo(path)
    elif kind == "a folder":
        path.mkdir()
    elif kind == "a link to nothing":
        path.symlink_to(folder / "nothing")
    assert f"{path}: cannot be read" in refused(folder)


def test_tensors_missing_left_over_or_in_two_shards_are_refused(folder):
    edit_shard(folder, NORM, lambda tensors: tensors.update({"model.extra": torch.zeros(2)}))
    assert "does not name model.extra" in refused(folder)
    index = json.loads((folder / INDEX).read_text())
    index["weight_map"]["model.extra"] = index["weight_map"][NORM]
    (folder / INDEX).write_text(json.dumps(index))
    assert "has the unknown model.extra" in refused(folder)
    edit_shard(folder, NORM, lambda tensors: tensors.pop("model.extra"))
    del index["weight_map"]["model.extra"]
    (folder / INDEX).write_text(json.dumps(index))
    weights.load(folder)
    first = sorted(folder.glob("*.safetensors"))[0].name
    edit_shard(folder, NORM, lambda tensors: tensors.update({"model.embed_tokens.weight": torch.zeros(101, 32)}))
    assert f"model.embed_tokens.weight is also in {first}" in refused(folder)


def test_a_shard_that_the_index_does_not_name_is_refused(folder):
    shard = sorted(folder.glob("*.safetensors"))[0]
    shutil.copy(shard, folder / "model-00009-of-00009.safetensors")
    assert "does not name model-00009-of-00009.safetensors, which lies beside it" in refused(folder)


def test_an_index_without_a_map_is_refused(folder):
    for text in ("{}", '{"weight_map": []}', '{"weight_map": {}}', '{"weight_map": {"a": 1}}'):
        (folder / INDEX).write_text(text)
        assert "no weight_map" in refused(folder)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda t: t.update({NORM: t[NORM].to(torch.int32)}), "is I32; it has to be"),
        (lambda t: t.update({NORM: t[NORM].view(4, 8)}), r"is [4, 8], config.json says [32]"),
        (lambda t: t.update({NORM: t[NORM] * float("nan")}), "holds NaN or infinity"),
        (lambda t: t.update({NORM: t[NORM] * float("inf")}), "holds NaN or infinity"),
    ],
    ids=["integers", "another shape", "NaN", "infinity"],
)
def test_a_tensor_that_is_not_what_config_says_is_refused(folder, change, said):
    edit(folder / "config.json", dtype="bfloat16")
    for path in folder.glob("*.safetensors"):
        save_file({name: t.to(torch.bfloat16) for name, t in load_file(path).items()}, path)
    weights.load(folder)
    edit_shard(folder, NORM, change)
    assert said in refused(folder)


def test_float32_holds_what_was_announced(folder):
    edit(folder / "config.json", dtype="bfloat16")
    assert torch.equal(weights.load(folder).embed.weight, tiny.random_llama().embed.weight)


LIES = {
    "a thousand million layers": ({"num_hidden_layers": 10**9}, "num_hidden_layers = 1000000000; .* 4,096 at most"),
    "layers below zero": ({"num_hidden_layers": -1}, "num_hidden_layers = -1"),
    "half a layer": ({"num_hidden_layers": 1.5}, "num_hidden_layers = 1.5"),
    "a size of text": ({"hidden_size": "32"}, "hidden_size = '32'"),
    "heads that do not divide": ({"num_attention_heads": 5, "head_dim": 8}, "heads have to be a multiple"),
    "an odd head": ({"head_dim": 7}, "heads have to be a multiple"),
    "quantised": ({"quantization_config": {"bits": 4}}, "quantization_config says that the weights are quantised"),
    "another architecture": ({"architectures": ["Evil"], "model_type": "x"}, "architecture .* is not supported"),
    "an unknown rope": (
        {"rope_scaling": {"rope_type": "longrope", "factor": 4}},
        "rope type 'longrope' is not supported",
    ),
    "a rope of text": ({"rope_scaling": "x"}, "rope_scaling = 'x'; it has to be an object"),
    "a rope of a list": ({"rope_parameters": [1]}, r"rope_parameters = \[1\]; it has to be an object"),
    "a rope without a factor": ({"rope_scaling": {"rope_type": "llama3"}}, "factor = None"),
    "eps that is not a number": ({"rms_norm_eps": float("nan")}, "rms_norm_eps = nan"),
    "eps below zero": ({"rms_norm_eps": -1e-5}, "rms_norm_eps = -1e-05"),
    "an infinite base": ({"rope_theta": float("inf")}, "rope_theta = inf"),
    "a base of text": ({"rope_theta": "x"}, "rope_theta = 'x'"),
    "tied by a text": ({"tie_word_embeddings": "false"}, "tie_word_embeddings = 'false'; it has to be true or false"),
    "another activation": ({"hidden_act": "gelu"}, "hidden_act = 'gelu' is not supported"),
}


@pytest.mark.parametrize(("change", "said"), LIES.values(), ids=LIES)
def test_a_config_that_lies_is_refused_before_anything_is_allocated(folder, change, said):
    edit(folder / "config.json", **change)
    start = time.monotonic()
    with pytest.raises(InputError, match=said) as fault:
        weights.build(folder)
    assert time.monotonic() - start < 1
    assert str(folder / "config.json") in str(fault.value) and "\n" not in str(fault.value)


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "\x00", '{"a": ' * 100_000])
def test_a_config_that_is_no_object_is_refused(folder, text):
    (folder / "config.json").write_text(text)
    assert "config.json: " in refused(folder)


# --- through the real command line ---------------------------------------------------------------------------------


def train(folder, rows, out, *flags):
    command = [sys.executable, "-m", "engine.train", "--model", folder, "--data", rows, "--out", out, *flags]
    return forks.run(command)


def as_data(change):
    """A change to (model folder, rows): the rows are replaced."""
    return lambda folder, rows: rows.write_bytes(change if isinstance(change, bytes) else change.encode())


def with_template(text):
    return lambda folder, rows: (folder / "chat_template.jinja").write_text(text)


COMMANDS = {
    "a cut shard": (lambda f, r: os.truncate(f / "model.safetensors", 1000), "model.safetensors: cannot be read"),
    "a config of 10^9 layers": (
        lambda f, r: edit(f / "config.json", num_hidden_layers=10**9),
        "config.json: num_hidden",
    ),
    "a vocabulary below the tokenizer's": (
        lambda f, r: edit(f / "config.json", vocab_size=300),
        "model.embed_tokens.weight is [400, 32], config.json says [300, 32]",
    ),
    "a template that never ends": (
        with_template("{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"),
        "chat_template.jinja: rendering a conversation of two words takes more than 3 seconds",
    ),
    "a template that refuses a role": (
        with_template("{{ raise_exception('no system') if messages[0].role == 'system' }}" + tiny.TEMPLATE),
        "rows.jsonl:2: the chat template ",
    ),
    "a broken tokenizer": (lambda f, r: (f / "tokenizer.json").write_text("{"), "tokenizer.json: not JSON"),
    "no rows": (as_data("\n"), "rows.jsonl: holds no rows; give another file"),
    "a torn last line": (
        as_data('{"prompt": "q", "chosen": "a", "rejected": "b"}\n{"prompt": "q'),
        "rows.jsonl:2: not JSON",
    ),
    "a prompt longer than the limit allows": (None, "rows.jsonl:1: the template's own tokens in this prompt, "),
    "a half of a pair of surrogates": (as_data('{"prompt": "\\ud800"}'), "rows.jsonl:1: text with half of a surrogate"),
}


FAST = 6  # each is a process of its own


@pytest.mark.parametrize(
    ("change", "said"),
    [
        pytest.param(*of, id=name, marks=[pytest.mark.slow] * (i >= FAST))
        for i, (name, of) in enumerate(COMMANDS.items())
    ],
)
def test_bad_input_ends_a_run_in_2_with_one_sentence_and_leaves_nothing(tmp_path, change, said):
    folder = tiny.write_model(tmp_path / "model", ["user assistant system question answer\n\n"])
    rows = [{"prompt": "q", "chosen": "a", "rejected": "b"}]
    rows += [rows[0] | {"prompt": [{"role": "system", "content": "s"}, {"role": "user", "content": "q"}]}]
    file = tiny.write_rows(tmp_path / "rows.jsonl", rows)
    if change:
        change(folder, file)
    done = train(folder, file, tmp_path / "run", *([] if change else ["--max-prompt-tokens", "3"]))
    assert done.returncode == 2 and done.stdout == ""
    assert "Traceback" not in done.stderr and done.stderr.startswith("error: ")
    assert said in done.stderr
    assert not (tmp_path / "run").exists()
