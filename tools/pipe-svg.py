#!/usr/bin/python3
"""Draws the pipe as SVG: tools/pipe-svg.py docs/pipe.txt > docs/pipe.svg. The text file explains its format."""

import sys
from xml.sax.saxutils import escape

WIDTH, HEIGHT, GAP, LEFT, TOP = 150, 56, 34, 16, 60


def text(x, y, words, kind=""):
    return f'<text x="{x}" y="{y}" class="{kind}">{escape(words)}</text>'


def box(x, y, width, title, line, kind):
    middle = x + width // 2
    return [
        f'<rect x="{x}" y="{y}" width="{width}" height="{HEIGHT}" rx="6" class="{kind}"/>',
        text(middle, y + 24, title, "name"),
        text(middle, y + 43, line),
    ]


def arrow(*points):
    path = " ".join(f"{x},{y}" for x, y in points)
    return f'<polyline points="{path}" class="arrow" marker-end="url(#head)"/>'


def draw(lines):
    entries = [line.split(None, 1) for line in lines if line.strip() and not line.startswith("#")]
    entries = [(kind, [field.strip() for field in rest.split("|")]) for kind, rest in entries]
    stages = [fields for kind, fields in entries if kind == "stage"]
    [tool] = [fields for kind, fields in entries if kind == "tool"]
    [guest] = [fields for kind, fields in entries if kind == "guest"]
    step = WIDTH + GAP
    width = LEFT * 2 + len(stages) * step - GAP
    out = [text(LEFT, 22, "One JSON record flows from stage to stage; each adds its members.", "note")]
    for at, (name, does, members) in enumerate(stages):
        x = LEFT + at * step
        out += box(x, TOP, WIDTH, name, does, "stage")
        sign = "without " + members[1:] if members.startswith("-") else "+ " + members
        out.append(text(x + WIDTH // 2, TOP + HEIGHT + 20, sign, "member"))
        if at:
            out.append(arrow((x - GAP + 4, TOP + HEIGHT // 2), (x - 5, TOP + HEIGHT // 2)))
    # The VM is below the stage that boots it, and msb-exec beside it.
    boot = LEFT + 3 * step
    below = TOP + HEIGHT + 70
    out.append(f'<rect x="{boot - 60}" y="{below - 30}" width="{WIDTH * 2 + 70}" height="{HEIGHT + 46}" rx="10" class="vm"/>')
    out.append(text(boot + WIDTH - 25, below - 12, "microVM", "note middle"))
    out += box(boot - 44, below, WIDTH * 2 + 38, guest[0], guest[1], "guest")
    out += box(LEFT + step // 2, below, WIDTH, tool[0], tool[1], "stage")
    start = LEFT + step // 2 + WIDTH
    out.append(arrow((start + 4, below + HEIGHT // 2), (boot - 50, below + HEIGHT // 2)))
    out.append(text((start + boot - 60) // 2, below + HEIGHT // 2 - 8, "vsock: streams, signals", "member"))
    return width, below + HEIGHT + 36, out


STYLE = """
  svg { background: #fff }
  text { font: 12px sans-serif; fill: #333; text-anchor: middle }
  .name { font: bold 15px monospace; fill: #111 }
  .member { font: 12px monospace; fill: #05608a }
  .note { font: italic 13px sans-serif; text-anchor: start }
  .middle { text-anchor: middle }
  .stage { fill: #eef5fa; stroke: #05608a; stroke-width: 1.5 }
  .guest { fill: #f2f8ec; stroke: #4a7a1e; stroke-width: 1.5 }
  .vm { fill: none; stroke: #4a7a1e; stroke-dasharray: 5 4 }
  .arrow { fill: none; stroke: #333; stroke-width: 1.5 }
"""


def main():
    with open(sys.argv[1], encoding="utf-8") as source:
        width, height, out = draw(source)
    print(f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}">')
    print(f"<!-- Generated from {sys.argv[1]} by tools/pipe-svg.py. -->")
    print(f"<style>{STYLE}</style>")
    print('<defs><marker id="head" markerWidth="9" markerHeight="9" refX="7" refY="4" orient="auto">')
    print('<path d="M0,0 L8,4 L0,8 z" fill="#333"/></marker></defs>')
    print("\n".join(out))
    print("</svg>")


main()
