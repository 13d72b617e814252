"""Checkpoint folders: round trips, what transformers makes of them, what is refused."""

import json
import os
import pickle
import stat
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from engine import weights
from system import InputError
from tests import tiny

TEXTS = ["A small text to learn some merges from.", "Another one, with numbers 123 and newlines.\n\n"] * 20


def parameters(model):
    return {name: p.detach() for name, p in model.named_parameters()}


@pytest.mark.parametrize("shape", tiny.SHAPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_round_trip_is_bit_equal(shape, dtype, tmp_path):
    model = tiny.random_llama(shape, dtype=dtype, vocab_size=103)  # odd, as real vocabularies are
    weights.save(model, tmp_path / "a", shard_bytes=20_000)
    assert len(list((tmp_path / "a").glob("*.safetensors"))) > 1
    again = weights.load(tmp_path / "a", dtype)
    for name, values in parameters(model).items():
        assert torch.equal(parameters(again)[name], values)


@pytest.mark.parametrize("shape", ["llama2", "llama3.1", "llama3.2"])
@pytest.mark.parametrize("shard_bytes", [20_000, 10**9])
def test_transformers_loads_what_is_written(shape, shard_bytes, tmp_path):
    source = tiny.write_model(tmp_path / "source", TEXTS, shape=shape)
    model = weights.load(source)
    weights.save(
        model,
        tmp_path / "out",
        stop_ids=(396, 399),
        beside={"chat_template.jinja": TEMPLATE},
        shard_bytes=shard_bytes,
    )
    peer, report = AutoModelForCausalLM.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"] and not report["mismatched_keys"]
    original = AutoModelForCausalLM.from_pretrained(source)
    ids = torch.randint(0, 400, (1, 30), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.equal(peer(ids).logits, original(ids).logits)
    assert peer.generation_config.eos_token_id == [396, 399]
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert tokenizer.chat_template == TEMPLATE
    assert tokenizer.encode("A small text") == AutoTokenizer.from_pretrained(source).encode("A small text")


def test_files_follow_the_umask(tmp_path):
    before = os.umask(0o027)
    try:
        weights.save(tiny.random_llama(), tmp_path / "out")
    finally:
        os.umask(before)
    modes = {stat.S_IMODE(p.stat().st_mode) for p in (tmp_path / "out").iterdir()}
    assert modes == {0o640}


def test_a_save_that_is_killed_leaves_no_folder(tmp_path):
    script = (
        "import os, sys, signal; from engine import weights; from tests import tiny\n"
        "n = 0\n"
        "class Dies(weights.SingleProcess):\n"
        "    def local(self, p):\n"
        "        global n; n += 1\n"
        "        if n == 5: os.kill(os.getpid(), signal.SIGKILL)\n"
        "        return p, 0\n"
        f"weights.save(tiny.random_llama(), {str(tmp_path / 'out')!r}, parts=Dies())\n"
    )
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == -9
    assert not (tmp_path / "out").exists() and (tmp_path / "out.tmp").exists()
    weights.save(tiny.random_llama(), tmp_path / "out")  # what the kill left behind is in nobody's way
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_an_existing_folder_is_not_written_over(tmp_path):
    weights.save(tiny.random_llama(), tmp_path / "out")
    with pytest.raises(InputError, match="exists already"):
        weights.save(tiny.random_llama(), tmp_path / "out")


def broken(tmp_path, change):
    """A sharded folder after a change to it."""
    folder = tmp_path / "model"
    weights.save(tiny.random_llama(), folder, shard_bytes=20_000)
    change(folder)
    return folder


def edit_json(name, change):
    def edit(folder):
        value = json.loads((folder / name).read_text())
        change(value)
        (folder / name).write_text(json.dumps(value))

    return edit


def cut(folder):
    path = sorted(folder.glob("*.safetensors"))[0]
    path.write_bytes(path.read_bytes()[:-100])


def pickled(folder):
    for path in folder.glob("*.safetensors*"):
        path.unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps({"a": 1}))


TEMPLATE = "{{ messages }}"
INDEX = "model.safetensors.index.json"
NORM = "model.norm.weight"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (cut, "cannot be read"),
        (pickled, "pickle"),
        (lambda folder: sorted(folder.glob("*.safetensors"))[1].unlink(), "cannot be read"),
        (edit_json(INDEX, lambda v: v["weight_map"].update({NORM: "../secret.safetensors"})), "beside the index only"),
        (edit_json(INDEX, lambda v: v["weight_map"].update({NORM: "/etc/x.safetensors"})), "beside the index only"),
        (edit_json(INDEX, lambda v: v["weight_map"].update({"model.extra": v["weight_map"][NORM]})), "model.extra"),
        (edit_json("config.json", lambda v: v.update(num_hidden_layers=4)), "lacks model.layers.3"),
        (edit_json("config.json", lambda v: v.update(num_hidden_layers=2)), "unknown model.layers.2"),
        (edit_json("config.json", lambda v: v.update(vocab_size=99)), r"is \[101, 32\], config.json says \[99, 32\]"),
        (lambda folder: (folder / "config.json").write_text("{"), "not JSON"),
    ],
)
def test_a_folder_that_does_not_fit_is_refused_before_a_weight_is_read(tmp_path, change, said):
    with pytest.raises(InputError, match=said) as caught:
        weights.load(broken(tmp_path, change))
    assert "\n" not in str(caught.value) and str(tmp_path) in str(caught.value)


@pytest.mark.parametrize("sees", [True, False])
@pytest.mark.parametrize("n", [1, 2, 3, 7])
def test_rows_written_by_several_make_the_same_files(tmp_path, n, sees):
    """The rows of 103 tokens do not divide evenly, and a norm of 32 has less rows than some would hold.

    Where not all see the files, each host having a disk of its own, the first one writes what is gathered.
    """
    model = tiny.random_llama(vocab_size=103)
    weights.save(model, tmp_path / "one", shard_bytes=20_000)
    at_start, at_end = threading.Barrier(n), threading.Barrier(n)

    class Part(weights.SingleProcess):
        def __init__(self, rank):
            self.rank = rank
            self.is_rank0 = rank == 0

        def local(self, parameter):
            size = -(-len(parameter) // n)  # FSDP's shards: the last ones may be short, or empty
            return parameter[self.rank * size : (self.rank + 1) * size], min(self.rank * size, len(parameter))

        def all_see(self, folder):
            at_start.wait(30)
            assert not sees or any(folder.glob("*.safetensors"))  # room is made for every file by now
            return sees

        def wait(self):
            at_end.wait(30)

    def go(rank):
        disk = tmp_path if sees or rank == 0 else tmp_path / f"host-{rank}"
        weights.save(model, disk / "many", shard_bytes=20_000, parts=Part(rank))

    with ThreadPoolExecutor(n) as pool:
        list(pool.map(go, range(n)))
    one, many = ({p.name: p.read_bytes() for p in (tmp_path / name).iterdir()} for name in ("one", "many"))
    assert one == many and len(one) > 5


def test_a_file_that_is_cut_while_it_is_read_ends_in_one_sentence(tmp_path):
    """A map of the file would end the process by SIGBUS; a file that is replaced is read to its end."""
    folder = tmp_path / "model"
    weights.save(tiny.random_llama(), folder)
    path = folder / "model.safetensors"
    with weights.Checkpoint(folder) as checkpoint:
        first = checkpoint.rows("model.embed_tokens.weight", 0, 5)
        content = path.read_bytes()
        path.unlink()
        path.write_bytes(content[:3000])
        torch.testing.assert_close(checkpoint.rows("model.embed_tokens.weight", 0, 5), first, rtol=0, atol=0)
    path.write_bytes(content)
    with weights.Checkpoint(folder) as checkpoint:
        os.truncate(path, 3000)
        with pytest.raises(InputError, match="was truncated while it was read; copy it again"):
            checkpoint.rows("lm_head.weight", 0, 101)
