"""Publishing: what is sent, that nothing is made public or written over unasked, and what a cut-off upload costs."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from engine import publish, weights
from engine.publish import PublishConfig
from system import InputError, RunError
from tests import tiny
from tests.engine.hub import serving

pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")  # of huggingface_hub's own upload
REPO = "org/model"
CARD = "---\nlibrary_name: transformers\n---\n# A model\n"


@pytest.fixture
def hub():
    """A stand-in for the hub, on loopback."""
    with serving() as found:
        yield found


@pytest.fixture
def here(hub, monkeypatch):
    """The library in this process asks the stand-in."""
    monkeypatch.setenv("HF_TOKEN", "hf_test")
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", hub.address)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)
    return hub


@pytest.fixture
def folder(tmp_path):
    """A run's checkpoint folder of two shards, with a card."""
    weights.save(tiny.random_llama(), tmp_path / "run/epoch-18", shard_bytes=100_000, beside={"README.md": CARD})
    return tmp_path / "run/epoch-18"


def content(folder):
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def send(folder, *flags):
    publish.main([str(folder), "--repo", REPO, *flags])


def test_a_folder_is_sent_whole_in_one_commit_to_a_private_repository(here, folder, capsys):
    (folder / ".cache").mkdir()
    (folder / ".cache/x").touch()
    (folder / "half.tmp").touch()
    expected = content(folder)
    del expected[".cache/x"], expected["half.tmp"]
    assert sum(name.endswith(".safetensors") for name in expected) == 2 and "README.md" in expected
    send(folder)
    held = here.repos[REPO]
    assert held["files"] == expected and held["private"] is True and held["commits"] == ["Add epoch-18"]
    out, err = capsys.readouterr()
    assert out == f"{here.address}/{REPO}/commit/{'0' * 39}1\n"
    assert f"{REPO}: created as a private repository" in err and "README.md: names no licence" in err


def test_public_is_asked_for(here, folder):
    send(folder, "--public")
    assert here.repos[REPO]["private"] is False


@pytest.mark.parametrize(("private", "flags", "mend"), [(False, [], "give --public"), (True, ["--public"], "leave")])
def test_a_repository_is_not_made_public_or_private_by_surprise(here, folder, private, flags, mend):
    here.add(REPO, private=private)
    with pytest.raises(InputError, match=mend):
        send(folder, *flags)
    assert not here.repos[REPO]["files"]


def test_a_card_that_was_written_on_the_hub_is_not_written_over_unasked(here, folder):
    here.add(REPO, {"README.md": b"written by hand"})
    with pytest.raises(InputError, match=r"holds another README\.md; --existing-card keep leaves it"):
        send(folder)
    assert here.repos[REPO]["files"] == {"README.md": b"written by hand"}
    send(folder, "--existing-card", "keep")
    assert here.repos[REPO]["files"]["README.md"] == b"written by hand" and len(here.repos[REPO]["files"]) > 1
    send(folder, "--existing-card", "replace")
    assert here.repos[REPO]["files"] == content(folder)
    send(folder)  # the same card is none of another


def test_shards_of_a_model_before_go_and_other_files_stay(here, folder):
    here.add(REPO, {"model-00001-of-00009.safetensors": b"old", "LICENSE": b"mine", "model.safetensors": b"older"})
    send(folder)
    assert here.repos[REPO]["files"] == content(folder) | {"LICENSE": b"mine"}


def test_a_dry_run_asks_nothing_and_shows_files_and_card(here, folder, capsys):
    send(folder, "--dry-run")
    out = capsys.readouterr().out
    size = sum(map(len, content(folder).values()))
    assert f"{REPO} (private) would get {len(content(folder))} files of {folder}, {size:,} bytes:" in out
    assert all(name in out for name in content(folder)) and CARD in out
    assert not here.asked and not here.repos


def test_a_card_from_elsewhere(here, folder, tmp_path, capsys):
    (folder / "README.md").unlink()
    send(folder, "--dry-run")
    assert "has no model card" in capsys.readouterr().err
    (tmp_path / "card.md").write_text("---\nlicense: llama3\n---\n# Another\n")
    send(folder, "--card", str(tmp_path / "card.md"))
    assert here.repos[REPO]["files"]["README.md"] == (tmp_path / "card.md").read_bytes()
    assert "licence" not in capsys.readouterr().err
    with pytest.raises(InputError, match=r"--card: .*nothing\.md is not a file"):
        send(folder, "--card", str(tmp_path / "nothing.md"))


@pytest.mark.parametrize(
    ("repo", "said"), [("model", "ORG/NAME"), ("a/b/c", "ORG/NAME"), ("./a", "ORG/NAME"), ("a/b@x", "ORG/NAME")]
)
def test_a_name_is_checked_before_anything(repo, said):
    with pytest.raises(InputError, match=f"--repo: .* is not of the form {said}"):
        PublishConfig(folder="x", repo=repo)


def test_what_is_no_checkpoint_is_refused_before_the_hub_is_asked(here, folder):
    with pytest.raises(InputError, match=r"a run's folder; name one of its checkpoints, such as .*epoch-18"):
        send(folder.parent)
    with pytest.raises(InputError, match="no such folder"):
        send(folder / "nothing")
    next(folder.glob("*.safetensors")).unlink()
    with pytest.raises(InputError):
        send(folder)
    assert not here.asked


def test_no_token_is_told_before_the_hub_is_asked(here, folder, monkeypatch):
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    with pytest.raises(InputError, match="hf auth login"):
        send(folder)
    assert not here.asked


@pytest.mark.parametrize("where", ["/commit/", "/blob/", "/api/models/org/model"])
@pytest.mark.parametrize(
    ("status", "kind", "said"),
    [
        (403, InputError, r"org/model: the hub refuses \(403: you may not\); check the name, and that the token"),
        (400, InputError, r"org/model: the hub refuses \(400: you may not\)"),
        (501, RunError, r"org/model: the hub failed \(501: you may not\); give the same command again"),
    ],
)
def test_what_the_hub_refuses_is_a_sentence(here, folder, where, status, kind, said):
    here.add(REPO)
    here.fail = lambda verb, path: (status, "you may not") if where in path else None
    with pytest.raises(kind, match=said):
        send(folder)


def test_a_card_that_the_hub_cannot_read_is_told_before_weights_are_sent(here, folder):
    (folder / "README.md").write_text("no metadata")
    with pytest.raises(InputError, match=r"Invalid metadata in README\.md"):
        send(folder)
    assert not here.blobs


def process(hub, folder, tmp_path, *flags):
    command = [sys.executable, "-m", "engine.publish", str(folder), "--repo", REPO, *flags]
    own = {
        "HF_ENDPOINT": hub.address,
        "HF_TOKEN": "hf_test",
        "HF_HUB_DISABLE_XET": "1",
        "HF_HOME": str(tmp_path / "hf"),
    }
    return subprocess.Popen(command, env=tiny.environment() | own, text=True, stdout=-1, stderr=-1)


@pytest.mark.slow
def test_an_upload_that_is_killed_goes_on_where_it_was(hub, folder, tmp_path):
    """kill -9 with one of two shards sent: the repository holds nothing yet, and the shard is not sent again."""
    first = []

    def hang(verb, path):
        if verb == "PUT" and not first:
            first.append(path)
        elif verb == "PUT":
            while not hub.blobs:
                time.sleep(0.02)
            os.kill(one.pid, signal.SIGKILL)
            one.wait()
            return 400, "gone"
        return None

    hub.fail = hang
    one = process(hub, folder, tmp_path)
    one.communicate(timeout=300)
    assert one.returncode == -signal.SIGKILL and len(hub.blobs) == 1 and not hub.repos[REPO]["files"]
    hub.fail = lambda verb, path: None
    before = len(hub.asked)
    two = process(hub, folder, tmp_path)
    out, err = two.communicate(timeout=300)
    assert two.returncode == 0, err
    assert hub.repos[REPO]["files"] == content(folder) and len(hub.repos[REPO]["commits"]) == 1
    assert sum(verb == "PUT" for verb, _ in hub.asked[before:]) == 1
    assert out.startswith(f"{hub.address}/{REPO}/commit/") and "Traceback" not in err


@pytest.mark.slow
def test_a_hub_that_is_not_there_is_a_sentence(folder, tmp_path):
    with serving() as hub:
        pass
    done = process(hub, folder, tmp_path)
    _, err = done.communicate(timeout=300)
    assert done.returncode == 1 and "Traceback" not in err
    assert f"error: {REPO}: the hub cannot be reached" in err.splitlines()[-1]


def test_a_runs_own_folder_is_published_with_its_card(here, tmp_path):
    """From a run to the hub, and back into transformers' hands."""
    from engine import train
    from engine.config import TrainConfig
    from tests.rows import id_rows

    model = tiny.write_model(tmp_path / "base", vocab_size=101)
    rows = tiny.write_rows(tmp_path / "rows.jsonl", id_rows(4))
    run = train.run(TrainConfig(model=str(model), data=str(rows), out=str(tmp_path / "first"), max_steps=1, lr=1e-4))
    send(run.checkpoints[-1])
    held = here.repos[REPO]["files"]
    assert b"# first, epoch-01" in held["README.md"] and json.loads(held["config.json"])["model_type"] == "llama"
