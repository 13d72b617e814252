"""The paper's four sets by the files beside paper.yaml: taken as they are, all are made on one set of prompts. And what
engine.train makes of the files for an adapter.
"""

import json
import os
import re
from dataclasses import replace

import pytest
import yaml

from engine import plan
from engine.config import ALIASES, TrainConfig, trl_names
from examples.align import check, flags, recipe
from revise import recipes
from revise.loopback import Reply, serve
from system import cli
from tests.pages import ROOT
from tests.revise.commands import judged, read_rows, released, revise, write_rows

FOLDER = ROOT / "examples/recipes"
MAINS = {
    "clair": recipes.clair_main,
    "judge-on-policy": recipes.judge_main,
    "judge-off-policy": recipes.off_policy_main,
    "stronger-preferred": recipes.stronger_main,
}
RELEASED, JUDGED = "ContextualAI/ultrafeedback_clair_32k:train", "openbmb/UltraFeedback"
PRICE_IN, PRICE_OUT = 10, 30


def settings(name):
    return yaml.safe_load((FOLDER / f"revise-{name}.yaml").read_text())


def test_four_files_make_the_four_sets_on_the_released_prompts(tmp_path, monkeypatch):
    """The two data sets of the hub are files here; everything else is what the files say."""
    monkeypatch.setenv("OPENAI_API_KEY", "test")
    asked = []

    def reply(seen):
        asked.append(seen.body)
        if seen.body["model"] == "llama":
            return Reply.chat(f"answer {seen.number}")
        if "{student_solution_1}" in seen.text:
            return Reply.chat("Both are fine.\n\n[1]")
        return revise(seen) if "{student_solution}: " in seen.text else Reply.chat(f"A stronger answer {seen.number}.")

    files = {
        RELEASED: write_rows(tmp_path / "released.jsonl", [released(i) for i in (2, 5, 11)]),
        JUDGED: write_rows(tmp_path / "judged.jsonl", [judged(i) for i in range(12)]),
    }
    made = {}
    with serve(reply) as server:
        for name, main in MAINS.items():
            said = settings(name)
            out = tmp_path / said["out"]
            more = ["--config", FOLDER / f"revise-{name}.yaml", "--out", out]
            more += [x for flag in ("prompts", "only_prompts") if flag in said
                     for x in (f"--{flag.replace('_', '-')}", files[said[flag]])]  # fmt: skip
            if "store" in said:
                more += ["--store", tmp_path / "s.sqlite", "--endpoint", server.base]
            if "target_endpoint" in said:
                more += ["--target-endpoint", server.base]
            main([str(x) for x in more])
            made[name] = read_rows(out)
    wanted = [f"Name bird {i}." for i in (2, 5, 11)]
    assert {name: [row["prompt"] for row in rows] for name, rows in made.items()} == dict.fromkeys(MAINS, wanted)
    losers = [released(i)["rejected"] for i in (2, 5, 11)]
    assert [row["rejected"] for row in made["clair"]] == losers
    assert [row["rejected"] for row in made["stronger-preferred"]] == losers
    for name in ("clair", "judge-on-policy"):
        assert made[name][0]["provenance"]["settings"]["template"] == "paper"
    assert {body["model"] for body in asked} == {"llama", "gpt-4-turbo"}


def test_the_grid_trains_on_what_the_files_write():
    data = dict(item.split("=") for item in yaml.safe_load((FOLDER / "paper.yaml").read_text())["data"])
    assert data.pop("clair") == RELEASED and settings("clair")["prompts"] == RELEASED
    assert data == {name: settings(name)["out"] for name in MAINS if name != "clair"}
    assert settings("judge-off-policy") == {
        "prompts": JUDGED, "only_prompts": RELEASED, "out": "judge-off-policy.jsonl"
    }  # fmt: skip
    text = (FOLDER / "paper.yaml").read_text()
    assert all(f"examples/recipes/revise-{name}.yaml" in text for name in data)


@pytest.mark.parametrize("name", [n for n in MAINS if n != "judge-off-policy"])
def test_a_file_says_what_it_costs_by_its_own_numbers(name):
    """Requests times tokens times the prices that stand in it."""
    text = " ".join(line.lstrip("# ") for line in (FOLDER / f"revise-{name}.yaml").read_text().splitlines())
    said = settings(name)
    assert (said["price_in"], said["price_out"]) == (PRICE_IN, PRICE_OUT)
    n = int(re.search(r"([\d,]+) requests", text)[1].replace(",", ""))
    n_in = int(re.search(r"([\d,]+) tokens to send", text)[1].replace(",", ""))
    n_out = int(re.search(r"send and (\d+) to receive", text)[1])
    dollars = int(re.search(r"\$(\d+) at the prices below", text)[1])
    assert dollars == pytest.approx(n * (n_in * PRICE_IN + n_out * PRICE_OUT) / 1e6, rel=0.015)


def trained(name):
    """What engine.train makes of a recipe."""
    given = ["--config", str(FOLDER / f"{name}.yaml")]
    return cli.parse(TrainConfig, given, command="engine.train", example="", peer=trl_names, aliases=ALIASES)


@pytest.mark.parametrize(("name", "held"), [("llama3-8b-lora", None), ("llama3-8b-lora-nf4", "nf4")])
def test_a_recipe_for_an_adapter_is_the_papers_run_but_for_the_adapter(name, held):
    whole, adapter = trained("llama3-8b"), trained(name)
    changed = {key: value for key, value in adapter.flat().items() if value != whole.flat()[key]}
    assert changed.pop("config") and changed.pop("lr") == pytest.approx(10 * whole.optimizer.rate)
    assert changed.pop("out") == f"runs/{name.replace('lora', 'clair-lora')}"
    assert changed == {"lora_rank": 16, "lora_alpha": 32} | ({"base_dtype": held} if held else {})


@pytest.mark.parametrize("name", sorted(path.name for path in FOLDER.glob("align*.yaml")))
def test_every_flag_of_an_align_recipe_is_one_of_its_commands(name, tmp_path, monkeypatch):
    """vllm, where it is named, is a stand-in."""
    (tmp_path / "vllm").write_text("#!/bin/sh\n")
    (tmp_path / "vllm").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setenv("OPENAI_API_KEY", "test")
    monkeypatch.chdir(tmp_path)
    asked = recipe.read(FOLDER / name)
    asked.out.mkdir(parents=True)
    flags.check(asked)
    assert asked.sets or asked.given_sets


@pytest.mark.parametrize("name", sorted(path.name for path in FOLDER.glob("align*.yaml")))
def test_no_align_recipe_ends_over_a_pair_that_is_the_same_after_the_cut(name, tmp_path, monkeypatch, capsys):
    """An answer that was cut is continued up to twice its length: what training cuts may then be all that differs."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("examples.align.recipe.shutil.which", lambda name: name)
    asked = recipe.read(FOLDER / name)
    for _, said in asked.sets.values():
        longest = 2 * int(said.get("target_max_tokens", 512))
        check._say_what_is_cut(asked, longest)
    assert "the same up to there" not in capsys.readouterr().err
    bare = replace(asked, train={**asked.train, "skip_bad_rows": "false", "max_response_tokens": "20"})
    check._say_what_is_cut(bare, longest)
    assert f"may have {longest:,} tokens, of which training keeps 20 at most" in capsys.readouterr().err


def test_an_8b_fits_two_cards_of_80_gb(capsys):
    """What align-llama3-8b-8gpus.yaml asks for: gpus: 2."""
    said = yaml.safe_load((FOLDER / "align-llama3-8b-8gpus.yaml").read_text())
    plan.main(["--shape", "llama3-8b", "--gpus", str(said["gpus"]), "--gpu-memory", "80", "--json"])
    chosen = json.loads(capsys.readouterr().out)["chosen"]
    assert said["gpus"] == 2 and chosen["flags"].startswith("--reference ") and chosen["memory_bytes"] < 80e9
