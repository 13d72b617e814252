"""What each of two real processes does for test_ranks.py; what it found goes into OUT/rank-N.pt.

python -m torch.distributed.run --standalone --nproc_per_node 2 tests/engine/on_two_ranks.py OUT
"""

import sys
from pathlib import Path

import torch
from torch.distributed.tensor.debug import CommDebugMode

from data.forest import pack
from engine import optim
from engine.config import OptimizerConfig
from engine.distributed import Ranks
from engine.model import FusedForward, Llama
from system import InputError
from tests import tiny

SHAPE = {"num_hidden_layers": 2, "hidden_size": 16, "intermediate_size": 24, "vocab_size": 33}
MUON = OptimizerConfig(name="muon", lr=1e-2, weight_decay=0.1)
LENGTHS = [(4, 3, 5), (2, 6, 2)]  # of an example each


def refused(act):
    """The sentence that a call ends in."""
    try:
        return f"returned {act()}"
    except InputError as fault:
        return str(fault)


def speak(ranks, out):
    """What ranks tell one another."""
    r, acted = ranks.rank, []

    def refuse():
        raise InputError(f"rank {r} does not like it")

    def together(*who):
        with ranks.together():
            if r in who:
                refuse()
        return "both"

    found = {
        "max": [ranks.all_reduce_max(x) for x in (r, -r - 1.5, 2.0**52 + r)],
        "sum": ranks.all_reduce_sum(torch.tensor([[1.0 + r, 10.0]], dtype=torch.float64)),
        "broadcast": ranks.broadcast({"from": r, "said": ["a", None]}),
        "on_rank0": ranks.on_rank0(lambda: acted.append(r) or f"made by {r}"),
        "acted": acted,
        "refused on rank 0": refused(lambda: ranks.on_rank0(refuse)),
        "together": {who: refused(lambda who=who: together(*who)) for who in ((), (0,), (1,), (0, 1))},
        "sees": ranks.all_see(out),
        "sees its own": ranks.all_see(out / f"own-{r}"),
    }
    ranks.wait()  # the first rank has removed its marks
    return found | {"left": [path.name for path in out.rglob(".seen*")]}


def share(ranks):
    """Shards of two models: who holds which rows, and gradients that are summed when they should be."""
    expected = {name: p.detach() for name, p in tiny.random_llama(**SHAPE).named_parameters()}
    with torch.device("meta"):
        policy, reference = (Llama(tiny.random_llama(**SHAPE).config) for _ in range(2))
    model = ranks.place(FusedForward(policy, reference), reshards=False)
    with torch.no_grad():
        for name, p in [*policy.named_parameters(), *reference.named_parameters()]:
            rows, first = ranks.local(p)
            rows.copy_(expected[name][first : first + len(rows)])
    found = {"rows": {name: (ranks.local(p)[1], len(ranks.local(p)[0])) for name, p in policy.named_parameters()}}
    found["weights"] = {name: ranks.full_tensor(p).detach() for name, p in policy.named_parameters()}
    own = pack([tiny.random_examples(LENGTHS, vocab_size=33)[ranks.rank]])
    for n_passes in (1, 2):
        for k in range(n_passes):
            ranks.set_gradient_sync(model, k == n_passes - 1)
            total = model(own, with_reference=True)[0].sum()
            with CommDebugMode() as watched:
                total.backward()
            found[f"collectives of pass {k + 1} of {n_passes}"] = watched.get_total_counts()
            found[f"sharded after pass {k + 1} of {n_passes}"] = is_sharded(policy)
        found[f"gradient of {n_passes}"] = {n: ranks.full_tensor(p.grad) for n, p in policy.named_parameters()}
        found[f"norm of {n_passes}"] = ranks.grad_norm(policy.parameters())
        policy.zero_grad()
    with torch.no_grad():
        found["logps"] = tuple(model(own, with_reference=True)[:2])
    found["sharded after a pass without gradient"] = is_sharded(policy)
    ranks.reshard(model)
    found["sharded again"] = is_sharded(policy)
    ranks.release(reference)
    found["bytes of a released model"] = sum(ranks.local(p)[0].untyped_storage().size() for p in reference.parameters())
    return found


def step_by_muon(ranks):
    """Weights after three steps on gradients that all ranks have whole."""
    expected = dict(tiny.random_llama(**SHAPE).named_parameters())
    with torch.device("meta"):
        policy = Llama(tiny.random_llama(**SHAPE).config)
    ranks.place(FusedForward(policy), reshards=False)
    named = dict(policy.named_parameters())
    optimizer = optim.build(named.items(), MUON, access=ranks)
    state = optim.state_tensors(optimizer, named.items())
    with torch.no_grad():
        for name, p in named.items():
            rows, first = ranks.local(p)
            rows.copy_(expected[name][first : first + len(rows)])
    for gradient in whole_gradients(expected):
        for name, p in named.items():
            p.grad = torch.zeros_like(p)
            rows, first = ranks.local(p.grad)
            rows.copy_(gradient[name][first : first + len(rows)])
        optimizer.step()
    return {name: ranks.full_tensor(p).detach() for name, p in named.items()} | {
        name: ranks.full_tensor(x) for name, x in state.items()
    }


def whole_gradients(named):
    """Three of every parameter, the same for all who ask."""
    generator = torch.Generator().manual_seed(3)
    return [{name: torch.randn(p.shape, generator=generator) for name, p in named.items()} for _ in range(3)]


def is_sharded(model):
    """Whether all of its parameters are this rank's shards, and none is gathered."""
    return all(hasattr(p, "to_local") for p in model.parameters())


def main():
    out = Path(sys.argv[1])
    ranks = Ranks.join(dtype=torch.float32, timeout=60.0)
    copies = Ranks(dtype=torch.float32, timeout=60.0, shard_size=1)  # of the same process group
    found = {
        "is": [(x.rank, x.size, x.is_rank0, x.is_sharded, x.holds_first_copy) for x in (ranks, copies)],
        "said": speak(ranks, out),
        "shards": share(ranks),
        "copies": share(copies),
        "muon": {"shards": step_by_muon(ranks), "copies": step_by_muon(copies)},
    }
    torch.save(found, out / f"rank-{ranks.rank}.pt")


if __name__ == "__main__":
    main()
