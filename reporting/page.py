"""One self-contained HTML page: verdict first, inline SVG, sortable tables, dark and light, phone and print. No request leaves it.

    page = Page("report/01", "01 Pruning strategies"); page.table(...); page.figures(...); page.write()
    -> report/01/index.html, figures/*.png and *.svg, tables/*.csv and *.md

All text given to it is escaped; `code` text is set as typed.
"""

import csv
import html
import io
import math
import os
import re
from pathlib import Path

import matplotlib
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

# Okabe and Ito's palette without black and yellow: told apart by colour-blind readers, and readable on white and on near-black.
COLOURS = ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#8c6bb1", "#8a8a8a"]
MARKERS = "osD^vPX*"
STYLE = {
    "font.size": 9,
    "font.family": "sans-serif",
    "svg.fonttype": "none",  # text stays text: it takes the page's font, and can be searched and read aloud
    "svg.hashsalt": "report",  # same runs, same file
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.25,
    "legend.frameon": False,
    "legend.fontsize": 8,
    "figure.facecolor": "white",
}
matplotlib.rcParams.update(STYLE)

CSS = """
:root{color-scheme:light dark;--bg:#fff;--fg:#1a1d21;--soft:#5b6470;--line:#d8dde3;--card:#f5f7f9;--link:#0b5cad;
--good:#0a6b3d;--bad:#a62b1f;--open:#7a5200}
@media (prefers-color-scheme:dark){:root{--bg:#14171a;--fg:#e7eaed;--soft:#a3acb6;--line:#343b43;--card:#1d2226;--link:#7db7f0;
--good:#5fd39b;--bad:#ff8d80;--open:#f0bd5b}}
*{box-sizing:border-box}html{-webkit-text-size-adjust:100%}
body{margin:0 auto;padding:1rem;max-width:72rem;background:var(--bg);color:var(--fg);
font:16px/1.5 system-ui,-apple-system,"Segoe UI",sans-serif;
overflow-wrap:break-word}
h1{font-size:1.6rem;line-height:1.2;margin:.2rem 0 .4rem}h2{font-size:1.25rem;margin:2.2rem 0 .5rem}h3{font-size:1rem;margin:1.2rem 0 .4rem}
p,dl{max-width:46rem}.soft,figcaption,.caption{color:var(--soft);font-size:.9rem}a{color:var(--link)}
.verdict{border:1px solid var(--line);border-left:.45rem solid var(--tone);background:var(--card);border-radius:.4rem;
padding:.7rem 1rem;margin:1rem 0}
.verdict p{margin:.35rem 0}.verdict .word{font-size:1.3rem;font-weight:700;color:var(--tone)}
.supported{--tone:var(--good)}.refuted{--tone:var(--bad)}.undecided{--tone:var(--open)}
dl{display:grid;grid-template-columns:max-content 1fr;gap:.35rem 1rem;margin:1rem 0}dt{font-weight:600}dd{margin:0}
@media (max-width:36rem){dl{display:block}dd{margin:0 0 .6rem}}
.figures{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,19rem),1fr));gap:1.2rem}
.figures.wide{grid-template-columns:repeat(auto-fit,minmax(min(100%,28rem),1fr))}
figure{margin:0;min-width:0;max-width:34rem}figure svg,figure img{width:100%;height:auto;display:block}
figure.pixels{max-width:none;overflow-x:auto}figure.pixels img{min-width:40rem}
figure svg text{font-family:inherit}figure h3{margin:.2rem 0}
.scroll{overflow-x:auto;margin:0 0 1rem;border:1px solid var(--line);border-radius:.4rem}
table{border-collapse:collapse;width:100%;font-size:.88rem;font-variant-numeric:tabular-nums}
.caption{margin:1rem 0 .3rem}
th,td{padding:.3rem .6rem;text-align:left;white-space:nowrap;vertical-align:top}
td{border-top:1px solid var(--line)}th{vertical-align:bottom;white-space:normal}td.long{white-space:normal;min-width:14rem}
td.n,th.n{text-align:right}th button{all:unset;cursor:pointer;font-weight:600}th button:focus-visible{outline:2px solid var(--link)}
th[aria-sort=ascending] button::after{content:" \\2191"}th[aria-sort=descending] button::after{content:" \\2193"}
pre{overflow-x:auto;background:var(--card);border:1px solid var(--line);border-radius:.4rem;padding:.6rem .8rem;
font-size:.85rem;white-space:pre-wrap}
details summary{cursor:pointer;margin:.5rem 0}ul{padding-left:1.2rem}li{max-width:46rem;margin:.25rem 0}
@media print{figure.pixels img{min-width:0}
:root{color-scheme:light;--bg:#fff;--fg:#000;--soft:#333;--line:#999;--card:#fff;--good:#0a6b3d;--bad:#a62b1f;--open:#7a5200}
body{max-width:none;padding:0;font-size:10pt}.figures{grid-template-columns:repeat(auto-fit,minmax(14rem,1fr))}figure,.verdict,tr{break-inside:avoid}h2,h3,h2+p,.caption{break-after:avoid}figcaption,.caption{font-size:8pt}
.scroll{overflow:visible;border:0}table{font-size:7.5pt}th,td{white-space:normal;padding:.15rem .3rem}}
"""

SCRIPT = """
document.querySelectorAll("th button").forEach(function (button) {
  button.addEventListener("click", function () {
    var th = button.parentNode, row = th.parentNode, body = th.closest("table").tBodies[0];
    var column = Array.prototype.indexOf.call(row.children, th), up = th.getAttribute("aria-sort") !== "ascending";
    Array.prototype.forEach.call(row.children, function (other) { other.removeAttribute("aria-sort"); });
    th.setAttribute("aria-sort", up ? "ascending" : "descending");
    Array.prototype.slice.call(body.rows).sort(function (a, b) {
      var x = a.cells[column].dataset.v, y = b.cells[column].dataset.v, p = parseFloat(x), q = parseFloat(y);
      if (x === "" || y === "") return (x === "") - (y === "");
      var order = isNaN(p) || isNaN(q) ? x.localeCompare(y) : p - q;
      return up ? order : -order;
    }).forEach(function (r) { body.appendChild(r); });
  });
});
"""


def num(value, digits=3):
    """A number for people: `digits` significant digits, a dash for none."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "–"
    if isinstance(value, float) and abs(value) < 1e6 and value == int(value):
        value = int(value)
    return f"{value:,}".replace(",", " ") if isinstance(value, int) else f"{value:.{digits}g}".replace("e-0", "e-").replace("-", "−")


def change(log_ratio):
    """A log ratio as a change in percent: −12.3 %; as a factor from 10 on: x 12."""
    if not math.isfinite(log_ratio):
        return "–" if math.isnan(log_ratio) else "unbounded"
    if log_ratio >= math.log(10):
        return f"x {math.exp(min(log_ratio, 700)):.3g}"
    percent = 100 * math.expm1(log_ratio)
    return f"{percent:+.1f} %".replace("-", "−") if abs(percent) < 100 else f"{percent:+.0f} %"


def signed(value):
    """A difference for people: +0.12, −3."""
    return "–" if math.isnan(value) else f"{value:+.3g}".replace("-", "−")


def p_cell(p):
    """A p-value as a table cell."""
    return ("< 0.001" if p < 0.001 else num(float(p), 2), p)


def p_text(p):
    """p-value: p < 0.001, p = 0.02."""
    return "p not computable" if math.isnan(p) else "p < 0.001" if p < 0.001 else f"p = {p:.2g}"


def panel(title=None, wide=False, height=2.5):
    """A small figure that stays readable at phone width: (figure, axes). Panels stand side by side where there is room."""
    figure = Figure(figsize=(4.6 if wide else 3.5, height), layout="constrained")  # not pyplot's, which keeps every figure open
    axes = figure.subplots()
    if title:
        axes.set_title(title, fontsize=10, loc="left", fontweight="bold")
    return figure, axes


def log_axis(axis, ticks=None):
    """Make an axis logarithmic with few plain labels (0.01, 0.02), at `ticks` if given: matplotlib's own run into one another."""
    axis.axes.set(**{f"{axis.axis_name}scale": "log"})
    if ticks is not None:
        axis.set_ticks(ticks)
        axis.set_minor_locator(LogLocator(subs=()))
    else:
        low, high = axis.get_data_interval()
        decades = math.log10(high / low) if 0 < low < high else 0
        axis.set_major_locator(
            LogLocator(subs=(1,) if decades > 1.9 else (1, 2, 5) if decades > 0.6 else (1, 1.2, 1.5, 2, 2.5, 3, 4, 5, 6, 8))
        )
    axis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:g}"))
    axis.set_minor_formatter(NullFormatter())


class Page:
    """Collects a page's parts in order; write() puts them on disk, the HTML last."""

    def __init__(self, folder, title):
        self.folder, self.title = Path(folder), title
        self.head, self.parts, self.caveats, self.names = [], [], [], set()
        self.opening = []  # what a verdict says first: that runs are missing, that it holds for one problem only
        for name in ("figures", "tables"):
            (self.folder / name).mkdir(parents=True, exist_ok=True)

    def verdict(self, word, hypothesis, lead, sentences):
        """The answer: word (supported, refuted, undecided) on the hypothesis, the lead in one sentence, then the numbers that decide."""
        items = "".join(f"<li>{html.escape(s)}</li>" for s in sentences)
        lead = " ".join([*self.opening, lead])
        self.head.append(
            f'<div class="verdict {word}"><p class="soft">Hypothesis: {html.escape(hypothesis)}</p><p class="word">{word.capitalize()}</p>'
            f"<p><strong>{html.escape(lead)}</strong></p>{f'<ul>{items}</ul>' if items else ''}</div>"
        )

    def facts(self, pairs):
        """A list of terms and what they are, below the verdict."""
        self.head.append("<dl>" + "".join(f"<dt>{html.escape(k)}</dt><dd>{html.escape(v)}</dd>" for k, v in pairs) + "</dl>")

    def section(self, title, text=""):
        self.parts.append(f"<h2>{html.escape(title)}</h2>" + (f"<p>{html.escape(text)}</p>" if text else ""))

    def text(self, text):
        self.parts.append(f"<p>{html.escape(text)}</p>")

    def code(self, text):
        self.parts.append(f"<pre>{html.escape(text)}</pre>")

    def caveat(self, text):
        if text not in self.caveats:
            self.caveats.append(text)

    def figures(self, items, wide=False):
        """items: (name, figure, alt, caption) each. Saves PNG and SVG, and shows the SVG inline."""
        shown = "".join(self._figure(*item) for item in items)
        if shown:
            self.parts.append(f'<div class="figures{" wide" if wide else ""}">{shown}</div>')

    def _figure(self, name, figure, alt, caption):
        assert name not in self.names, f"two figures named {name}"
        self.names.add(name)
        figure.savefig(self.folder / "figures" / f"{name}.png", dpi=160)
        figure.set_layout_engine("none")  # laid out by the first save; once is enough, it takes as long as drawing
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None})
        svg = buffer.getvalue()
        (self.folder / "figures" / f"{name}.svg").write_text(svg)
        return f"<figure>{inline(svg, name, alt)}<figcaption>{html.escape(caption)}</figcaption></figure>"

    def image(self, name, figure, alt, caption):
        """A figure made of pixels (designs): PNG only, embedded as data."""
        import base64

        path = self.folder / "figures" / f"{name}.png"
        figure.savefig(path, dpi=110)
        data = base64.b64encode(path.read_bytes()).decode()
        self.parts.append(
            f'<figure class="pixels" tabindex="0"><img alt="{html.escape(alt)}" src="data:image/png;base64,{data}">'
            f"<figcaption>{html.escape(caption)}</figcaption></figure>"
        )

    def table(self, name, columns, rows, caption, closed=False):
        """A sortable table, also as CSV (values as they are) and Markdown. Cells: text, numbers, or (shown, value to sort by)."""
        assert name not in self.names, f"two tables named {name}"
        self.names.add(name)
        cells = [
            [cell if isinstance(cell, tuple) else (cell if isinstance(cell, str) else num(cell), cell) for cell in row] for row in rows
        ]
        with open(self.folder / "tables" / f"{name}.csv", "w", newline="") as file:
            csv.writer(file).writerows([columns, *([("" if v is None or v != v else v) for _, v in row] for row in cells)])
        lines = [
            "| " + " | ".join(str(c).replace("|", "\\|").replace("\n", " ") for c in row) + " |"
            for row in [columns, ["---"] * len(columns), *([s for s, _ in row] for row in cells)]
        ]
        (self.folder / "tables" / f"{name}.md").write_text("\n".join([caption, "", *lines, ""]))
        numeric = [all(not isinstance(row[i][1], str) for row in cells) for i in range(len(columns))]

        def td(i, shown, value):
            kind = ' class="n"' if numeric[i] else ' class="long"' if len(str(shown)) > 40 else ""
            sort = "" if value is None or value != value else html.escape(str(value))
            return f'<td{kind} data-v="{sort}">{html.escape(str(shown)).replace(" %", "&nbsp;%")}</td>'

        head = "".join(
            f'<th scope="col"{" class=n" if numeric[i] else ""}><button>{html.escape(c)}</button></th>' for i, c in enumerate(columns)
        )
        body = "".join("<tr>" + "".join(td(i, *cell) for i, cell in enumerate(row)) + "</tr>" for row in cells)
        table = f'<table aria-label="{html.escape(caption)}"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>'
        block = f'<div class="scroll" tabindex="0" role="region" aria-label="table {html.escape(name)}">{table}</div>'
        words = f"<summary>{html.escape(caption)}</summary>" if closed else f'<p class="caption">{html.escape(caption)}</p>'
        self.parts.append(f"<details>{words}{block}</details>" if closed else words + block)

    def write(self):
        """Write index.html (last, in one go) and return its path."""
        caveats = "".join(f"<li>{html.escape(c)}</li>" for c in self.caveats)
        caveats = f"<h2>Caveats computed from the data</h2><ul>{caveats}</ul>" if caveats else ""
        page = (
            '<!doctype html><html lang="en"><head><meta charset="utf-8">'
            '<meta name="viewport" content="width=device-width,initial-scale=1"><link rel="icon" href="data:,">'
            # The browser itself refuses any request, whatever text ends up on the page
            "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; img-src data:; style-src 'unsafe-inline'; "
            "script-src 'unsafe-inline'\">"
            f"<title>{html.escape(self.title)}</title><style>{CSS}</style></head><body><main><h1>{html.escape(self.title)}</h1>"
            f"{''.join(self.head)}{''.join(self.parts)}{caveats}</main>"
            f"<script>{SCRIPT}</script></body></html>\n"
        )
        path = self.folder / "index.html"
        temporary = path.with_suffix(".html.tmp")
        temporary.write_text(page)
        os.replace(temporary, path)
        return path


def inline(svg, name, alt):
    """Matplotlib's SVG for embedding: ids made unique, black and white follow the page's theme, the alt text on it."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.S)
    svg = re.sub(r'\bid="([^"]+)"', rf'id="{name}-\1"', svg)
    svg = re.sub(r'(url\(|xlink:href=")#', rf"\1#{name}-", svg)
    svg = svg.replace("#000000", "currentColor").replace("#ffffff", "var(--bg)")
    svg = re.sub(r"(<text[^>]*style=\"(?![^\"]*fill:)[^\"]*)\"", r'\1; fill: currentColor"', svg)  # text has no fill where it is black
    svg = re.sub(r"font: ([^;\"]*)'[^'\"]*'[^;\"]*", r"font: \1sans-serif", svg)
    return svg.replace("<svg ", f'<svg role="img" aria-label="{html.escape(alt)}" ', 1)
