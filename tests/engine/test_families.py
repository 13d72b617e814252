"""Every family and variant against transformers, on the same random weights: log-probs, gradients, text, folders.

Sequences go beyond windows and original contexts (tests/family_table.py). Slow but for the log-probs and gradients of a
few variants that together touch every option of the block.
"""

from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

from data.text import read_json
from engine import weights
from engine.model import Dynamic, FusedForward, ModelConfig, Transformer, attention
from engine.sampling import Sampling, generate
from tests import tiny
from tests.families import (
    LENGTHS,
    Subject,
    apo_zero,
    forest_of,
    lifted,
    load_peer,
    name_in_peer,
    peer_logps,
    write_peer,
)
from tests.family_table import VARIANTS

MARKED = [pytest.param(v, id=v.name, marks=() if v.is_quick else pytest.mark.slow) for v in VARIANTS]
LONGEST = max(prompt + max(responses) for prompt, *responses in LENGTHS)
WAYS = {"dense": attention.dense, "by document": attention.by_document}


@pytest.fixture(scope="module", params=MARKED)
def subject(request, tmp_path_factory) -> Subject:
    """A variant: its tests follow one another, so that each is made once."""
    return Subject(request.param, write_peer(tmp_path_factory.mktemp("family"), request.param))


@pytest.fixture(params=WAYS)
def way(request, monkeypatch) -> None:
    """Attention in one of the two ways of the CPU."""
    monkeypatch.setattr(attention, "for_forest", lambda forest, dtype: WAYS[request.param](forest))


def logps(model: Transformer, examples) -> torch.Tensor:
    """[S], with gradient."""
    return FusedForward(model)(forest_of(model, examples), with_reference=False).logps


def furthest(found: torch.Tensor, wanted: torch.Tensor) -> float:
    """The greatest relative difference."""
    return float(((found - wanted) / wanted).abs().max())


def test_float32_is_within_2e_6_of_the_float64_of_transformers(subject, way):
    with torch.no_grad():
        found = logps(subject.narrow, subject.examples)
    assert furthest(found, subject.as_it_is) < 2e-6


def test_float64_is_within_1e_10_of_transformers_without_its_float32(subject, way):
    with torch.no_grad():
        found = logps(subject.ours, subject.examples)
    assert furthest(found, subject.exact) < 1e-10


def test_gradients_of_apo_zero_are_those_of_autograd_in_transformers(subject):
    ours, peer = subject.ours, subject.peer
    ours.zero_grad()
    peer.zero_grad()
    apo_zero(logps(ours, subject.examples), subject.reference).backward()
    with lifted():
        apo_zero(peer_logps(peer, subject.examples), subject.reference).backward()
    theirs = {name: parameter.grad for name, parameter in peer.named_parameters() if parameter.grad is not None}
    reached = set()
    for name, parameter in ours.named_parameters():
        tensor, first = ours.config.place(name)
        reached.add(name_in_peer(tensor))
        wanted = theirs[name_in_peer(tensor)][first : first + len(parameter)]
        # The bias of keys that do not turn moves no weight of any of them: its gradient is rounding alone.
        assert (parameter.grad - wanted).norm() < 1e-9 * wanted.norm() + 1e-13, name
    assert reached == set(theirs)


def test_a_packed_forest_is_each_sequence_alone(subject, way):
    pairs = subject.examples
    alone = [example._replace(responses=(response,)) for example in pairs for response in example.responses]
    with torch.no_grad():
        packed = logps(subject.ours, pairs)
        single = torch.cat([logps(subject.ours, [example]) for example in alone])
    assert furthest(packed, single) < 1e-12


@pytest.mark.slow
def test_greedy_text_is_that_of_transformers(subject):
    """Prompts below, at and beyond windows and original contexts, some of which the answers cross."""
    prompts = [row.prompt.tolist() for row in tiny.random_examples([(n, 1) for n in (1, 4, 9, 16, 30)], seed=8)]
    options = {"do_sample": False, "max_new_tokens": 16, "eos_token_id": None, "pad_token_id": 0}
    with lifted(), torch.no_grad():
        texts = [subject.peer.generate(torch.tensor([ids]), **options)[0, len(ids) :].tolist() for ids in prompts]
    for model in (subject.ours, subject.narrow):
        answers = generate(model, prompts, Sampling(temperature=0, max_new_tokens=16), ())
        assert [answer.ids for answer in answers] == texts
    in_pieces = Sampling(temperature=0, max_new_tokens=16, prefill_tokens=5, batch_size=2)
    assert [answer.ids for answer in generate(subject.ours, prompts, in_pieces, ())] == texts


@pytest.mark.slow
def test_a_written_folder_is_the_one_that_was_read(subject, tmp_path):
    weights.save(subject.narrow, tmp_path / "written")
    source, written = (read_json(folder / "config.json") for folder in (subject.folder, tmp_path / "written"))
    dtypes = [{key: raw.pop(key, None) for key in ("dtype", "torch_dtype")} for raw in (source, written)]
    assert source == written and dtypes[0] == dtypes[1]  # float32 as before
    before, after = (load_file(folder / "model.safetensors") for folder in (subject.folder, tmp_path / "written"))
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    peer, found = type(subject.peer).from_pretrained(
        tmp_path / "written", dtype=torch.float32, attn_implementation="eager", output_loading_info=True
    )
    assert not any(found[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    ids = torch.randint(0, 101, (1, 40), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        wanted = load_peer(subject.folder, subject.variant, torch.float32)(input_ids=ids).logits
        assert torch.equal(peer.eval()(input_ids=ids).logits, wanted)


def without_each_option(config: ModelConfig) -> Iterator[tuple[str, ModelConfig]]:
    """The same model but for one option that it has, switched off."""

    def layers(change) -> ModelConfig:
        return replace(config, layers=tuple(change(layer) for layer in config.layers))

    plain = {
        "attention_cap": None, "logit_cap": None, "attention_scale": None, "embed_factor": 1.0, "residual_factor": 1.0,
        "logit_divisor": 1.0, "norm_adds_one": False, "activation": "silu",
    }  # fmt: skip
    for name, value in plain.items():
        if getattr(config, name) != value and getattr(config, name) != "xielu":
            yield name, replace(config, **{name: value})
    if any(layer.window and layer.window < LONGEST for layer in config.layers):
        yield "window", layers(lambda layer: replace(layer, window=None))
        yield "a wider window", layers(lambda layer: replace(layer, window=layer.window and layer.window + 1))
    if any(layer.rope is None for layer in config.layers):
        yield "no rope", layers(lambda layer: replace(layer, rope=config.ropes[0]))
    for option in ("scaling", "growth"):  # dynamic is none within its context
        if any(getattr(rope, option) and not isinstance(rope.scaling, Dynamic) for rope in config.ropes):
            yield option, layers(lambda x, o=option: replace(x, rope=x.rope and replace(x.rope, **{o: None})))
    if len(config.ropes) > 1:
        yield "one rope for all", layers(lambda layer: replace(layer, rope=config.ropes[0]))


def test_each_option_that_a_variant_has_moves_its_log_probs(subject):
    """Agreement would prove nothing of an option without effect: these have one far above every tolerance here."""
    with torch.no_grad():
        right = logps(subject.ours, subject.examples)
        for name, config in without_each_option(subject.ours.config):
            other = Transformer(config).double()
            other.load_state_dict(subject.ours.state_dict())
            assert furthest(logps(other, subject.examples), right) > 1e-4, name
