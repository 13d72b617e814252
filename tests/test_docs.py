"""The documentation: every link leads somewhere, every command exists and knows the flags that it is shown with."""

import re
import shlex
from functools import cache

import pytest

from tests.pages import GENERATED, PAGES, ROOT, blocks, command_of

DOORS = {"train": "engine.train", "bench": "engine.bench", "paper": "examples.miniature.paper",
         "align": "examples.align"}  # fmt: skip


def commands(path):
    """(module or verb, arguments) of every command in a page's blocks and in backquotes."""
    text = path.read_text(encoding="utf-8")
    lines = [line for block in blocks(path) for line in re.sub(r"\\\n\s*", " ", block).splitlines()]
    lines += [re.sub(r"\s+", " ", said) for said in re.findall(r"`((?:\./launch\.sh|python -m|torchrun)[^`]+)`", text)]
    for line in lines:
        line = command_of(line).rstrip("&").strip()
        found = re.match(
            r"(?:[A-Z_]+=\S+ )*(?:\.venv/bin/)?(?:python -m|torchrun .*?-m|(\./launch\.sh)) (\S+)(.*)", line
        )
        if found:
            yield found[1] or "python", found[2], shlex.split(found[3].replace("...", ""), comments=True)


@cache
def flags():
    """What docs/commands.md, which is made of each command's own help, knows of flags."""
    sections = re.split(r"^### (.+)$", GENERATED.read_text(encoding="utf-8"), flags=re.MULTILINE)[1:]
    return {name: set(re.findall(r"(--[a-z][\w.-]*)", text)) for name, text in zip(*[iter(sections)] * 2, strict=True)}


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_a_link_leads_somewhere(page):
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if not target.startswith("http"):
            name, _, anchor = target.partition("#")
            path = (page.parent / name) if name else page
            assert path.exists(), target
            if anchor:
                titles = re.findall(r"^#+ (.+)$", path.read_text(encoding="utf-8"), re.MULTILINE)
                anchors = {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}
                assert anchor in anchors, target


def test_the_index_names_every_page_once_under_one_of_four_kinds():
    text = (ROOT / "docs/index.md").read_text(encoding="utf-8")
    kinds = dict(re.findall(r"^## ([^\n]+)\n(.*?)(?=^## |\Z)", text, re.MULTILINE | re.DOTALL))
    assert list(kinds) == ["Tutorial", "How-to", "Reference", "Explanation"]
    named = [name for found in kinds.values() for name in re.findall(r"^- \[[^\]]+\]\((\S+)\): ", found, re.MULTILINE)]
    assert sorted(named) == sorted(p.name for p in PAGES if p.parent.name == "docs" and p.name != "index.md")


@pytest.mark.parametrize("page", [p for p in PAGES if p != GENERATED], ids=lambda p: p.name)
def test_a_command_exists_and_knows_its_flags(page):
    listed = re.search(r"demo \| align \| paper.*?\)", (ROOT / "launch.sh").read_text())
    verbs = {*listed[0].rstrip(")").split(" | "), "setup"}
    for how, name, arguments in commands(page):
        if how == "./launch.sh":
            assert name in verbs, name
            if name not in DOORS:
                continue
            name, arguments = DOORS[name], [a for a in arguments if a != "--nproc"]
        if name in ("eval", "revise"):
            name = f"{name} {arguments[0]}" if arguments else name
        module = ROOT / name.split(" ")[0].replace(".", "/")
        if name.split(".")[0] in ("pytest", "http"):
            continue
        assert module.with_suffix(".py").exists() or (module / "__main__.py").exists(), name
        given = {a.split("=")[0] for a in arguments if re.match(r"--[a-z]", a)} - {"--config", "--help"}
        known = flags().get(name)
        if known is not None:
            unknown = {flag for flag in given - known if "." not in flag and flag.replace("--no-", "--") not in known}
            assert not unknown, (name, unknown)
