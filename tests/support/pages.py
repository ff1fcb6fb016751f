"""Pages that the project writes: read, and shown by a browser."""

from __future__ import annotations

import html
import json
import os
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

EVIL = '<script>alert(1)</script><img src=x onerror="alert(2)">"\'&{{ 7 * 7 }}'
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
MEASURE = """<script>
onload = () => { document.title = JSON.stringify([innerWidth,
  document.documentElement.scrollWidth - document.documentElement.clientWidth,
  getComputedStyle(document.body).backgroundColor, document.querySelectorAll('details').length,
  [...document.querySelectorAll('summary, pre[tabindex], [role=region]')].every(e => e.tabIndex == 0)]); }
</script></body>"""


class Reader(HTMLParser):
    """The elements, attributes and text of a page. Raises for an end tag that closes nothing."""

    VOID = ("meta", "br", "img", "link", "input")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.open: list[str] = []
        self.text = ""
        self.feed(text)
        assert not self.open, self.open

    def handle_starttag(self, tag, attrs) -> None:
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs) -> None:
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]

    def handle_endtag(self, tag) -> None:
        assert self.open.pop() == tag, tag

    def handle_data(self, data) -> None:
        self.text += data


def harmless(text: str) -> Reader:
    """The page, read; it has no script, and loads nothing."""
    found = Reader(text)
    assert not {"script", "img", "link", "iframe", "object", "embed", "base", "form"} & set(found.tags)
    assert not [a for a in found.attributes if a[0].startswith("on") or a[0] == "src"]
    assert all(value.startswith("#") for name, value in found.attributes if name == "href")
    assert "@import" not in text and "url(" not in text
    return found


def shown(text: str, directory: Path, width: int, dark: bool) -> Any:
    """What a browser says of a page: how wide its window is, how far the page goes beyond it, its background, how many
    parts can be opened, and whether all of them can be reached by keyboard."""
    # the window is a frame, because a headless browser's own has a least width
    text = text.replace("default-src 'none'", "default-src 'none'; script-src 'unsafe-inline'")
    (directory / "page.html").write_text(text.replace("</body>", MEASURE))
    frame = f'<iframe src="page.html" style="width:{width}px;height:900px;border:0"></iframe>'
    wait = "<script>setInterval(() => document.title = frames[0].document.title, 20)</script>"
    (directory / "frame.html").write_text(f"<body style='margin:0'>{frame}{wait}</body>")
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--allow-file-access-from-files", "--dump-dom"]
    options += ["--virtual-time-budget=3000", f"--user-data-dir={directory / 'profile'}"]
    options += ["--blink-settings=preferredColorScheme=" + ("0" if dark else "1")]
    assert CHROMIUM is not None
    command = [CHROMIUM, *options, f"file://{directory / 'frame.html'}"]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=120, env={**os.environ, "HOME": str(directory)}
    )
    title = html.unescape(done.stdout.split("<title>")[1].split("</title>")[0])
    return json.loads(title)
