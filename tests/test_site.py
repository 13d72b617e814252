"""The site that Sphinx makes of docs/: no warning, every page reached from the index, no link broken, none too wide."""

import importlib.util
import json
import re
import subprocess
import sys
from html.parser import HTMLParser
from urllib.parse import unquote, urlsplit

import pytest

from tests import browser
from tests.pages import PAGES, ROOT

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not all(map(importlib.util.find_spec, ("sphinx", "myst_parser", "furo"))),
        reason="the extra docs is not installed",
    ),
]
NAMES = sorted(p.stem for p in PAGES if p.parent.name == "docs")


class Links(HTMLParser):
    """Where a page leads, what it loads, and which anchors it has."""

    def __init__(self, path):
        super().__init__()
        self.leads, self.loads, self.anchors = [], [], {""}
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attrs):
        found = dict(attrs)
        self.anchors.add(found.get("id", ""))
        if tag == "a" and found.get("href"):
            self.leads.append(found["href"])
        elif tag in ("img", "script", "link"):
            self.loads += [found[name] for name in ("src", "href") if found.get(name)]


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The folder of the site, as ./launch.sh docs makes it."""
    out = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "sphinx", "--fail-on-warning", "--keep-going", "--quiet", ROOT / "docs", out]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    return out


@pytest.fixture(scope="module")
def pages(site):
    """Each HTML file of the site with its links."""
    return {path: Links(path) for path in site.glob("*.html")}


def inside(path, link):
    """(file, anchor) of a link that stays in the site, else nothing."""
    parts = urlsplit(link)
    if parts.scheme or parts.netloc or link.startswith("data:"):
        return None
    return (path.parent / unquote(parts.path)).resolve() if parts.path else path, unquote(parts.fragment)


def test_every_page_is_reached_from_the_index(site, pages):
    seen, left = set(), {site / "index.html"}
    while left:
        path = left.pop()
        seen.add(path)
        targets = {found[0] for link in pages[path].leads if (found := inside(path, link))}
        left |= {target for target in targets if target in pages} - seen
    assert {path.stem for path in seen} >= set(NAMES)


def test_every_link_inside_leads_somewhere(pages):
    broken = []
    for path, page in pages.items():
        for link in page.leads + page.loads:
            if (found := inside(path, link)) and path.name not in ("search.html", "genindex.html"):
                file, anchor = found
                is_there = file.exists() and (file not in pages or anchor in pages[file].anchors)
                broken += [] if is_there else [(path.name, link)]
    assert not broken


def test_nothing_is_loaded_from_elsewhere(pages):
    """So that the pages and their search work offline."""
    assert not [(path.name, link) for path, page in pages.items() for link in page.loads if urlsplit(link).netloc]


def test_the_search_knows_every_page(site):
    index = (site / "searchindex.js").read_text(encoding="utf-8")
    assert sorted(json.loads(re.search(r'"?docnames"?:\s*(\[[^\]]*\])', index)[1])) == NAMES


@pytest.mark.parametrize("width", [390, 1280])
@pytest.mark.parametrize("name", ["index", "training", "data", "commands", "how-it-works"])
def test_a_page_is_not_wider_than_the_screen(site, name, width):
    told = browser.look(site / f"{name}.html", guarded=False, width=width)
    assert told["wide"] <= width and told["text"]
