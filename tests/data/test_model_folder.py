"""What stands for a model: a whole folder, or an adapter's with its base; its tokenizer, its template, its endings."""

import json
import os
import shutil

import pytest

from data import show
from data.rows import base_of, is_copy, is_model_folder, open_folder, open_model
from data.text import TemplateSettings, stop_ids
from system import InputError
from tests import tiny
from tests.engine.adapter_folders import write_adapter

OTHER = tiny.TEMPLATE.replace("assistant<|end_header_id|>", "helper<|end_header_id|>")


@pytest.fixture
def base(tmp_path):
    folder = tiny.write_model(tmp_path / "base", ["some words"] * 20)
    (folder / "chat_template.jinja").write_text(tiny.TEMPLATE)
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [17, 399]}))
    return folder


def test_an_adapter_without_a_tokenizer_has_its_bases(base, tmp_path):
    folder = write_adapter(tmp_path / "adapter", base)
    found, chat = open_model(str(folder))
    assert found == folder and is_model_folder(folder)
    assert chat.tokenizer.folder == base and chat.template.location == base / "chat_template.jinja"
    assert stop_ids(folder, chat) == stop_ids(base, open_model(str(base))[1]) and 17 in stop_ids(folder, chat)


def test_an_adapters_own_tokenizer_and_template_go_before_its_bases(base, tmp_path):
    folder = write_adapter(tmp_path / "adapter", base, tokenizer=True)
    (folder / "chat_template.jinja").write_text(OTHER)
    _, chat = open_model(str(folder))
    assert chat.tokenizer.folder == folder and chat.template.location == folder / "chat_template.jinja"
    assert 17 in stop_ids(folder, chat)  # which the base alone says
    (folder / "chat_template.jinja").unlink()
    _, chat = open_model(str(folder))
    assert chat.tokenizer.folder == folder and chat.template.location == base / "chat_template.jinja"
    _, chat = open_model(str(folder), TemplateSettings(chat_template=str(base / "chat_template.jinja")))
    assert chat.template.location == base / "chat_template.jinja"


def test_an_adapter_and_a_base_without_tokenizers_have_none(tmp_path):
    base = tiny.write_model(tmp_path / "base")
    folder = write_adapter(tmp_path / "adapter", base)
    assert open_folder(str(folder)) == (folder, None)


def test_a_copy_is_one_byte_for_byte_as_it_is_now(base, tmp_path):
    copy = shutil.copytree(base, tmp_path / "copy")
    assert is_copy(base, copy)
    path = copy / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    assert not is_copy(base, copy)
    (copy / "config.json").unlink()
    assert not is_copy(base, copy) and not is_copy(copy, base)


def test_another_base_can_be_given(base, tmp_path):
    other = tiny.write_model(tmp_path / "other", ["some words"] * 20)
    folder = write_adapter(tmp_path / "adapter", base, names="nowhere")
    _, chat = open_model(str(folder), base=other)
    assert chat.tokenizer.folder == other


def test_a_base_by_a_relative_path_is_looked_for_where_the_command_runs(base, tmp_path, monkeypatch):
    folder = write_adapter(tmp_path / "adapter", base, names="base")
    monkeypatch.chdir(tmp_path)
    assert base_of(folder).resolve() == base


WRONG = [
    (lambda base: str(base / "gone"), r"its base, .*/gone, is not there \(no such file or folder\); put it there, or"),
    (lambda base: None, r"an adapter that does not name its base model \(base_model_name_or_path\);"),
    (lambda base: str(base.parent), "its base, .*, has no config.json, so it is not a model;"),
]  # fmt: skip


@pytest.mark.parametrize(("names", "said"), WRONG)
def test_a_base_that_cannot_be_had_is_named_with_the_remedy(base, tmp_path, names, said):
    folder = write_adapter(tmp_path / "adapter", base)
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps(config | {"base_model_name_or_path": names(base)}))
    with pytest.raises(InputError, match=rf"^{folder}: {said} name it: --model BASE --adapter {folder}$"):
        open_model(str(folder))


def test_a_base_that_is_an_adapter_is_refused(base, tmp_path):
    first = write_adapter(tmp_path / "first", base)
    second = write_adapter(tmp_path / "second", base, names=str(first))
    with pytest.raises(InputError, match=rf"^{second}: its base, {first}, is an adapter itself; .*engine\.merge$"):
        open_model(str(second))


def test_a_row_is_shown_with_an_adapters_folder(base, tmp_path, capsys):
    folder = write_adapter(tmp_path / "adapter", base)
    rows = tiny.write_rows(tmp_path / "rows.jsonl", [{"prompt": "some", "chosen": "words", "rejected": "some"}])
    shown = []
    for model in (base, folder):
        show.main([str(rows), "--model", str(model)])
        shown.append(capsys.readouterr().out)
    assert shown[0] == shown[1] and "words" in shown[0]


def write_cache(home, name, folder):
    """The hub's cache as its own library leaves it."""
    root, sha = home / f"hub/models--{name.replace('/', '--')}", "a" * 40
    (root / "refs").mkdir(parents=True)
    (root / "refs/main").write_text(sha)
    (root / "refs/v2").write_text(sha)
    (root / "trees").mkdir()
    tree = {p.name: {"size": p.stat().st_size, "blob_id": "b" * 40} for p in folder.iterdir()}
    (root / f"trees/{sha}.json").write_text(json.dumps({"format_version": 1, "files": tree}))
    os.renames(folder, root / "snapshots" / sha)
    return root / "snapshots" / sha


@pytest.mark.parametrize("revision", [None, "v2"])
def test_adapter_and_base_by_hub_ids(base, tmp_path, monkeypatch, revision):
    """Out of the hub's cache, which is all that is asked offline; the base by the revision that the adapter names."""
    folder = write_adapter(tmp_path / "adapter", base, names="org/base")
    if revision is not None:
        config = json.loads((folder / "adapter_config.json").read_text())
        (folder / "adapter_config.json").write_text(json.dumps(config | {"revision": revision}))
    held = {
        name: write_cache(tmp_path / "home", name, path) for name, path in (("org/base", base), ("org/lora", folder))
    }
    (tmp_path / "home/hub/models--org--base/refs" / ("main" if revision else "v2")).unlink()
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "home/hub"))
    found, chat = open_model("org/lora")
    assert found == held["org/lora"] and chat.tokenizer.folder == held["org/base"]
