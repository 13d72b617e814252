"""The documentation's pages, and the commands that stand in them."""

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
GENERATED = ROOT / "docs/commands.md"


def blocks(path):
    """The fenced blocks of a page that are no other language's."""
    language, inside = None, []
    for line in path.read_text(encoding="utf-8").splitlines():
        if not line.startswith("```"):
            inside.append(line)
        elif language is None:
            language, inside = line[3:], []
        else:
            if language in ("", "bash", "sh"):
                yield "\n".join(inside)
            language = None


def command_of(line):
    """A line's command, without what is said of it: behind a #, or three blanks where no flag follows."""
    return re.split(r"\s{3,}(?![\s-])|\s+#\s", line.strip())[0]
