"""docs/log.md: every entry names where its figures stand, and there they are."""

import re
import subprocess
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LOG = ROOT / "docs/log.md"
LINK = re.compile(r"\[[^\]]+\]\((\w[\w-]*\.md)(?:#[^)]*)?\)")
SUBJECT = re.compile(r'(?:; |\()"([^"]+)"\)$')


def days():
    """(date, its entries as one line each), in the page's order."""
    for part in re.split(r"^## ", LOG.read_text(encoding="utf-8"), flags=re.MULTILINE)[1:]:
        date, _, text = part.partition("\n")
        found = re.findall(r"^- .*(?:\n  .*)*", text, re.MULTILINE)
        yield date, [re.sub(r"\s+", " ", entry) for entry in found]


def git(*arguments):
    """What git says."""
    done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=False)
    return done.stdout if done.returncode == 0 else ""


@cache
def history(*arguments):
    """A part of the history: messages and changes, with single blanks."""
    return re.sub(r"\s+", " ", git("log", "-p", "-U0", "--format=%H %s%n%b", *arguments))


def figures(text):
    """The numbers in a text."""
    return set(re.findall(r"\d+(?:[.,]\d+)*(?:e-\d+)?", text))


def test_days_are_in_order_newest_first_and_none_is_empty():
    dates = [date for date, _ in days()]
    assert dates == sorted(set(dates), reverse=True) and all(re.fullmatch(r"\d{4}-\d\d-\d\d", date) for date in dates)
    assert all(entries for _, entries in days())


@pytest.mark.parametrize("entry", [e for _, found in days() for e in found], ids=lambda e: e[2:50].strip("*"))
def test_an_entrys_figures_stand_where_it_says(entry):
    assert entry.startswith("- **")
    subject, pages = SUBJECT.search(entry), LINK.findall(entry)
    assert subject or pages, "an entry names a page, or a commit's subject"
    if not git("rev-parse", "HEAD") or git("rev-parse", "--is-shallow-repository") == "true\n":
        pytest.skip("no history to look into")
    shown = "".join(history("--", f"docs/{page}") for page in pages)
    if subject:
        (commit,) = [line[:40] for line in git("log", "--format=%H %s").splitlines() if line[41:] == subject[1]]
        shown += history("-1", commit)
    said = SUBJECT.sub("", LINK.sub("", entry))
    assert not figures(said) - figures(shown)
