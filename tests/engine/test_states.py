"""The states of a run: when one is due, which is the newest whole one, and that all it holds comes back."""

import json
from types import SimpleNamespace

import pytest
import torch

from engine.config import CheckpointConfig, OptimizerConfig, ScheduleConfig
from engine.distributed import Ranks
from engine.optim import build, schedule
from engine.run.states import States, damage
from system import InputError
from tests import tiny


def states(folder, **flags):
    folder.mkdir(exist_ok=True)
    return States.open(folder, Ranks(dtype=torch.float32), CheckpointConfig(**flags))


class Training:
    """As much of a run as a state holds: a model, its optimizer with two groups, a table, an objective's numbers."""

    def __init__(self, seed):
        self.policy = tiny.random_llama(seed=seed, num_hidden_layers=1)
        named = self.named = dict(self.policy.named_parameters())
        options = {"head.weight": {"lr": 1e-2}}
        self.optimizer = build(named.items(), OptimizerConfig(lr=1e-3), options=lambda name: options.get(name, {}))
        self.schedule = schedule(self.optimizer, 10, ScheduleConfig(warmup_steps=2))
        self.objective = SimpleNamespace(state={"bco.mean": 0.1 + seed})
        self.reference = SimpleNamespace(
            is_kept=True, values={"ref_logps": torch.full((3, 2), float(seed), dtype=torch.float64)}
        )

    def step(self):
        for p in self.named.values():
            p.grad = torch.randn(p.shape)
        self.optimizer.step()
        self.schedule.step()

    def tensors(self):
        from engine.optim import state_tensors

        held = {name: p.detach() for name, p in self.named.items()}
        return held | {f"optimizer.{name}": x for name, x in state_tensors(self.optimizer, self.named.items()).items()}


def log(n_done, n_tokens=0):
    return SimpleNamespace(n_done=n_done, n_tokens=n_tokens, sync=lambda: None)


def save(held, training, *steps):
    for step in steps:
        held.save(training, log(step, 100 * step))
    held.wait()


# --- when one is due -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("every", "due"), [(None, [4, 8]), (0, []), (1, [*range(1, 10)]), (3, [3, 6, 9]), (5, [5]), (20, [])]
)
def test_a_state_is_due_where_it_was_asked_for_and_never_after_the_last_step(tmp_path, every, due):
    held = states(tmp_path / "state", state_every=every)
    steps = [SimpleNamespace(number=n, ends_epoch=n % 4 == 0 or n == 10) for n in range(1, 11)]
    assert [step.number for step in steps if held.is_due(step, 10)] == due


# --- which is the newest -------------------------------------------------------------------------------------------


def test_where_there_is_none_a_run_begins(tmp_path):
    held = states(tmp_path / "state")
    held.find_newest()
    assert held.step == 0 and held.facts == {} and held.read_reference(None) is None
    held.resume(None)  # nothing to do


def test_the_newest_is_found_and_older_ones_are_gone(tmp_path):
    save(states(tmp_path / "state", keep_state=2), Training(0), 1, 3, 12)
    assert sorted(path.name for path in (tmp_path / "state").iterdir()) == ["step-000003", "step-000012"]
    held = states(tmp_path / "state")
    held.find_newest()
    assert held.step == 12 and held.facts["n_tokens"] == 1200 and held.facts["ranks"] == 1


def test_a_damaged_one_is_set_aside_and_the_one_before_it_taken(tmp_path, capsys):
    save(states(tmp_path / "state", keep_state=2), Training(0), 3, 12)
    data = next((tmp_path / "state/step-000012").glob("*.distcp"))
    whole = data.read_bytes()
    data.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    assert damage(tmp_path / "state/step-000003") is None
    held = states(tmp_path / "state")
    held.find_newest()
    assert held.step == 3 and (tmp_path / "state/step-000012.damaged").is_dir()
    assert "damaged (its SHA-256 is another); set aside as step-000012.damaged" in capsys.readouterr().err
    (tmp_path / "state/step-000003/manifest.json").unlink()
    with pytest.raises(InputError, match="every state is damaged; start again with another --out"):
        states(tmp_path / "state").find_newest()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda path: (path / "run.json").unlink(), "run.json: missing"),
        (lambda path: (path / "more").touch(), "more: not of this state"),
        (lambda path: (path / "run.json").write_text("{}"), "run.json: not the"),
        (lambda path: (path / "manifest.json").write_text("[]"), "manifest.json: missing or damaged"),
    ],
)
def test_what_is_wrong_with_a_state_is_named_by_file(tmp_path, change, said):
    save(states(tmp_path / "state"), Training(0), 3)
    change(tmp_path / "state/step-000003")
    assert said in damage(tmp_path / "state/step-000003")


def test_what_was_left_half_written_is_removed_and_no_state(tmp_path):
    (tmp_path / "state/step-000007.tmp").mkdir(parents=True)
    held = states(tmp_path / "state")
    held.find_newest()
    assert held.step == 0 and not list((tmp_path / "state").iterdir())


# --- what comes back -----------------------------------------------------------------------------------------------


def test_everything_that_decides_the_next_step_comes_back(tmp_path):
    ran = Training(1)
    ran.step()
    ran.step()
    save(states(tmp_path / "state"), ran, 2)
    torch.manual_seed(99)  # whatever happens meanwhile
    resumed, held = Training(2), states(tmp_path / "state")
    held.find_newest()
    assert held.read_reference(resumed.reference) == "as in the state of step 2"
    held.resume(resumed)
    expected = [torch.randn(3)]
    assert [one["lr"] for one in resumed.optimizer.param_groups] == [one["lr"] for one in ran.optimizer.param_groups]
    assert resumed.schedule.state_dict()["last_epoch"] == 2 and resumed.objective.state == {"bco.mean": 1.1}
    assert torch.equal(resumed.reference.values["ref_logps"], torch.ones(3, 2, dtype=torch.float64))
    held.resume(Training(3))  # random numbers go on from where they were
    assert torch.equal(torch.randn(3), expected[0])
    for one in (ran, resumed):
        torch.manual_seed(5)
        one.step()
    assert all(torch.equal(p, resumed.named[name]) for name, p in ran.named.items())


def test_another_number_of_ranks_takes_everything_but_random_numbers(tmp_path):
    save(states(tmp_path / "state"), Training(1), 2)
    held = states(tmp_path / "state")
    held.find_newest()
    held.facts["ranks"] = 2
    torch.manual_seed(7)
    expected = torch.randn(3)
    resumed = Training(2)
    torch.manual_seed(7)
    held.resume(resumed)
    assert torch.equal(torch.randn(3), expected)
    assert torch.equal(resumed.named["head.weight"], Training(1).named["head.weight"])


def test_a_table_that_is_not_kept_is_not_read(tmp_path):
    save(states(tmp_path / "state"), Training(1), 2)
    held = states(tmp_path / "state")
    held.find_newest()
    table = SimpleNamespace(is_kept=False, values={"ref_logps": torch.zeros(3, 2, dtype=torch.float64)})
    assert held.read_reference(table) == "as in the state of step 2" and not table.values["ref_logps"].any()


def test_hosts_that_share_no_disk_save_none(tmp_path):
    held = states(tmp_path / "state")
    held.is_shared = False
    save(held, Training(0), 1)
    assert not list((tmp_path / "state").iterdir())


def test_the_numbers_beside_the_tensors_are_plain_json(tmp_path):
    save(states(tmp_path / "state"), Training(1), 2)
    facts = json.loads((tmp_path / "state/step-000002/run.json").read_text())
    assert set(facts) == {"step", "n_tokens", "objective", "schedule", "ranks"} and facts["step"] == 2
