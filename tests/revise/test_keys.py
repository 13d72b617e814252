"""Keys: read, sent, never shown."""

import base64
import urllib.parse

import pytest

from revise.client import keys
from system.errors import InputError

KEY = "sk-Zq7/w+Xv9Kf3=Lm5"


@pytest.mark.parametrize("text", [KEY, f" {KEY}\n", f"{KEY}\r\n"])
def test_blanks_around_a_key_are_no_part_of_it(text):
    assert keys.Key(text, source="x").header() == {"Authorization": f"Bearer {KEY}"}


@pytest.mark.parametrize("text", ["", " \n", "sk-a b", "sk-“a”", "sk-a\nb", "sk-\x00", "sk-ä"])
def test_a_text_that_is_no_key_is_refused_without_being_shown(text):
    with pytest.raises(InputError, match="MY_KEY") as fault:
        keys.Key(text, source="the variable MY_KEY")
    assert "sk-" not in str(fault.value) and "sk-" not in repr(fault.value.__context__)


def test_a_key_prints_as_stars():
    key = keys.Key(KEY, source="x")
    assert KEY not in f"{key} {key!r} {[key]}"


def test_every_spelling_of_a_key_is_masked():
    key = keys.Key(KEY, source="x")
    encoded = base64.b64encode(KEY.encode()).decode()
    text = f"a {KEY} b {encoded} c {urllib.parse.quote(KEY, safe='')} d"
    masked = key.mask(text)
    assert (
        KEY not in masked and encoded.rstrip("=") not in masked and "%2F" not in masked and masked.startswith("a *** b")
    )


def test_a_key_is_read_from_a_file_that_others_should_not_read(tmp_path, capsys):
    path = tmp_path / "key"
    path.write_text(f"{KEY}\n")
    path.chmod(0o600)
    assert keys.from_file(path).header() == {"Authorization": f"Bearer {KEY}"} and not capsys.readouterr().err
    path.chmod(0o644)
    keys.from_file(path)
    told = capsys.readouterr().err
    assert "chmod 600" in told and KEY not in told


@pytest.mark.parametrize("content", [b"", b"\xff\xfe", b"two words"])
def test_a_file_without_a_key_is_said(tmp_path, content):
    (tmp_path / "key").write_bytes(content)
    with pytest.raises(InputError, match="key"):
        keys.from_file(tmp_path / "key")


def test_a_variable_that_is_not_set_gives_no_key(monkeypatch):
    monkeypatch.delenv("NO_SUCH_KEY", raising=False)
    assert keys.from_environment("NO_SUCH_KEY") is None
