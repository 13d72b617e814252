"""What an earlier start has left is known by what went in: nothing is asked again, and nothing paid for in vain."""

import dataclasses
import json
import os
import time
from pathlib import Path

import pytest
import yaml

from eval import scores
from examples import grid
from examples.align import flags, recipe
from examples.align.journal import Journal, keeping_times
from examples.align.road import Road
from examples.align.stages import Stages, Start, has_scores, left_of
from examples.align.stand import Stand
from examples.children import Children
from examples.grid import Cell
from examples.slots import Slots
from revise.prompts import Prompts, PromptsConfig
from system import InputError

pytestmark = pytest.mark.usefixtures("registered")
SETTINGS = {
    "revise": {"clair": {"endpoint": "http://127.0.0.1:9/v1", "model": "a", "prompts": "prompts.jsonl"}},
    "train": {"loss": "dpo", "lr": 1e-5, "epochs": 1, "eval_pairs": 2},
    "eval": {"trajectories": {"answers": 2}},
}


def read(tmp_path, **changes):
    """A recipe whose model and prompts are there; changes: what is added to its sections."""
    (tmp_path / "m").mkdir(exist_ok=True)
    (tmp_path / "m/config.json").write_text("{}")
    (tmp_path / "prompts.jsonl").write_text('{"prompt": "Why?"}\n')
    said = {name: {key: dict(value) if isinstance(value, dict) else value for key, value in section.items()}
            for name, section in SETTINGS.items()} | {"out": str(tmp_path / "o")}  # fmt: skip
    said["train"]["model"] = str(tmp_path / "m")
    said["revise"]["clair"]["prompts"] = str(tmp_path / "prompts.jsonl")
    for name, more in changes.items():
        said[name] = {**said.get(name, {}), **more} if isinstance(more, dict) else more
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(said))
    return recipe.read(tmp_path / "recipe.yaml")


def stages_of(asked):
    return Stages(asked, Journal(asked.out))


def asks(found):
    """Sections of revise and of eval that are still asked."""
    return found.revise, found.eval


def make_pairs(asked):
    """The pairs of the first round, as if they had been made."""
    stages = stages_of(asked)
    stage = stages.set(asked.of_round(1), 1, "clair", stages.first)
    (path,) = stage.makes
    path.parent.mkdir(parents=True)
    path.write_text("{}\n")
    Journal(asked.out).write(stage.key, stage.mark, stage.makes, time.monotonic(), stage.rows)
    return path


def begin_run(asked):
    """A run of the first round, as if it had begun."""
    run = asked.out / "round-1/runs/seed-0/clair/dpo"
    run.mkdir(parents=True)
    (run / "config.yaml").write_text("{}\n")
    return run


def test_pairs_that_are_made_are_known_and_nobody_is_asked_for_them(tmp_path):
    asked = read(tmp_path)
    assert asks(stages_of(asked).survey()) == ({"clair"}, {"trajectories"})
    path = make_pairs(asked)
    found = stages_of(asked).survey()
    assert found.pairs == {(1, "clair"): path} and asks(found) == (set(), {"trajectories"}) and not found.asks_model
    left = left_of(asked, found)
    assert not left.revise and list(left.eval) == ["trajectories"]


def test_after_a_change_they_are_still_to_be_made(tmp_path):
    make_pairs(read(tmp_path))
    other = read(tmp_path, revise={"clair": SETTINGS["revise"]["clair"] | {"model": "b"}})
    found = stages_of(other).survey()
    assert not found.pairs and "clair" in found.revise and found.asks_model


def test_a_run_on_other_pairs_is_refused_before_they_are_paid_for(tmp_path):
    asked = read(tmp_path)
    make_pairs(asked)
    run = begin_run(asked)
    stages_of(asked).survey()  # the same again: the run goes on
    prompts = {"prompts": str(tmp_path / "prompts.jsonl")}
    other = read(tmp_path, revise={"clair": SETTINGS["revise"]["clair"] | prompts | {"model": "b"}})
    with pytest.raises(InputError, match="was trained on pairs that the recipe now makes otherwise") as fault:
        stages_of(other).survey()
    assert str(fault.value).startswith(f"{run}:")


def test_a_price_or_a_place_changes_no_row(tmp_path):
    """The stage is done again from the answers that are kept, and the run is not refused."""
    asked = read(tmp_path)
    make_pairs(asked)
    begin_run(asked)
    other = {"price_in": 3, "concurrency": 2, "endpoint": "http://127.0.0.1:8/v1"}
    clair = SETTINGS["revise"]["clair"] | {"prompts": str(tmp_path / "prompts.jsonl")} | other
    assert "clair" in stages_of(read(tmp_path, revise={"clair": clair})).survey().revise


LOSS = """
from losses import Result, loss
@loss("mine", data="pairs", reference=True)
def mine(chosen, rejected, *, beta=0.1):
    return Result(-beta * (chosen.logratios - rejected.logratios), chosen.logratios, rejected.logratios)
"""
QUERIES = "mix_eval/data/mixeval-2024-08-11/mixeval-hard/free-form.json"
NAMED = {
    "objective": ("my.py", {"train": {"loss": ["dpo", "{dir}/my.py:mine"]}}, "training"),
    "held-out rows": ("held.jsonl", {"train": {"eval_pairs": 0, "eval_data": ["{dir}/held.jsonl"]}}, "training"),
    "given rows of a split": ("held/test.jsonl", {"train": {"data": ["more={dir}/held:test"]}}, "training"),
    "rows of a split": ("held/test.jsonl", {"train": {"eval_pairs": 0, "eval_data": ["{dir}/held:test"]}}, "training"),
    "template": ("chat.jinja", {"train": {"chat_template": "{dir}/chat.jinja"}}, "training"),
    "scorer": ("score.py", {"score": "{python} {dir}/score.py {run}"}, "training"),
    "objective of a mixture": ("my.py", {"train": {"loss": "{dir}/my.py:mine:0.5,sft:0.1"}}, "training"),
    "one objective's template": ("chat.jinja", {"train": {"loss": "dpo chat_template={dir}/chat.jinja"}}, "training"),
    "scorer of python -u": ("score.py", {"score": "{python} -u {dir}/score.py {run}"}, "training"),
    "checkout": (f"mixeval/{QUERIES}", {"eval": {"mixeval": {"mixeval": "{dir}/mixeval"}}}, "mixeval"),
    "pairs to follow": ("others.jsonl", {"eval": {"trajectories": {"data": "{dir}/others.jsonl"}}}, "trajectories"),
    "wording": ("revise.txt", {"revise": {"clair": {"template": "{dir}/revise.txt"}}}, "pairs"),
    "reviser": ("teach.py", {"teacher": "{python} {dir}/teach.py {port}"}, "pairs"),
    "model's server": ("serve.py", {"serve": "{python} {dir}/serve.py {checkpoint} {port}"}, "pairs"),
    "key": ("key", {"revise": {"clair": {"key_file": "{dir}/key"}}}, None),
}


@pytest.mark.parametrize(("file", "said", "stage"), NAMED.values(), ids=NAMED)
def test_a_stage_is_done_again_where_a_file_that_its_section_names_has_changed(tmp_path, file, said, stage):
    """And no other stage is: but for the key, of which nothing is made."""
    said = json.loads(json.dumps(said).replace("{dir}", str(tmp_path)))
    clair = {**SETTINGS["revise"]["clair"], "endpoint": "{teacher}" if "teacher" in said else "http://127.0.0.1:9/v1"}
    more = said.get("revise", {}).get("clair", {})
    said["revise"] = {"clair": clair | {"prompts": str(tmp_path / "prompts.jsonl")} | more}
    path = tmp_path / file
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(LOSS)
    before = marks(read(tmp_path, **said))
    assert marks(read(tmp_path, **said)) == before
    path.write_text(LOSS + "# other\n")
    after = marks(read(tmp_path, **said))
    assert {name for name in before if before[name] != after[name]} - {stage} <= BEHIND.get(stage, set())
    assert stage is None or before[stage] != after[stage]


def test_what_is_no_path_is_not_read_although_a_folder_has_its_name(tmp_path, monkeypatch):
    """An objective, a model at a server, a preset, the folder of all, which each stage writes into."""
    monkeypatch.chdir(tmp_path)
    for name in ("dpo", "reviser", "paper", "base", "rag", "held"):
        (tmp_path / name).mkdir()
    (tmp_path / "held/test.jsonl").write_text("{}\n")
    clair = {"endpoint": "http://127.0.0.1:9/v1", "model": "reviser", "prompts": "prompts.jsonl"}
    train = {"loss": "dpo", "reference_model": "base", "eval_pairs": 0, "eval_data": ["held:test"]}
    said = {
        "revise": {"clair": clair},
        "train": train,
        "eval": {"mixeval": {"mixeval": ".", "preset": "paper"}},
        "out": "o",
    }
    before = marks(read(tmp_path, **said))
    for name in ("dpo", "reviser", "paper", "base", "rag", "held", "."):
        (tmp_path / name / "README.md").write_text("other")
    (tmp_path / "o/logs").mkdir(parents=True)
    (tmp_path / "o/logs/x.log").write_text("said")
    assert marks(read(tmp_path, **said)) == before


def test_a_hub_id_is_its_name_and_nothing_is_asked_for(tmp_path, monkeypatch):
    monkeypatch.setattr("data.rows.hub.snapshot", lambda *_: pytest.fail("the hub was asked"))
    before = marks(read(tmp_path, train={"eval_pairs": 0, "eval_data": ["owner/name:test"], "reference_model": ""}))
    assert before["training"] != marks(read(tmp_path, train={"eval_pairs": 0, "eval_data": ["owner/x"]}))["training"]


@pytest.mark.parametrize(
    ("name", "flag"),
    [
        ("held.jsonl", {"eval_data": ["~/held.jsonl"], "eval_pairs": 0}),
        ("chat.jinja", {"chat_template": "$PLACE/chat.jinja"}),
    ],
)
def test_a_path_below_the_home_or_a_variable_is_looked_at(tmp_path, monkeypatch, name, flag):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("PLACE", str(tmp_path))
    (tmp_path / name).write_text("{}\n")
    before = marks(read(tmp_path, train=flag))
    (tmp_path / name).write_text("{} \n")
    assert before["training"] != marks(read(tmp_path, train=flag))["training"]


BEHIND = {"pairs": {"mixeval"}}  # a server answers both


def marks(asked):
    """The mark of each stage of the first round, by what it is."""
    stages, now = stages_of(asked), asked.of_round(1)
    pairs = stages.set(now, 1, "clair", stages.first)
    sets = {"clair": pairs.makes[0], **{name: Path(source) for name, source in now.given_sets.items()}}
    made = {"pairs": pairs.mark, "training": stages.training(now, 1, sets, stages.first).mark}
    return made | {name: stages.evaluation(now, 1, name, []).mark for name in now.eval}


def test_another_server_makes_pairs_again_and_refuses_no_run(tmp_path):
    """Its answers are kept, so that they are the same rows; what it is called by does not say who answers."""
    asked = read(tmp_path, serve="{python} serve.py {checkpoint} {port}")
    make_pairs(asked)
    begin_run(asked)
    other = read(tmp_path, serve="{python} serve.py {checkpoint} {port} --fast")
    assert "clair" in stages_of(other).survey().revise


def test_a_run_on_another_objective_is_named_although_the_recipe_says_the_same(tmp_path):
    """The journal's training stage is done for what the file held; the run was trained with what it held then."""
    (tmp_path / "my.py").write_text(LOSS)
    said = {"train": {"loss": f"{tmp_path}/my.py:mine"}}
    asked = read(tmp_path, **said)
    make_pairs(asked)
    run = grid.folder(asked.out / "round-1/runs", flags.cells_of(asked, {"clair": tmp_path / "x"})[0])
    run.mkdir(parents=True)
    told = {"model": str(tmp_path / "m"), "data": [str(stages_of(asked).pairs(1, "clair"))], "epochs": 1}
    (run / "config.yaml").write_text(yaml.safe_dump(told | said["train"]))
    (run / "metrics.jsonl").write_text('{"step": 1, "epoch": 1.0}\n')  # it is over
    (tmp_path / "my.py").write_text(LOSS + "# other\n")
    later = (run / "config.yaml").stat().st_mtime + 10
    os.utime(tmp_path / "my.py", (later, later))
    with pytest.raises(InputError, match=r"my\.py has changed since this run was trained"):
        stages_of(asked).survey()


@pytest.mark.parametrize("whole", [1 << 26, 1])
def test_a_file_made_again_with_the_same_bytes_keeps_its_time(tmp_path, monkeypatch, whole):
    """A large one, too, which is otherwise known by its ends and its time."""
    monkeypatch.setattr("examples.align.journal.WHOLE", whole)
    monkeypatch.setattr("examples.align.journal.END", 1)
    asked = read(tmp_path)
    path = make_pairs(asked)
    os.utime(path, (1, 1))
    other = read(tmp_path, revise={"clair": SETTINGS["revise"]["clair"] | {"model": "b"}})
    stage = stages_of(other).set(other.of_round(1), 1, "clair", stages_of(other).first)
    with Children(asked.out) as running:
        road = Road(other, running, Slots(at_once=1))
        road._do(stage, lambda: path.write_text("{}\n"))
        assert path.stat().st_mtime == 1
        Journal(asked.out)._path(stage.key).unlink()
        road._do(stage, lambda: path.write_text("{1}\n"))
    assert path.stat().st_mtime > 1
    os.utime(path, (1, 1))
    with pytest.raises(ZeroDivisionError), keeping_times([path]):
        path.write_text("{1}\n")
        1 / 0  # noqa: B018
    assert path.stat().st_mtime == 1


def test_a_run_goes_on_where_its_pairs_are_only_gone(tmp_path):
    """They are made again of the answers that are kept."""
    asked = read(tmp_path)
    path = make_pairs(asked)
    begin_run(asked)
    path.unlink()
    assert asks(stages_of(asked).survey()) == ({"clair"}, {"trajectories"})


def test_a_round_behind_one_that_is_not_over_asks_for_everything(tmp_path):
    asked = read(tmp_path, rounds="2")
    make_pairs(asked)
    found = stages_of(asked).survey()
    assert asks(found) == ({"clair"}, {"trajectories"}) and found.asks_model  # the second round's


def test_a_finished_run_without_its_checkpoints_is_a_sentence(tmp_path):
    asked = read(tmp_path)
    run = begin_run(asked)
    with pytest.raises(InputError, match="is finished, but its checkpoints are gone"):
        stages_of(asked).newest(1, Cell("clair", tmp_path / "x", "dpo", 0, 1e-5))
    assert run.is_dir()


SERVED = "python -m http.server {port} --directory {checkpoint}"


def test_each_model_that_is_served_has_a_store_of_its_own(tmp_path):
    asked = read(tmp_path, serve=SERVED)
    (tmp_path / "n").mkdir()
    (tmp_path / "n/config.json").write_text("{ }")
    stages = stages_of(asked)
    first, same, other = (stages.store(asked, 1, "answers", Start(str(tmp_path / name))) for name in ("m", "m", "n"))
    assert first == same != other
    quiet = read(tmp_path, serve=f"{SERVED} --bind 127.0.0.1")  # the same model, served otherwise
    assert stages_of(quiet).store(quiet, 1, "answers", Start(str(tmp_path / "m"))) == first
    plain = read(tmp_path)
    assert stages_of(plain).store(plain, 1, "answers", Start(str(tmp_path / "m"))).name == "answers.sqlite"


def test_what_was_prepared_is_made_again_where_it_is_gone(tmp_path, capsys):
    program = tmp_path / "make.py"
    program.write_text(
        "import pathlib, sys\nbase = pathlib.Path(sys.argv[1]) / 'base'\nbase.mkdir(parents=True)\n"
        "(base / 'config.json').write_text('{}')\n"
    )
    out = tmp_path / "o"
    asked = read(tmp_path, prepare=f"{{python}} {program} {{out}}", train=SETTINGS["train"] | {"model": f"{out}/base"})
    out.mkdir()

    def prepare():
        with Children() as children:
            Road(asked, children, Slots(at_once=1)).prepare()
        return capsys.readouterr().err

    assert "preparing ..." in prepare()
    assert "prepare: taken as it was" in prepare()
    (out / "base/config.json").unlink()
    (out / "base").rmdir()
    assert "preparing ..." in prepare() and (out / "base/config.json").is_file()


def test_an_adapter_is_served_by_a_command_of_its_own(tmp_path):
    adapters = "python -m http.server {port} --directory {checkpoint} --bind {base}"
    asked = read(tmp_path, serve=SERVED, serve_adapter=adapters)
    (tmp_path / "a").mkdir()
    (tmp_path / "a/adapter_config.json").write_text("{}")
    assert asked.server_of(str(tmp_path / "m")) == SERVED and asked.server_of(str(tmp_path / "a")) == adapters
    assert read(tmp_path, serve=SERVED).server_of(str(tmp_path / "a")) == SERVED
    for wrong, words in (
        ({"serve_adapter": adapters}, "serve_adapter: the model before training is served too"),
        ({"serve": SERVED, "serve_adapter": SERVED}, "serve_adapter: {base} is missing"),
    ):
        with pytest.raises(InputError, match=words):
            read(tmp_path, **wrong)


def test_a_second_round_does_not_do_the_first_again(tmp_path):
    path = make_pairs(read(tmp_path))
    assert stages_of(read(tmp_path, rounds=2)).survey().pairs == {(1, "clair"): path}


def test_alpacaeval_is_done_again_where_mixeval_is(tmp_path):
    judged = {"judge_endpoint": "http://127.0.0.1:9/v1", "mixeval": "nowhere"}
    alpaca = {"alpaca_eval": "nowhere", "judge_endpoint": "http://127.0.0.1:9/v1", "judge": "c"}
    marks = {
        stages_of(asked).evaluation(asked, 1, "alpacaeval", []).mark
        for judge in ("a", "b")
        for asked in [read(tmp_path, eval={"mixeval": judged | {"judge": judge}, "alpacaeval": alpaca})]
    }
    assert len(marks) == 2


def test_every_prompt_stands_for_a_pair_although_only_some_stand_for_its_length(tmp_path, monkeypatch):
    monkeypatch.setattr("examples.align.stand.MOST_ROWS", 3)
    rows = [{"prompt": f"Why {i}?"} for i in range(8)]
    path = tmp_path / "p.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    stand = Stand(tmp_path, is_graded=False)
    made = stand("a", Prompts(PromptsConfig(prompts=str(path), out="o.jsonl")), 5, "clair")
    found = [[json.loads(line) for line in file.read_text().splitlines()] for file in (made, stand.others[made])]
    assert [len(file) for file in found] == [3, 5] and stand.shares[made] == pytest.approx(8 / 3)
    asked = sorted(str(row["prompt"]) for file in found for row in file)
    assert len(set(asked)) == 8 and [len(file[0]["chosen"].split()) for file in found] == [5, 1]
    fault = f"dpo on a: 5 of 5 rows cannot be used; fix them\n  {stand.others[made]}:2: no such role\n  ... and 4 more"
    assert stand.named(fault) == (
        f"dpo on a: {path}:4: a pair to be made of this prompt, with answers as long as they may be: no such role"
    )


def test_scores_that_are_gone_are_missed(tmp_path):
    run = tmp_path / "run"
    (run / "epoch-01").mkdir(parents=True)
    (run / "epoch-01/config.json").write_text("{}")
    (run / "epoch-01/model.safetensors").write_text("")
    line = {"version": "1", "metric": "overall", "value": 0.5, "stderr": None, "judge": "a"}
    assert (
        not has_scores("mixeval", [run]) and not has_scores("alpacaeval", [run]) and has_scores("trajectories", [run])
    )
    scores.write(run / "eval" / scores.NAME, [line | {"checkpoint": "epoch-01", "benchmark": "mixeval-hard"}])
    assert has_scores("mixeval", [run]) and not has_scores("alpacaeval", [run])
    assert has_scores("mixeval", [run], "epoch-01") and not has_scores("mixeval", [run], "base")


def test_what_was_prepared_elsewhere_is_made_again_where_it_is_gone(tmp_path, capsys):
    made = tmp_path / "elsewhere/rows.jsonl"
    program = tmp_path / "prepare.py"
    program.write_text(
        f"import pathlib\nmade = pathlib.Path({str(made)!r})\nmade.parent.mkdir(exist_ok=True)\nmade.write_text('x')\n"
    )
    asked = read(tmp_path, prepare=f"{{python}} {program}", revise={"clair": {"prompts": str(made)}})
    prompts = tmp_path / "prompts.jsonl"  # the user's own, which nothing prepares
    asked = dataclasses.replace(asked, train=asked.train | {"eval_data": str(prompts)})
    said = []
    for change in (lambda: None, lambda: prompts.write_text('{"prompt": "Who?"}\n'), made.unlink):
        change()
        with Children() as children:
            Road(asked, children, Slots(at_once=1)).prepare()
        said.append("taken as it was" in capsys.readouterr().err)
        assert made.exists()
    assert said == [False, True, False]
