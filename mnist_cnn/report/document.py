"""What the HTML pages of this package share: style, frame and embedded images."""

import base64
import html

from mnist_cnn.export.drawing_page import colours, policy

_STYLE = """
:root { --image: 34rem; }  /* the most that an image usually takes */
@media (prefers-color-scheme: dark) {
  .drawn { filter: invert(.92) hue-rotate(180deg); }  /* dark lines on white become light lines on black */
}
body { font: 16px/1.5 system-ui, sans-serif; color: var(--text); background: var(--page); margin: 0 auto;
       max-width: 68rem; padding: 1rem; }
h1 { font-size: 1.6rem; line-height: 1.2; margin: .5rem 0; overflow-wrap: anywhere; }
h2 { font-size: 1.15rem; margin: 0 0 .5rem; }
section { margin: 2rem 0; }
.pair { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 26rem), 1fr)); gap: 2rem; }
.pair { margin: 2rem 0; }
.pair section { margin: 0; min-width: 0; }
img { display: block; width: 100%; max-width: var(--image); height: auto; border-radius: .4rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .2rem .8rem .2rem 0; text-align: right; border-bottom: 1px solid var(--line); }
th:first-child, td:first-child { text-align: left; }
.facts td, .facts th { text-align: left; font-weight: normal; vertical-align: top; overflow-wrap: anywhere; }
.facts th { color: var(--muted); white-space: nowrap; }
.warning { background: var(--warning); border-left: .4rem solid var(--orange); padding: .6rem 1rem; }
pre { overflow-x: auto; background: var(--card); padding: .8rem; font-size: .82rem; line-height: 1.4; }
small { color: var(--muted); }
@media (max-width: 30rem) { th, td { font-size: .85rem; padding-right: .4rem; } }
"""


def document(title: str, body: str, style: str = "", script: str = "") -> str:
    """An HTML page that loads nothing and runs only `script`.

    `title` is text; `body` is HTML, in which text from elsewhere is already escaped.
    """
    run = f"<script>{script}</script>\n" if script else ""
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy(script)}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{html.escape(title)}</title>
<style>{colours()}{_STYLE}{style}</style>
</head>
<body>
<h1>{html.escape(title)}</h1>
{body}
{run}</body>
</html>
"""


def figure(content: str, caption: str) -> str:
    """A `figure` with a caption; both are HTML."""
    return f"<figure>{content}<figcaption>{caption}</figcaption></figure>"


def image(png: bytes, alt: str, kind: str = "", wider: float = 1) -> str:
    """An `img` that holds a PNG file, so many times `wider` than usual.

    `kind` is its CSS class, such as `drawn` for a figure that is inverted in dark mode.
    """
    shown = f' class="{kind}"' if kind else ""
    shown += f' style="width: calc({wider:g} * var(--image)); max-width: none"' if wider > 1 else ""
    return f'<img{shown} src="data:image/png;base64,{base64.b64encode(png).decode()}" alt="{html.escape(alt)}">'
