"""The template flags of --target-model: how its prompts are rendered, and that stored answers are of one template."""

import pytest

from revise.prompts import Prompts
from revise.recipes import ClairConfig
from revise.target import Target
from system import InputError
from tests import tiny
from tests.data import templates


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("target") / "qwen"
    tiny.write_model(folder, vocab_size=440)
    return templates.write(folder, templates.TEMPLATES["Qwen3"], eos=templates.end_of("Qwen3"))


def target(model, tmp_path, **flags):
    """A target with an item to ask it about."""
    rows = tiny.write_rows(tmp_path / "prompts.jsonl", [{"prompt": "2+2?"}])
    settings = {"prompts": str(rows), "out": str(tmp_path / "o.jsonl"), "store": str(tmp_path / "s.sqlite")}
    config = ClairConfig(**settings, model="m", endpoint=("http://localhost:1/v1",), target_model=str(model), **flags)
    (item,) = Prompts(config)
    return Target(config, config, n=1, seed=0), item


def written(found, item):
    answerer = found._answerer
    return answerer.chat.tokenizer.decode(answerer.prompt_ids(item.location, item.prompt, item.context))


def test_its_prompts_are_rendered_by_the_flags(model, tmp_path):
    assert written(*target(model, tmp_path)).endswith("assistant\n")
    quiet = written(*target(model, tmp_path, chat_template_kwargs="enable_thinking=false"))
    assert quiet.endswith("assistant\n<think>\n\n</think>\n\n")
    dated = tmp_path / "dated.jinja"
    dated.write_text(templates.TEMPLATES["Llama-3.2"])
    assert "Today: 26 Jul 2024" in written(
        *target(model, tmp_path, chat_template=str(dated), template_date="2024-07-26")
    )


@pytest.mark.slow
def test_answers_under_another_template_are_other_answers(model, tmp_path):
    file = tmp_path / "mine.jinja"
    file.write_text(templates.TEMPLATES["Llama-3.2"])
    ways = [{}, {"chat_template_kwargs": "enable_thinking=false"}, {"chat_template": str(file)},
            {"chat_template": str(file), "template_date": "2024-07-26"},
            {"chat_template": str(file), "template_date": "2024-07-27"}]  # fmt: skip
    keys, settings = [], []
    for way in ways:
        found, item = target(model, tmp_path, **way)
        (request,) = found.requests(item)
        keys.append(request.key)
        settings.append(found.settings)
        assert ("template" in request.body) == bool(way) == ("template" in found.settings)
    assert len(set(keys)) == len(ways)
    assert settings[3]["template"]["date"] == "2024-07-26"
    with pytest.raises(InputError, match=r"^--template-date: the chat template .* asks for no date"):
        target(model, tmp_path, template_date="2024-07-26")[0].requests(item)


def test_flags_of_a_model_that_does_not_answer_here_are_refused(tmp_path):
    settings = {"prompts": "p", "out": str(tmp_path / "o.jsonl"), "store": str(tmp_path / "s.sqlite"), "model": "m"}
    with pytest.raises(
        InputError, match=r"^--chat-template-kwargs: is for --target-model, which is not given; leave it"
    ):
        ClairConfig(**settings, endpoint=("http://localhost:1/v1",), chat_template_kwargs="a=1")
