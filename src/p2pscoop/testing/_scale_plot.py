"""Draws efficiency over the number of nodes, a line for each latency, as an SVG without any library."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence

from p2pscoop.testing._scale import Measured

__all__ = ["plot"]

_WIDTH, _HEIGHT = 640, 400
_LEFT, _RIGHT, _TOP, _BOTTOM = 60, 500, 30, 340
_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00")


def _text(x: float, y: float, text: str, anchor: str = "middle", colour: str = "#222222") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="{colour}">{text}</text>'


def plot(runs: Sequence[Measured]) -> str:
    """The drawing.

    Args:
        runs: at least one.
    """
    counts = sorted({run.nodes for run in runs})
    low, high = math.log2(counts[0]), math.log2(counts[-1])

    def x(nodes: int) -> float:
        return _LEFT + (_RIGHT - _LEFT) * (math.log2(nodes) - low) / (high - low or 1.0)

    def y(efficiency: float) -> float:
        return _BOTTOM - (_BOTTOM - _TOP) * efficiency

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}">',
        '<g font-family="sans-serif" font-size="13">',
        f'<rect width="{_WIDTH}" height="{_HEIGHT}" fill="white"/>',
    ]
    for tenths in range(0, 11, 2):
        at = y(tenths / 10)
        parts.append(f'<path d="M{_LEFT} {at:.1f}H{_RIGHT}" stroke="#dddddd"/>')
        parts.append(_text(_LEFT - 8, at + 4, f"{tenths / 10:.1f}", "end"))
    parts += [_text(x(nodes), _BOTTOM + 20, f"{nodes:,}") for nodes in counts]
    parts.append(_text((_LEFT + _RIGHT) / 2, _BOTTOM + 44, "nodes"))
    parts.append(_text(_LEFT, _TOP - 12, "efficiency", "start"))
    lines: defaultdict[float, list[Measured]] = defaultdict(list)
    for run in runs:
        lines[run.latency_s].append(run)
    for index, (latency_s, line) in enumerate(sorted(lines.items())):
        colour = _COLOURS[index % len(_COLOURS)]
        line.sort(key=lambda run: run.nodes)
        points = [(x(run.nodes), y(run.efficiency)) for run in line]
        joined = " ".join(f"{across:.1f},{down:.1f}" for across, down in points)
        parts.append(f'<polyline points="{joined}" fill="none" stroke="{colour}" stroke-width="2"/>')
        parts += [
            f'<circle cx="{across:.1f}" cy="{down:.1f}" r="3.5" fill="{colour}"/>' for across, down in points
        ]
        parts.append(_text(points[-1][0] + 10, points[-1][1] + 4, f"{latency_s * 1000:g} ms", "start", colour))
    return "\n".join([*parts, "</g>", "</svg>", ""])
