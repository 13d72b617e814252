"""The chat template that a run is given: what its epochs carry, and the day that it keeps."""

import datetime
from types import SimpleNamespace

import pytest
import yaml

from data.forest import PackingOptions, n_tokens
from data.rows import Limits, Reading, open_model, read_examples
from data.text import Message, TemplateSettings, template
from engine import plan, train
from engine.config import TrainConfig
from engine.generate import Answerer, GenerateConfig
from eval import checkpoints
from system import InputError
from tests import tiny
from tests.data import templates
from tests.metrics import lines

ROWS = [{"prompt": f"{i}+{i}?", "chosen": f"{2 * i}", "rejected": f"{i}"} for i in range(1, 9)]
USER = [Message("user", "2+2?")]


def model_of(folder, name):
    tiny.write_model(folder, vocab_size=440)
    return templates.write(folder, templates.TEMPLATES[name], eos=templates.end_of(name))


@pytest.fixture
def go(tmp_path):
    """A function that runs a training of two steps on a model of Llama-3.2's template."""
    model = model_of(tmp_path / "model", "Llama-3.2")
    rows = tiny.write_rows(tmp_path / "rows.jsonl", ROWS)

    def run(name, **changes):
        settings = {"model": str(model), "data": str(rows), "out": str(tmp_path / name), "batch_size": 4, "epochs": 1}
        return train.run(TrainConfig(**(settings | changes))).out

    run.model = model
    return run


def on(monkeypatch, day):
    """The clock of templates stands at that day."""
    today = datetime.date.fromisoformat(day)

    class Day(datetime.date):
        @classmethod
        def today(cls):
            return today

    shim = SimpleNamespace(date=Day, datetime=datetime.datetime, time=datetime.time)
    monkeypatch.setattr(template, "datetime", shim)


def settings_of(out):
    return yaml.safe_load((out / "config.yaml").read_text())


def test_a_run_keeps_the_day_on_which_it_began(go, monkeypatch):
    on(monkeypatch, "2026-03-01")
    out = go("run", stop_after=1)
    assert settings_of(out)["template_date"] == "2026-03-01"
    assert "Today: 01 Mar 2026" in (out / "first_example.txt").read_text().replace("\u254e", "")
    on(monkeypatch, "2026-03-02")
    go("run", resume=True)
    assert settings_of(out)["template_date"] == "2026-03-01"
    whole = go("whole", template_date="2026-03-01")
    assert (out / "first_example.txt").read_text() == (whole / "first_example.txt").read_text()
    losses = [[line["loss"] for line in lines(o)] for o in (out, whole)]
    assert losses[0] == losses[1] and len(losses[0]) == 2


def test_a_run_is_not_gone_on_with_on_another_day(go, monkeypatch):
    on(monkeypatch, "2026-03-01")
    go("run", stop_after=1)
    with pytest.raises(InputError, match=r"would resume another run \(.*template date: 2026-03-01 -> 2026-03-02"):
        go("run", resume=True, template_date="2026-03-02")


def test_epochs_carry_the_template_that_the_run_was_given(go, tmp_path):
    file = tmp_path / "mine.jinja"
    file.write_text(templates.TEMPLATES["Llama-3.1"].replace('{{- "Known', '{{- place }}{{- "Known'))
    out = go("run", chat_template=str(file), chat_template_kwargs='place="Oslo. "', stop_after=1)
    file.write_text(file.read_text() + "{# changed #}")
    with pytest.raises(InputError, match=r"another run \(.*chat template: \w+ -> \w+"):
        go("run", resume=True, chat_template=str(file), chat_template_kwargs='place="Oslo. "')
    with pytest.raises(InputError, match=r"another run \(.*chat_template_kwargs: place=\"Oslo. \" -> place=\"Rome. \""):
        go("run", resume=True, chat_template=str(file), chat_template_kwargs='place="Rome. "')
    file.write_text(file.read_text().removesuffix("{# changed #}"))
    go("run", resume=True, chat_template=str(file), chat_template_kwargs='place="Oslo. "')
    assert (out / "epoch-01" / "chat_template.jinja").read_text() == file.read_text()
    assert (go.model / "chat_template.jinja").read_text() == templates.TEMPLATES["Llama-3.2"]
    file.unlink()  # evaluation takes what the epochs carry, and the names that the run was given
    for folder in (out, out / "epoch-01"):
        found = checkpoints.template_of(folder, TemplateSettings())
        assert found.chat_template == str(out / "epoch-01" / "chat_template.jinja")
        assert found.kwargs == {"place": "Oslo. "}
    assert checkpoints.template_of(out, TemplateSettings(chat_template_kwargs="place=1")).kwargs == {"place": 1}


def test_prompts_are_rendered_by_the_flags(tmp_path):
    qwen, r1 = (model_of(tmp_path / name, name) for name in ("Qwen3", "R1-Distill-Llama"))

    def ending(folder, **flags):
        answerer = Answerer.open(str(folder), settings=TemplateSettings(**flags))
        assert answerer.chat is not None
        return answerer.chat.tokenizer.decode(answerer.prompt_ids("here", USER))

    assert ending(qwen).endswith("assistant\n")
    assert ending(qwen, chat_template_kwargs="enable_thinking=false").endswith("assistant\n<think>\n\n</think>\n\n")
    assert ending(r1).endswith("2+2?<think>\n")
    assert ending(qwen, chat_template=str(r1 / "chat_template.jinja")).endswith("2+2?<think>\n")


def test_a_server_renders_its_own_template():
    with pytest.raises(InputError, match=r"^--chat-template: applies to a local checkpoint, not to --endpoint; leave"):
        GenerateConfig(model="m", prompts="p", out="o", endpoint=("http://localhost:1/v1",), chat_template="x")


def test_the_plan_counts_rows_as_the_flags_render_them(go, tmp_path, capsys):
    file = tmp_path / "mine.jinja"
    file.write_text(templates.TEMPLATES["Llama-3.2"].replace('{{- "Known', '{{- place }}{{- "Known'))
    flags = {"chat_template": str(file), "chat_template_kwargs": "place=" + 40 * "word ", "template_date": "2024-07-26"}
    given = [x for name, value in flags.items() for x in (f"--{name.replace('_', '-')}", value)]
    data = str(tiny.write_rows(tmp_path / "rows.jsonl", ROWS))
    counted = []
    for settings, more in ((TemplateSettings(), []), (TemplateSettings(**flags), given)):
        plan.main(["--model", str(go.model), "--data", data, "--gpus", "0", "--gpu-memory", "4", *more])
        _, chat = open_model(str(go.model), settings)
        rows = read_examples([data], chat, Limits(), Reading(), n_ids=440).examples
        counted.append(sum(n_tokens(e, PackingOptions()) for e in rows) / len(rows))
        assert f"{counted[-1]:,.0f} tokens an example" in capsys.readouterr().out
    assert counted[1] > counted[0] + 40
    with pytest.raises(InputError, match=r"^--template-date: needs --data, whose rows it reads; add it"):
        plan.main(["--shape", "tiny", "--template-date", "2024-07-26"])
