"""The page of a report itself: self-contained, described, and readable in a browser."""

import json
import re
import shutil
import subprocess

import planted
import pytest
from test_report import table

import report
from reporting import collect


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    """One small study, drawn in full: the strategies on beams2d, with a broken run."""
    root = tmp_path_factory.mktemp("drawn")
    folders = planted.plant(
        root / "runs",
        "01",
        lambda f: -0.15 * (f["strategy"] == "plummet"),
        keep=lambda f: f["problem"] == "beams2d",
        dims=lambda f: 40 + f["seed"],
    )
    (folders[-1] / "config.json").write_text("{")
    return report.build("01", collect.local_runs(root / "runs"), root / "report", "runs")[0]


def test_page_is_self_contained_and_described(drawn):
    text = drawn.read_text()
    links = re.findall(r'\b(?:src|href|action)\s*=\s*"?([^">\s]+)', text)
    assert links and all(link.startswith(("#", "data:")) for link in links) and "default-src 'none'" in text
    assert "@import" not in text and "url(http" not in text and "prefers-color-scheme:dark" in text and "@media print" in text
    drawings = re.findall(r"<svg [^>]*>", text)
    assert len(drawings) == 6 and all(re.search(r'role="img" aria-label="[^"]{20,}"', tag) for tag in drawings)
    assert text.count("<figure>") == text.count("<figcaption>") == 6
    ids = re.findall(r'\bid="([^"]+)"', text)
    assert len(ids) == len(set(ids)) and set(re.findall(r'(?:url\(|href=")#([\w-]+)', text)) <= set(ids)
    assert "currentColor" in text and "#000000" not in text.split("</style>", 1)[1]
    assert text.index('class="verdict') < text.index("<dt>Question") < text.index("<svg")


def test_figures_and_tables_are_files_too(drawn):
    figures = {path.name for path in (drawn.parent / "figures").iterdir()}
    assert {"val_rec-beams2d.png", "val_rec-beams2d.svg", "front-beams2d.svg"} <= figures and len(figures) == 12
    assert (drawn.parent / "figures" / "val_rec-beams2d.png").read_bytes()[:4] == b"\x89PNG"
    assert (drawn.parent / "tables" / "winners.md").read_text().count("| plummet |") == 2
    assert table(drawn.parent, "winners")[0]["lowest val_rec"] == "plummet"


def test_page_in_a_browser(drawn, tmp_path):
    """Headless Chromium at phone width: no console message, no request, nothing wider than the screen, and a click sorts a table.

    In a frame, since its own window is never narrower than 500 pixels."""
    browser = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if not browser:
        pytest.skip("no Chromium on this machine (Debian: apt-get install chromium)")
    probe = """<script>
    var t = Array.prototype.find.call(document.querySelectorAll("table"), function (t) { return t.rows[0].cells[1].innerText === "arm"; });
    [2, 3, 3].forEach(function (i) { t.querySelectorAll("th button")[i].click(); });
    parent.postMessage(JSON.stringify({width: window.innerWidth, wide: document.documentElement.scrollWidth - window.innerWidth,
      requests: performance.getEntriesByType("resource").map(function (e) { return e.name; }),
      sorted: Array.prototype.map.call(t.tBodies[0].rows, function (r) { return +r.cells[3].dataset.v; })}), "*");
    </script></body>"""

    def visit(text):
        (tmp_path / "probe.html").write_text(text.replace("</body>", probe))
        phone = tmp_path / "phone.html"
        phone.write_text(
            "<title></title><script>onmessage = function (e) { document.title = e.data; };</script>"
            '<iframe src="probe.html" style="width:390px;height:800px;border:0"></iframe>'
        )
        command = [browser, "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"]
        command += [
            "--disable-background-networking",
            "--disable-component-update",
            "--enable-logging=stderr",
            "--window-size=600,900",
            "--virtual-time-budget=5000",
        ]
        command += ["--dump-dom", f"--user-data-dir={tmp_path / 'profile'}", f"file://{phone}"]
        result = subprocess.run(command, capture_output=True, text=True, timeout=120)
        return json.loads(re.search(r"<title>(.*?)</title>", result.stdout)[1]), result.stderr

    found, messages = visit(drawn.read_text())
    assert found["width"] == 390 and found["wide"] <= 0 and not [url for url in found["requests"] if not url.startswith("data:")]
    assert len(found["sorted"]) == 4 and found["sorted"] == sorted(found["sorted"], reverse=True)
    assert "CONSOLE" not in messages, messages
    # The page's own policy refuses a request, and this test sees it: a picture from elsewhere is not loaded
    assert "Content Security Policy" in visit(drawn.read_text().replace("<main>", '<main><img src="http://127.0.0.1:9/x.png">'))[1]
