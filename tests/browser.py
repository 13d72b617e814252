"""A page as a browser shows it, and words of models that would do something there if they could."""

import base64
import json
import re
import shutil
import subprocess

import pytest

from revise import show

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
PAYLOADS = (
    "</script><script>window.pwned = 1</script>",
    "<!--<script>",
    "<img src=x onerror='window.pwned = 1'>",
    "<img src=x onerror=window.pwned=1337>",
    "<svg onload=window.pwned=1>",
    '"><a href="javascript:window.pwned=1">x</a>',
    "';window.pwned=1;'",
    "\u2028window.pwned = 1\u2029",
    "<DATA> <CSP> ${window.pwned=1}",
    "\u202eevil\u202c &lt;b&gt; &amp;",
    "<style>*{display:none}</style>",
    "<meta http-equiv=refresh content='0;url=https://example.com'>",
)

SPY = """<script>
window.addEventListener("load", () => {
  const say = () => {
    for (const each of document.querySelectorAll("details")) each.open = true;
    const told = JSON.stringify({pwned: String(window.pwned), text: document.body.innerText, n: document.images.length,
      links: document.links.length, title: document.title});
    const out = document.createElement("pre");
    out.id = "told";
    out.textContent = btoa(unescape(encodeURIComponent(told)));
    document.body.append(out);
  };
  const key = k => document.dispatchEvent(new KeyboardEvent("keydown", {key: k, bubbles: true}));
  const choose = (id, value, name) => {
    const field = document.getElementById(id);
    field.value = value;
    field.dispatchEvent(new Event(name));
  };
  for (const step of KEYS.split(",").filter(Boolean)) {
    const [what, value] = step.split("=");
    if (what === "filter") choose("filter", value, "change");
    else if (what === "search") choose("search", value, "input");
    else key(step);
  }
  say();
});
</script>"""


def look(html, keys="", *, guarded=True):
    """What headless Chromium shows of a page, after some keys."""
    if CHROMIUM is None:
        pytest.skip("no Chromium is installed")
    text = html.read_text(encoding="utf-8")
    spy = SPY.replace("KEYS", json.dumps(keys))
    if guarded:  # the spy has to pass the page's own policy, which lets nothing else pass
        code = spy.removeprefix("<script>").removesuffix("</script>")
        text = text.replace("script-src ", f"script-src {show._hash(code)} ", 1)
    else:
        text = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", text)
    page = html.with_name("spied.html")
    page.write_text(text.replace("<title>", f"{spy}<title>", 1), encoding="utf-8")
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=2000", "--dump-dom"]
    done = subprocess.run([CHROMIUM, *flags, page.as_uri()], capture_output=True, text=True, timeout=60, check=True)
    (told,) = re.findall(r'<pre id="told">(.*?)</pre>', done.stdout)
    return json.loads(base64.b64decode(told))
