"""What a recipe for align may say, and what is told before anything is begun."""

import json
import re
import sys

import pytest
import yaml

from examples.align import flags, recipe
from examples.slots import Slots
from system import InputError
from tests import forks

SMALL = {
    "out": "o",
    "revise": {"clair": {"prompts": "p.jsonl", "endpoint": ["http://127.0.0.1:9/v1"], "model": "reviser"}},
    "train": {"model": "m", "loss": "apo_zero"},
}


def write(tmp_path, said):
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(json.loads(json.dumps(said)), sort_keys=False))  # without aliases
    return path


def changed(**sections):
    """The small recipe with some sections changed; None takes one out."""
    return {name: value for name, value in (SMALL | sections).items() if value is not None}


@pytest.mark.parametrize(
    ("said", "words"),
    [
        (changed(rond=2), "there is no key 'rond' in a recipe; perhaps 'rounds'"),
        (changed(out=None), "out is missing"),
        (changed(train=None), "train: is missing"),
        (changed(train={"loss": "dpo"}), "train: model is missing"),
        (changed(rounds=0), "rounds: '0' is not a whole number above 0"),
        (changed(train="dpo"), "train: not a mapping"),
        (changed(score=["a", "b"]), "score has to be a command, as text"),
        (changed(revise={"claire": {}}), "revise: claire: there is no recipe 'claire'"),
        (changed(revise=None), "no pairs: give `revise:` a recipe"),
        (changed(revise=None, train={"model": "m", "data": ["a.jsonl", "b/a.jsonl"]}), "two data sets are called 'a'"),
        (changed(revise={"score": {}}, train={"model": "m", "data": ["a.jsonl"]}), "score grades the pairs that are"),
        (changed(eval={"mixeval-hard": {}}), "eval: there is no 'mixeval-hard'; the commands are mixeval, alpacaeval"),
        (changed(eval={"alpacaeval": {}}), "alpacaeval scores the checkpoints that mixeval finds best"),
        (
            changed(rounds=2, train={"model": "m", "loss": ["dpo", "sft"]}),
            "rounds: a round ends with 2 runs, but the next",
        ),
        (changed(rounds=2, revise=None, train={"model": "m", "data": ["a.jsonl"]}), "every round makes new pairs"),
        (changed(serve="no-such-server {checkpoint} {port}"), "serve: there is no program 'no-such-server'"),
        (changed(serve="cat {checkpoint}"), "serve: {port} is missing"),
        (changed(teacher="{python} -m no.such.module --port {port}"), "teacher: there is no module 'no.such.module'"),
        (changed(revise={"x": {"recipe": ["clair"]}}), "revise: x: there is no recipe ['clair']"),
        (changed(train={"model": "m", "data": {"a": "b.jsonl"}}), "train: data: not a mapping"),
        (
            changed(serve="cat {checkpoint} {port}", train={"model": "m", "lora_rank": 8}),
            "serve: the trained checkpoints are adapters",
        ),
        (
            changed(revise={"clair": SMALL["revise"]["clair"] | {"endpoint": ["{teacher}"]}}),
            "{teacher} is used, but there is no `teacher:`",
        ),
    ],
    ids=lambda said: said if isinstance(said, str) else "",
)
def test_what_a_file_alone_shows_to_be_wrong_is_one_sentence_that_names_it(tmp_path, said, words):
    path = write(tmp_path, said)
    with pytest.raises(InputError) as fault:
        recipe.read(path)
    assert str(fault.value).startswith(f"{path}: ") and words in str(fault.value)


@pytest.mark.parametrize(
    ("said", "words"),
    [
        (changed(train={"model": "m", "loss": "apo_zeor"}), ["train: ", "apo_zeor"]),
        (
            changed(train={"model": "m", "bacth_size": 3}),
            ["train: there is no setting 'bacth_size'; perhaps 'batch_size'"],
        ),
        (changed(train={"model": "m", "resume": True}), ["train: resume is set by align; leave it out"]),
        (changed(train={"model": "m", "epochs": -1}), ["train: ", "epochs"]),
        (changed(train={"model": "m", "lr": "fast"}), ["train: ", "lr"]),
        (changed(revise={"clair": {"prompts": "p", "model": "x"}}), ["revise: clair: --endpoint is missing"]),
        (
            changed(revise={"clair": SMALL["revise"]["clair"] | {"store": "s"}}),
            ["revise: clair: store is set by align; leave it out"],
        ),
        (changed(eval={"trajectories": {"answerz": 3}}), ["eval: trajectories: there is no setting 'answerz'"]),
        (changed(eval={"trajectories": {}}), ["eval: trajectories: training holds out no pairs to follow"]),
        (changed(eval={"report": {"runs": "r"}}), ["eval: report: runs is set by align; leave it out"]),
        (changed(eval={"mixeval": {"judge": "j"}}), ["eval: mixeval: ", "mixeval"]),
        (changed(score="{python} -m no.such.scorer {run}"), ["score: ", "there is no module 'no.such.scorer'"]),
        (changed(score="true"), ["score: true: needs an installed program, and {run}"]),
    ],
    ids=lambda said: said[-1] if isinstance(said, list) else "",
)
def test_a_flag_that_cannot_be_used_is_told_with_its_section(tmp_path, said, words):
    path = write(tmp_path, said)
    asked = recipe.read(path, str(tmp_path))
    with pytest.raises(InputError) as fault:
        flags.check(asked)
    lines = str(fault.value).splitlines()
    assert all(line.startswith(f"{path}: ") for line in lines), lines
    assert all(any(word in line for line in lines) for word in words), lines


def test_every_fault_of_all_sections_is_told_at_once(tmp_path):
    said = changed(train={"model": "m", "bacth_size": 3}, eval={"trajectories": {"answerz": 3}}, score="true")
    with pytest.raises(InputError) as fault:
        flags.check(recipe.read(write(tmp_path, said), str(tmp_path)))
    assert [line.split(": ")[1] for line in str(fault.value).splitlines()] == ["train", "eval", "score"]


def test_words_in_braces_are_filled_in_and_others_are_left(tmp_path):
    said = changed(
        rounds=2,
        prepare="{python} -m json.tool",
        revise={"clair": SMALL["revise"]["clair"] | {"prompts": "{out}/p-{round}.jsonl", "extra": '{"a": {"b": 1}}'}},
    )
    asked = recipe.read(write(tmp_path, said), "x")
    assert asked.prepare == f"{sys.executable} -m json.tool"
    for number in (1, 2):
        settings = asked.of_round(number).sets["clair"][1]
        assert settings["prompts"] == f"x/p-{number}.jsonl" and settings["extra"] == '{"a": {"b": 1}}'


def test_several_losses_and_sets_are_a_grid(tmp_path):
    said = changed(
        seeds=2,
        revise=SMALL["revise"] | {"mine": SMALL["revise"]["clair"] | {"recipe": "stronger-preferred"}},
        train={
            "model": "m",
            "loss": ["apo_zero beta=0.3", "dpo"],
            "lr": ["apo_zero=1e-5", "dpo=1e-6"],
            "data": "d=x.jsonl",
        },
    )
    asked = recipe.read(write(tmp_path, said), str(tmp_path))
    flags.check(asked)
    assert [command.words for command, _ in asked.sets.values()] == [
        ("revise", "clair"),
        ("revise", "stronger-preferred"),
    ]
    cells = flags.cells_of(asked, {"clair": tmp_path, "mine": tmp_path, "d": tmp_path})
    assert len(cells) == 3 * 2 * 2 and {(c.loss, c.lr) for c in cells} == {("apo_zero beta=0.3", 1e-5), ("dpo", 1e-6)}


@pytest.mark.parametrize(("more", "rate"), [({}, 2e-7), ({"lora_rank": 8}, 2e-6)])
def test_an_unset_rate_is_the_trainers_own(tmp_path, more, rate):
    asked = recipe.read(write(tmp_path, changed(train={"model": "m"} | more)), str(tmp_path))
    assert [cell.lr for cell in flags.cells_of(asked, {"clair": tmp_path})] == [rate]


def test_runs_have_a_gpu_each_or_share_the_cores(monkeypatch):
    def places(slots):
        taken, inside = [], []
        for _ in range(slots.n):
            one = slots.take()
            taken.append(one.__enter__())
            inside.append(one)
        for one in inside:
            one.__exit__(None, None, None)
        return [(env.get("CUDA_VISIBLE_DEVICES"), env.get("OMP_NUM_THREADS")) for env in taken]

    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr("os.cpu_count", lambda: 8)
    monkeypatch.setattr("examples.slots.visible_gpus", list)
    assert [threads for _, threads in places(Slots(at_once=None))] == ["8"]
    assert [threads for _, threads in places(Slots(at_once=4))] == ["2"] * 4
    with pytest.raises(InputError, match=re.escape("gpus: 2 for each run, but this machine has no GPU")):
        Slots(at_once=None, gpus=2)
    monkeypatch.setattr("examples.slots.visible_gpus", lambda: ["4", "5", "6", "7"])
    assert [gpu for gpu, _ in places(Slots(at_once=None))] == ["4", "5", "6", "7"]
    assert [gpu for gpu, _ in places(Slots(at_once=None, gpus=2))] == ["4,5", "6,7"]
    assert [gpu for gpu, _ in places(Slots(at_once=6))] == ["4", "5", "6", "7", "4", "5"]
    assert Slots(at_once=None, gpus=2).trainer[-3:] == ["train", "--nproc", "2"]
    with pytest.raises(InputError, match="this machine has 4 GPUs"):
        Slots(at_once=None, gpus=8)


def test_a_mistake_in_the_last_section_stops_before_the_first_stage(tmp_path):
    """By the command: nothing that the recipe wants made first is made."""
    made = tmp_path / "made"
    said = changed(prepare=f"touch {made}", eval={"trajectories": {"answerz": 3}}, out=str(tmp_path / "o"))
    path = write(tmp_path, said)
    done = forks.run([sys.executable, "-m", "examples.align", path])
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert "eval: trajectories: there is no setting 'answerz'; perhaps 'answers'" in done.stderr
    assert not made.exists()
    for given, words in (([], "needs arguments"), ([tmp_path / "none.yaml"], "there is no such file")):
        done = forks.run([sys.executable, "-m", "examples.align", *given])
        assert done.returncode == 2 and words in done.stderr


def test_the_home_folder_and_another_spelling_of_the_folder_are_the_same_recipe(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    path = write(tmp_path, changed(out="~/x", train={"model": "~/m", "adapter": "~/a"}))
    made = recipe.read(path)
    assert (str(made.out), made.model, made.training["adapter"]) == ("x", f"{tmp_path}/m", f"{tmp_path}/a")
    assert recipe.read(path, "x") == recipe.read(path, f"{tmp_path}/x") == made
    assert str(recipe.read(path, f"{tmp_path.parent}/y").out) == f"{tmp_path.parent}/y"


def test_a_folder_with_a_blank_is_one_word_in_a_command(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    said = changed(prepare="{python} -m json.tool {out}/base", train={"model": "{out}/base"})
    made = recipe.read(write(tmp_path, said), "a b")
    assert recipe.words_of(made.prepare, {})[-1] == "a b/base" and made.model == "a b/base"


def test_trls_names_are_understood_as_in_a_file_of_the_trainer(tmp_path, capsys):
    made = recipe.read(write(tmp_path, changed(train={"model": "m", "loss": "dpo", "learning_rate": 3e-5})))
    assert flags.rates_of(made) == {"dpo": 3e-5} and "learning_rate" in capsys.readouterr().err


def test_a_scorer_may_ask_the_teacher_and_its_own_flags_are_looked_at(tmp_path):
    teacher = "{python} -m json.tool {port}"
    flags.check(recipe.read(write(tmp_path, changed(teacher=teacher, score="{python} -m json.tool {run} {teacher}"))))
    asked = "--judge-endpoint http://127.0.0.1:9/v1 --judge a --store j.sqlite --mixeval nowhere"
    for more, words in (("--preset papr", "papr"), ("", "nowhere")):
        made = recipe.read(write(tmp_path, changed(score=f"{{python}} -m eval mixeval {{run}} {asked} {more}")))
        with pytest.raises(InputError, match=f"recipe.yaml: score: .*{words}"):
            flags.check(made)
