"""Objectives by name: what the decorator refuses, and where an objective may come from."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import losses
from losses import LossError, Responses, Result, registry

LEAD = '''
from torch.nn.functional import logsigmoid

from losses import Responses, Result, loss


@loss("lead", data="pairs", reference=True)
def lead(chosen: Responses, rejected: Responses, *, beta: float = 0.1, by: float = 1.0) -> Result:
    """DPO whose winner has to lead by a fixed reward."""
    r_w, r_l = beta * chosen.logratios, beta * rejected.logratios
    return Result(-logsigmoid(r_w - r_l - by), r_w.detach(), r_l.detach())
'''


@pytest.fixture(autouse=True)
def registered(monkeypatch):
    """What a test registers is gone after it."""
    for name in ("_losses", "_aliases", "_files"):
        monkeypatch.setattr(registry, name, dict(getattr(registry, name)))


def pair(chosen, rejected, *, beta: float = 0.1) -> Result:
    return Result(chosen.logps, chosen.logps, rejected.logps)


def test_the_papers_objectives_are_there_sorted_and_without_aliases():
    assert {"apo_down", "apo_zero", "apo_zero_unpaired", "dpo", "kto", "kto_pair", "sft"} <= set(losses.names())
    assert losses.names() == sorted(losses.names()) and "sigmoid" not in losses.names()


def test_an_alias_gives_the_same_objective():
    assert losses.get("sigmoid") is losses.get("dpo")


def test_an_objective_knows_what_its_signature_and_decorator_say():
    kto, kto_pair, sft = map(losses.get, ("kto", "kto_pair", "sft"))
    assert (kto.name, kto.data, kto.reference, kto.needs) == ("kto", "unpaired", True, {"mismatched"})
    assert dict(kto.defaults) == {"beta": 0.1, "desirable_weight": 1.0, "undesirable_weight": 1.0, "kl": None}
    assert kto.injected == {"mismatched"} and kto.types["beta"] is float
    assert kto_pair.whole_step and not kto.whole_step and not losses.get("dpo").whole_step
    assert not sft.reference and sft.injected == {"mean_length"} and "mean_length" not in sft.defaults
    assert losses.get("apo_zero").summary.startswith("Raise the winner's likelihood")


@pytest.mark.parametrize("name", ["apo_down", "apo_zero", "apo_zero_unpaired", "dpo", "kto", "kto_pair", "sft"])
def test_the_papers_beta_is_the_default(name):
    assert losses.get(name).defaults["beta"] == 0.1


def test_calling_an_objective_calls_its_function():
    made = losses.loss("plain", data="pairs")(pair)
    assert made.function is pair and losses.get("plain") is made
    result = made(Responses(torch.ones(2)), Responses(torch.zeros(2)))
    assert torch.equal(result.losses, torch.ones(2)) and dict(result.metrics) == {} and result.state is None


@pytest.mark.parametrize(
    ("name", "meant"), [("apo_zer", "apo_zero"), ("apo_dwon", "apo_down"), ("sigmoidd", "sigmoid")]
)
def test_an_unknown_name_is_answered_with_the_nearest(name, meant):
    with pytest.raises(LossError, match=f"no objective '{name}'; perhaps '{meant}'; the names are aot, "):
        losses.get(name)


def test_a_name_like_no_other_is_answered_with_all_names_only():
    with pytest.raises(LossError) as fault:
        losses.get("qqqq")
    assert "perhaps" not in str(fault.value) and ", ".join(losses.names()) in str(fault.value)


@pytest.mark.parametrize("name", ["dpo", "sigmoid"])
def test_a_name_that_is_taken_is_refused(name):
    with pytest.raises(LossError, match=f"objective '{name}': the name '{name}' is taken"):
        losses.loss(name, data="pairs")(pair)


@pytest.mark.parametrize("alias", ["apo_zero", "sigmoid"])
def test_an_alias_that_is_taken_is_refused_and_nothing_is_registered(alias):
    with pytest.raises(LossError, match=f"objective 'fresh': the name '{alias}' is taken"):
        losses.loss("fresh", data="pairs", aliases=(alias,))(pair)
    assert "fresh" not in losses.names()


def test_a_positional_hyperparameter_is_refused():
    def positional(chosen, rejected, beta: float = 0.1) -> Result: ...

    with pytest.raises(
        LossError, match=r"objective 'x'.*takes \(chosen, rejected, beta\); make hyperparameters keyword"
    ):
        losses.loss("x", data="pairs")(positional)


def test_a_hyperparameter_without_a_default_is_refused():
    def bare(chosen, rejected, *, beta: float) -> Result: ...

    with pytest.raises(LossError, match="objective 'x': the argument 'beta' has no default"):
        losses.loss("x", data="pairs")(bare)


@pytest.mark.parametrize("data", ["unpaired", "single", "ranked"])
def test_arguments_of_another_form_are_refused(data):
    with pytest.raises(LossError, match=rf"data='{data}' gives the positional arguments \(responses"):
        losses.loss("x", data=data)(pair)


def test_an_unknown_form_is_refused():
    with pytest.raises(LossError, match="objective 'x': data='triples' is not one of pairs, unpaired, single, ranked"):
        losses.loss("x", data="triples")(pair)


def test_an_unknown_need_is_refused():
    with pytest.raises(LossError, match=r"objective 'x': needs=\['gold'\] is not among entropy, kl_policy_ref"):
        losses.loss("x", data="pairs", needs=("gold", "lengths"))(pair)


def test_a_refused_objective_is_not_registered():
    before = losses.names()
    for arguments in ({"data": "triples"}, {"data": "single"}, {"data": "pairs", "needs": ("gold",)}):
        with pytest.raises(LossError):
            losses.loss("x", **arguments)(pair)
    assert losses.names() == before


def led(chosen, rejected, *, beta: float = 0.1, lead: torch.Tensor, n: torch.Tensor) -> Result:
    return Result(chosen.logps - lead - n, chosen.logps, rejected.logps)


def test_a_number_of_each_row_is_an_argument_without_a_default_and_no_flag():
    made = losses.loss("led", data="pairs", fields=("lead", "n"))(led)
    assert made.fields == ("lead", "n") and dict(made.defaults) == {"beta": 0.1} and set(made.types) == {"beta"}
    assert not made.injected and losses.get("dpo").fields == ()


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ("lead", r"fields='lead' is one text; write fields=\('lead',\)"),
        (
            ("lead",),
            r"the argument 'n' has no default; give it one, or, where each row has such a number, say fields=\('n',",
        ),
        (("lead", "n", "lag"), "fields='lag' is not a keyword argument of the function; add it after a \\*"),
        (("chosen",), "fields='chosen' is not a keyword argument of the function"),
        (("weights",), "fields='weights' is a reserved name; choose another, and add --columns ANOTHER=weights"),
        (("scores",), "fields='scores' is a reserved name"),
        (("keep",), "fields='keep' is a reserved name"),
    ],
)
def test_fields_that_cannot_be_are_refused(fields, said):
    with pytest.raises(LossError, match=f"^objective 'led': {said}"):
        losses.loss("led", data="pairs", fields=fields)(led)
    assert "led" not in losses.names()


def test_a_tensor_that_is_no_field_is_told_of_them():
    def tensor(chosen, rejected, *, lead: torch.Tensor | None = None) -> Result: ...

    with pytest.raises(LossError, match=r"'lead' cannot be read from text; .*, say fields=\('lead',\)"):
        losses.loss("x", data="pairs")(tensor)


def test_what_callers_from_python_alone_can_give_is_neither_a_flag_nor_injected():
    beta_dpo, slic = losses.get("beta_dpo"), losses.get("slic")
    assert "keep" not in {*beta_dpo.defaults, *beta_dpo.injected} and beta_dpo.injected == {"state"}
    assert "target" not in {*slic.defaults, *slic.injected}
    assert not registry.INJECTED & {"keep", "target"}


def test_an_objective_in_a_file_elsewhere_is_found(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(LEAD)
    lead = losses.get(f"{file}:lead")
    assert dict(lead.defaults) == {"beta": 0.1, "by": 1.0} and lead.data == "pairs" and lead.reference
    zero = Responses(torch.zeros(1, dtype=torch.float64), torch.zeros(1, dtype=torch.float64))
    value = torch.log1p(torch.exp(torch.tensor([1.0], dtype=torch.float64)))  # -log s(-1)
    torch.testing.assert_close(lead(zero, zero).losses, value, rtol=0, atol=1e-12)


def test_a_file_is_run_once_however_it_is_named(tmp_path, monkeypatch):
    (tmp_path / "mine.py").write_text(LEAD)
    monkeypatch.chdir(tmp_path)
    assert losses.get("mine.py:lead") is losses.get("./mine.py:lead") is losses.get(f"{tmp_path}/mine.py:lead")


def test_a_file_that_was_changed_is_run_anew(tmp_path):
    """In a notebook, say: mended after a fault, or edited."""
    file = tmp_path / "mine.py"
    file.write_text(LEAD + "\nraise RuntimeError('half way')\n")
    with pytest.raises(LossError, match="cannot be imported \\(RuntimeError: half way\\)"):
        losses.get(f"{file}:lead")
    file.write_text(LEAD)
    first = losses.get(f"{file}:lead")
    file.write_text(LEAD.replace("by: float = 1.0", "by: float = 3.0"))
    second = losses.get(f"{file}:lead")
    assert (first.defaults["by"], second.defaults["by"]) == (1.0, 3.0) and first.digest != second.digest
    assert len(second.digest) == 64 and losses.get("dpo").digest == ""


def test_a_file_that_asks_for_another_files_objective_does_not_own_it(tmp_path):
    one, other = tmp_path / "one.py", tmp_path / "other.py"
    other.write_text(LEAD.replace("lead", "the_others"))
    asks = f"import losses\nlosses.get({str(other) + ':the_others'!r})\n"
    for by in ("1.0", "3.0"):
        one.write_text(asks + LEAD.replace("by: float = 1.0", f"by: float = {by}"))
        assert losses.get(f"{one}:lead").defaults["by"] == float(by)
        assert losses.get(f"{other}:the_others") is losses.get("the_others")


def test_a_file_may_hold_dataclasses_and_postponed_annotations(tmp_path):
    head = "from __future__ import annotations\nfrom dataclasses import dataclass\n\n\n"
    (tmp_path / "mine.py").write_text(head + LEAD + "\n\n@dataclass\nclass Facts:\n    n: int = 0\n")
    assert losses.get(f"{tmp_path}/mine.py:lead").types["by"] is float


def test_a_file_may_hold_several_objectives(tmp_path):
    (tmp_path / "mine.py").write_text(LEAD + LEAD.replace("lead", "second"))
    assert losses.get(f"{tmp_path}/mine.py:second").name == "second"
    assert losses.get(f"{tmp_path}/mine.py:lead").name == "lead"


def test_a_file_without_that_objective_says_so(tmp_path):
    (tmp_path / "mine.py").write_text(LEAD)
    with pytest.raises(LossError, match=r"mine\.py defines no objective 'led'; decorate it with @loss\('led'"):
        losses.get(f"{tmp_path}/mine.py:led")


def test_a_file_alone_lists_what_it_defines(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(LEAD + LEAD.replace("lead", "ahead"))
    with pytest.raises(LossError) as fault:
        losses.get(str(file))
    assert str(fault.value) == f"{file}: say which objective of the file; it defines {file}:ahead, {file}:lead"
    file.write_text("beta = 0.1\n")
    with pytest.raises(LossError, match=r"it defines none$"):
        losses.get(str(file))


def test_a_name_of_the_package_is_not_taken_for_one_of_the_file(tmp_path):
    (tmp_path / "mine.py").write_text(LEAD)
    with pytest.raises(LossError, match=r"mine\.py defines no objective 'dpo'"):
        losses.get(f"{tmp_path}/mine.py:dpo")


def test_an_alias_of_a_files_objective_is_found(tmp_path):
    (tmp_path / "mine.py").write_text(LEAD.replace("reference=True", 'reference=True, aliases=("ahead",)'))
    assert losses.get(f"{tmp_path}/mine.py:ahead") is losses.get(f"{tmp_path}/mine.py:lead")


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(LossError, match=r"absent\.py: no such file; --loss takes a name or path/to/file\.py:name"):
        losses.get(f"{tmp_path}/absent.py:lead")


def test_a_syntax_error_is_located(tmp_path):
    (tmp_path / "bad.py").write_text("import torch\n\nbeta = = 1\n")
    with pytest.raises(LossError, match=r"bad\.py:3: invalid syntax; fix the file"):
        losses.get(f"{tmp_path}/bad.py:lead")


def test_a_fault_of_the_decorator_names_the_file(tmp_path):
    (tmp_path / "bad.py").write_text(LEAD.replace('"lead"', '"dpo"'))
    with pytest.raises(LossError, match=r"bad\.py: objective 'dpo': the name 'dpo' is taken"):
        losses.get(f"{tmp_path}/bad.py:dpo")


def test_a_file_dropped_into_the_package_is_found_without_any_other_change(tmp_path):
    shutil.copytree(Path(losses.__file__).parent, tmp_path / "losses", ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "losses" / "dropped.py").write_text(LEAD)
    code = "import losses; print(losses.__file__); print(losses.get('lead').summary); print(*losses.names())"
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    file, summary, names = done.stdout.splitlines()
    assert Path(file).is_relative_to(tmp_path) and summary == "DPO whose winner has to lead by a fixed reward."
    own = [name for name in losses.names() if not losses.get(name).digest]  # others' tests bring objectives of files
    assert names.split() == sorted([*own, "lead"])
