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


@pytest.mark.parametrize(
    ("text", "is_looked_for"),
    [
        ("abcdefgh12345678", True),  # 16 characters
        ("abcdefgh1234567", False),
        ("sk-no-key-required", False),  # no digit
        ("1234567890123456789", False),  # no letter
        ("aaaa1111aaaa1111", False),  # two different ones
        ("abcdefg1abcdefg1", True),  # eight
        ("abcdef11abcdef11", False),
    ],
)
def test_a_key_is_looked_for_where_nobody_says_it_by_chance(text, is_looked_for):
    assert keys.Key(text, source="x").is_in(f"say {text}!".encode()) == is_looked_for


def test_a_key_is_found_in_each_of_its_spellings():
    key = keys.Key(KEY, source="x")
    encoded = base64.b64encode(KEY.encode()).decode().rstrip("=")
    for spelling in (KEY, encoded, urllib.parse.quote(KEY, safe=""), KEY.replace("/", "\\/")):
        assert key.is_in(f'{{"content": "{spelling}"}}'.encode()), spelling
    assert not key.is_in(KEY[:-1].encode())


def test_base64_of_a_key_is_masked_with_its_padding_or_without():
    key = keys.Key("sk-1234567890", source="x")
    assert "=" in (encoded := base64.b64encode(b"sk-1234567890").decode())
    assert key.mask(f"{encoded.rstrip('=')} and {encoded}") == "*** and ***=="


def test_a_key_file_for_a_group_is_said_and_its_mark_of_utf_8_is_no_part_of_it(tmp_path, capsys):
    path = tmp_path / "key"
    path.write_bytes(b"\xef\xbb\xbf" + KEY.encode())
    path.chmod(0o640)
    assert keys.from_file(path).header() == {"Authorization": f"Bearer {KEY}"}
    assert "chmod 600" in capsys.readouterr().err


# --- headers -------------------------------------------------------------------------------------------------------


def test_headers_are_filled_from_the_environment_and_hide_what_is_secret(monkeypatch):
    monkeypatch.setenv("MY_NAME", " abc\n")
    made = keys.parse_headers(("x-a: ${MY_NAME}/$MY_NAME", "Authorization: Bearer xyz123", "x-title: mine"))
    assert made.fields == {"x-a": "abc/abc", "Authorization": "Bearer xyz123", "x-title": "mine"}
    assert made.mask("abc, Bearer xyz123, mine") == "***, Bearer ***, mine" and made.has_secrets
    assert "abc" not in repr(made) and "xyz" not in repr(made)
    assert not keys.parse_headers(("x-title: mine",)).has_secrets


def test_a_variable_may_hold_the_scheme_too(monkeypatch):
    monkeypatch.setenv("WHOLE", "Bearer xyz123")
    made = keys.parse_headers(("X-Auth: $WHOLE",))
    assert made.fields == {"X-Auth": "Bearer xyz123"} and made.mask("Bearer xyz123") == "Bearer ***"
    monkeypatch.setenv("WHOLE", " ")
    with pytest.raises(InputError, match="the variable WHOLE: the key is empty"):
        keys.parse_headers(("X-Auth: $WHOLE",))


@pytest.mark.parametrize("name", ["x-API-Key", "auth", "X-Token", "Cookie", "my-secret", "password"])
def test_a_secrets_name_is_known_in_any_case(name):
    assert keys.parse_headers((f"{name}: abc",)).mask("abc") == "***"


def test_a_secret_within_another_one_leaves_nothing_of_it(monkeypatch):
    monkeypatch.setenv("ONE", "abc")
    monkeypatch.setenv("TWO", "abcdef")
    assert keys.parse_headers(("x-a: $ONE", "x-b: $TWO")).mask("abcdef abc") == "*** ***"


def test_a_header_is_given_once_in_whatever_case():
    with pytest.raises(InputError, match="X-Title is given twice"):
        keys.parse_headers(("x-title: a", "X-Title: b"))


@pytest.mark.parametrize("name", ["Host", "content-length", "Transfer-Encoding", "accept-encoding"])
def test_a_header_that_every_request_has_is_refused(name):
    with pytest.raises(InputError, match=f"--target-header: {name} is set by this program"):
        keys.parse_headers((f"{name}: x",), "--target-header")
