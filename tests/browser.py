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
  const marks = () => [...document.querySelectorAll("mark")].map(each => [each.className, each.textContent]);
  const blocks = () => [...document.querySelectorAll(".block, code")].map(each => each.textContent);
  const all = [];
  const see = () => {
    for (const each of document.querySelectorAll("details")) each.open = true;
    all.push({pwned: String(window.pwned), text: document.body.innerText, n: document.images.length,
      links: [...document.links].filter(each => !each.getAttribute("href").startsWith("#")).length,
      title: document.title, hash: location.hash, blocks: blocks(), wide: document.documentElement.scrollWidth,
      scrolled: [...document.querySelectorAll(".scroll")].filter(each => each.scrollWidth > each.clientWidth).length,
      marks: marks()});
  };
  const say = () => {
    const out = document.createElement("pre");
    out.id = "told";
    out.textContent = btoa(unescape(encodeURIComponent(JSON.stringify(all))));
    document.body.append(out);
    window.parent.postMessage(out.textContent, "*");
  };
  const key = k => document.dispatchEvent(new KeyboardEvent("keydown", {key: k, bubbles: true}));
  const choose = (id, value, name) => {
    const field = document.getElementById(id);
    field.value = value;
    field.dispatchEvent(new Event(name));
  };
  const take = step => {
    const [what, value] = step.split("=");
    if (what === "click") document.querySelector(value).dispatchEvent(new Event("click"));
    else if (value !== undefined) choose(what, value, ["search", "low", "high"].includes(what) ? "input" : "change");
    else key(step);
  };
  for (const keys of KEYS) {
    for (const step of keys.split(",").filter(Boolean)) take(step);
    see();
  }
  say();
});
</script>"""


FRAME = """<iframe src="PAGE" width=WIDTH height=900 style="border: 0"></iframe><script>
window.addEventListener("message", event =>
  document.body.insertAdjacentHTML("beforeend", `<pre id="told">${event.data}</pre>`));
</script>"""


def look(html, keys="", **how):
    """What headless Chromium shows of a page, after some keys ("j"), values of fields ("search=owl") and clicks
    ("click=.fold").
    """
    (told,) = looks(html, [keys], **how)
    return told


def looks(html, keys, *, guarded=True, width=1280, place=""):
    """The same after each of several such lists, one upon the other. place: what is behind the # of the address."""
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
    address = f"{page.as_uri()}#{place}"
    if width < 500:  # no window is that narrow
        frame = html.with_name("frame.html")
        frame.write_text(FRAME.replace("WIDTH", str(width)).replace("PAGE", address))
        address = frame.as_uri()
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=2000", "--dump-dom"]
    flags.append(f"--window-size={width},900")
    done = subprocess.run([CHROMIUM, *flags, address], capture_output=True, text=True, timeout=180, check=True)
    told = re.findall(r'<pre id="told">([\w+/=]+)</pre>', done.stdout)[0]
    return json.loads(base64.b64decode(told))
