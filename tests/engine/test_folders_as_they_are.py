"""Checkpoint folders as they come: with marks, with half a config.json, beside or inside of what a run writes."""

import codecs
import json

import pytest
from transformers import AutoConfig, AutoTokenizer

from data.rows import open_model
from data.text import Message
from engine import weights
from engine.train import TrainConfig, run
from system import InputError
from tests import tiny
from tests.rows import id_rows

TEMPLATE = "{{ bos_token }}{% for m in messages %}{{ m.content }}{{ eos_token }}{% endfor %}"


@pytest.fixture
def folder(tmp_path):
    made = tiny.write_model(tmp_path / "m", ["some words to merge and to answer with"] * 20)
    (made / "chat_template.jinja").write_text(TEMPLATE)
    return made


def test_a_byte_order_mark_is_not_read_and_not_written(folder, tmp_path, capsys):
    """transformers reads no JSON behind one, and a template's would stand in every prompt."""
    plain = open_model(str(folder))[1].prompt_ids([Message("user", "some words")])
    marked = [p for p in sorted(folder.iterdir()) if p.suffix in (".json", ".jinja")]
    for path in marked:
        path.write_bytes(codecs.BOM_UTF8 + path.read_bytes())
    assert len(marked) == 5
    found, chat = open_model(str(folder))
    assert chat.prompt_ids([Message("user", "some words")]) == plain
    weights.save(weights.load(found), tmp_path / "saved", beside=chat.files)
    written = {p.name: p.read_bytes() for p in (tmp_path / "saved").iterdir()}
    assert {p.name for p in marked} <= written.keys()
    assert not any(content.startswith(codecs.BOM_UTF8) for content in written.values())
    AutoTokenizer.from_pretrained(tmp_path / "saved")
    said = capsys.readouterr().err.splitlines()
    assert sorted(line for line in said if "byte order mark" in line) == [
        f"{path}: begins with a byte order mark, which is left out here and in checkpoints" for path in marked
    ]


@pytest.mark.parametrize("without", ["model_type", "architectures"])
@pytest.mark.parametrize("is_null", [True, False])
def test_a_written_folder_says_what_model_it_is(without, is_null, folder, tmp_path):
    config = json.loads((folder / "config.json").read_text())
    config[without] = None
    if not is_null:
        del config[without]
    (folder / "config.json").write_text(json.dumps(config))
    weights.save(weights.load(folder), tmp_path / "saved")
    written = json.loads((tmp_path / "saved" / "config.json").read_text())
    assert (written["model_type"], written["architectures"]) == ("llama", ["LlamaForCausalLM"])
    assert AutoConfig.from_pretrained(tmp_path / "saved").model_type == "llama"


@pytest.mark.parametrize("inside", ["", "runs/first"])
@pytest.mark.parametrize("spelled", ["{}", "{}/../m", "link"])
def test_a_run_in_its_model_s_own_folder_is_refused_before_anything_is_written(inside, spelled, folder, tmp_path):
    (tmp_path / "link").symlink_to(folder)
    named = tmp_path / "link" if spelled == "link" else spelled.format(folder)
    rows = tiny.write_rows(tmp_path / "rows.jsonl", id_rows(4))
    before = sorted(folder.rglob("*"))
    with pytest.raises(InputError, match=r"the folder of the model that is trained .*; give another --out"):
        run(TrainConfig(model=str(folder), data=str(rows), out=f"{named}/{inside}"))
    assert sorted(folder.rglob("*")) == before
