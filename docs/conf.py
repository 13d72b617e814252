"""The site that Sphinx makes of these pages: ./launch.sh docs. Its menu comes from index.md, which GitHub shows too."""

import re

project = "Anchored preference optimization"
extensions = ["myst_parser"]
exclude_patterns = ["records"]
html_theme = "furo"
html_title = project
html_copy_source = html_show_copyright = False
highlight_language = "text"
myst_heading_anchors = 4  # [text](page.md#heading) leads where it does on GitHub


def add_menu(app, name, source):
    """Appends to the index a menu for each of its headings, of the pages that stand below it."""
    if name == "index":
        for kind, text in re.findall(r"^## ([^\n]+)\n(.*?)(?=^## |\Z)", source[0], re.MULTILINE | re.DOTALL):
            pages = "\n".join(re.findall(r"\]\(([\w-]+)\.md\)", text))
            source[0] += f"\n```{{toctree}}\n:hidden:\n:caption: {kind}\n\n{pages}\n```\n"


def setup(app):
    """What Sphinx calls."""
    app.connect("source-read", add_menu)
