"""A text with colours behind its words.

The source of this file is `spaces/painting.py`; `make spaces` copies it into the Spaces that paint.
"""

import html

SHADES = 20  # of each colour: neighbours of one shade share an element of the page
BELOW, ABOVE = "37, 99, 235", "234, 88, 12"  # blue, orange: red, green, blue
CSS = """
.painted {white-space: pre-wrap; overflow-wrap: anywhere; line-height: 1.7; font-size: 15px}
.legend {white-space: pre-wrap; font-size: 13px}
"""


def painted(pieces: list[str], values: list[float], kind: str = "painted") -> str:
    """A text with a colour behind each piece, as HTML: blue for -1, nothing for 0, orange for 1.

    Args:
        kind: its CSS class.
    """
    shades = [round(SHADES * max(-1.0, min(1.0, value))) for value in values]
    runs: list[list] = []  # each: shade, text
    for piece, shade in zip(pieces, shades, strict=True):
        if runs and runs[-1][0] == shade:
            runs[-1][1] += piece
        else:
            runs.append([shade, piece])
    spans = (
        f'<span style="background: rgba({ABOVE if shade > 0 else BELOW}, {abs(shade) / SHADES:.2f})'
        f'">{html.escape(text)}</span>'
        for shade, text in runs
    )
    return f'<div class="{kind}">{"".join(spans)}</div>'
