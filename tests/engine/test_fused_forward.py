"""The forest's forward pass against each sequence alone in a padded batch, in float64."""

import pytest
import torch
from torch.distributed.fsdp._fully_shard._fsdp_param_group import FSDPParamGroup

from data.forest import pack
from engine.distributed.ranks import Ranks
from engine.model import Llama, attention
from engine.model.fused_forward import FusedForward
from tests import tiny
from tests.engine.padded import padded_logps

# one-token responses, one response a prefix of the other, a prompt of one token, plain ones
LENGTHS = [(5, 4, 6), (1, 1, 1), (3, 1, 5), (7, 9, 1), (1, 8, 3), (4, 3, 7), (12, 20, 11)]


def pairs():
    examples = tiny.random_examples(LENGTHS, seed=3)
    longer = examples[5].responses[1]
    examples[5] = examples[5]._replace(responses=(longer[:3], longer))  # a prefix
    return examples


def gradients(model, logps):
    """Of an arbitrary smooth function of the log-probs, so that every sequence has a weight of its own."""
    model.zero_grad()
    (logps * torch.linspace(-1, 2, len(logps), dtype=torch.float64)).sum().backward()
    return {name: p.grad.clone() for name, p in model.named_parameters()}


def in_threes(forest):
    """By document, three queries at a time where there is a mask, and a mask wherever there may be one."""
    found = attention.by_document(forest)

    def attend(*given):
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(attention, "CHUNK", 3)
            patched.setattr(attention, "WHOLE", 0)
            return found(*given)

    return attend


@pytest.mark.parametrize("shape", ["llama3", "llama3.2"])  # untied and tied
@pytest.mark.parametrize(
    "path",
    [attention.dense, lambda forest: attention.dense(forest, run_tokens=8), attention.by_document, in_threes],
    ids=["dense", "dense in short runs", "by document", "by document in threes"],
)
@pytest.mark.parametrize("chunk_rows", [10**6, 7])
def test_packing_and_sharing_the_prompt_change_nothing(shape, path, chunk_rows, monkeypatch):
    model = tiny.random_llama(shape, dtype=torch.float64)
    model.head.chunk_bytes = chunk_rows * 4 * model.config.vocab_size
    monkeypatch.setattr(attention, "for_forest", lambda forest, dtype: path(forest))
    examples = pairs()
    logps = FusedForward(model)(pack(examples), with_reference=False).logps
    ours = gradients(model, logps)
    expected = padded_logps(model, examples)
    torch.testing.assert_close(logps, expected, rtol=0, atol=1e-10)
    for name, gradient in gradients(model, expected).items():
        torch.testing.assert_close(ours[name], gradient, rtol=0, atol=1e-10, msg=lambda m, name=name: f"{name}: {m}")


def test_a_forest_holds_each_prompt_once_and_no_padding():
    forest = pack(pairs())
    assert forest.n_tokens == sum(p + a - 1 + b - 1 for p, a, b in LENGTHS)
    assert forest.cu_q[-1] == forest.n_tokens and len(forest.rows) == int(forest.lengths.sum())
    assert (forest.cu_q.diff() > 0).all() and (forest.cu_k.diff() >= forest.cu_q.diff()).all()


def test_attention_paths_differ_from_one_that_sees_everything(monkeypatch):
    """The paths above agree because each is right, not because attention did not matter."""
    model = tiny.random_llama(dtype=torch.float64)
    forest = pack(pairs())
    right = FusedForward(model)(forest, with_reference=False).logps
    blind = torch.ones(forest.n_tokens, forest.n_tokens, dtype=torch.bool).tril()
    monkeypatch.setattr(attention, "for_forest", lambda f, dtype: lambda q, k, v, _: attention.masked(q, k, v, blind))
    wrong = FusedForward(model)(forest, with_reference=False).logps
    assert (right - wrong).abs().max() > 1


def test_the_fused_walk_starts_at_a_log_ratio_of_exactly_0():
    policy, reference = tiny.random_llama(), tiny.random_llama()
    logps, ref_logps, _ = FusedForward(policy, reference)(pack(pairs()), with_reference=True)
    assert torch.equal(logps, ref_logps)
    assert logps.requires_grad and not ref_logps.requires_grad


def test_the_reference_gets_no_gradient_and_changes_no_gradient_of_the_policy():
    forest = pack(pairs())
    alone = tiny.random_llama(dtype=torch.float64)
    expected = gradients(alone, FusedForward(alone)(forest, with_reference=False)[0])
    policy, reference = tiny.random_llama(dtype=torch.float64), tiny.random_llama(seed=1, dtype=torch.float64)
    logps, ref_logps, _ = FusedForward(policy, reference)(forest, with_reference=True)
    assert not torch.equal(logps, ref_logps)
    for name, gradient in gradients(policy, logps).items():
        assert torch.equal(gradient, expected[name])
    assert all(p.grad is None for p in reference.parameters())


def test_an_empty_forest_gives_every_parameter_a_gradient_of_zero():
    model = tiny.random_llama()
    logps = FusedForward(model)(pack([]), with_reference=False).logps
    assert len(logps) == 0
    logps.sum().backward()
    assert all(p.grad is not None and not p.grad.any() for p in model.parameters())


def test_the_backward_pass_never_gathers_the_reference(monkeypatch):
    """Left to itself FSDP gathers, in the backward pass, whatever was walked before: every block of the reference."""
    ranks = Ranks.join(dtype=torch.bfloat16)
    with torch.device("meta"):
        models = [Llama(tiny.random_llama().config) for _ in range(2)]
    fused = ranks.place(FusedForward(*models), reshards=True)
    for p in fused.parameters():
        torch.nn.init.normal_(p.to_local(), std=0.05)
    gathered, unshard = [], FSDPParamGroup.unshard

    def noted(group, *arguments, **more):
        if not group.is_unsharded:
            gathered.append(group._module_fqn)
        return unshard(group, *arguments, **more)

    monkeypatch.setattr(FSDPParamGroup, "unshard", noted)
    logps = fused(pack(pairs()), with_reference=True).logps
    assert any(name.startswith("reference.blocks") for name in gathered)  # they walked
    gathered.clear()
    logps.sum().backward()
    assert gathered and all(name.startswith("policy.") for name in gathered), gathered
    for _ in range(2):  # while the reference is there, and after
        gathered.clear()
        fused(pack(pairs()), with_reference=False)[0].sum().backward()
        assert gathered and all(name.startswith("policy.") for name in gathered), gathered
        ranks.release(models[1])


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of the compiler's own
def test_nothing_is_compiled_again_after_the_first_pass():
    from torch._dynamo.utils import counters  # brings the compiler, for the slow tests alone

    fused = FusedForward(tiny.random_llama(), tiny.random_llama())
    fused.policy.recompute(1)
    for model in (fused.policy, fused.reference):
        model.compile_blocks()
    n_graphs = []
    for seed, lengths in enumerate([LENGTHS, LENGTHS[:3], LENGTHS[3:], LENGTHS[:1], LENGTHS * 3]):
        logps, reference, _ = fused(pack(tiny.random_examples(lengths, seed=seed)), with_reference=True)
        logps.sum().backward()
        assert torch.equal(logps, reference)
        n_graphs.append(counters["stats"]["unique_graphs"])
    assert len(set(n_graphs)) == 1 and n_graphs[0] > 0, n_graphs
