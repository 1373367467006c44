"""Small pictures as SVG: histograms of weights, ranges inside ranges, accuracies with their intervals, shares."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from converters.report.contents import Interval, Measured, Weights
from converters.report.markup import Markup, number, tag

BARS = 51  # of a histogram at most
HISTOGRAM = (214.0, 44.0)
RANGE = (150.0, 14.0)
ACCURACY = (240.0, 22.0)
SHARE = (70.0, 10.0)


@dataclass(frozen=True)
class Bin:
    """How many weights are low .. high."""

    low: int
    high: int
    count: int


def bins(weights: Weights) -> tuple[Bin, ...]:
    """At most `BARS` bins of one width, the middle one around 0, over all that the bits can hold."""
    last = weights.first + len(weights.counts) - 1
    reach = max(2 ** (weights.bits - 1) - 1, -weights.first, last)
    width = 1
    while _bars(reach, width) > BARS:
        width += 2
    half = width // 2
    side = _bars(reach, width) // 2
    found = []
    for place in range(-side, side + 1):
        low, high = place * width - half, place * width + half
        counts = weights.counts[max(low - weights.first, 0) : max(high - weights.first + 1, 0)]
        found.append(Bin(max(low, -reach), min(high, reach), sum(counts)))
    return tuple(found)


def _bars(reach: int, width: int) -> int:
    """How many bins of an odd width, one of them around 0, it takes from -reach to reach."""
    return 1 + 2 * -(-(reach - width // 2) // width)


def histogram(weights: Weights) -> Markup:
    """The weights of a layer: how often each value occurs, from the least to the largest that the bits hold."""
    parts = bins(weights)
    most = max(part.count for part in parts)
    width, height = HISTOGRAM
    step = width / len(parts)
    path = []
    for place, part in enumerate(parts):
        if part.count:
            top = height - max(1.0, height * part.count / most)
            x, wide = number(place * step), number(max(step - 0.6, 0.6))
            path.append(f"M{x} {number(height)}V{number(top)}h{wide}V{number(height)}Z")
    peak = next(part for part in parts if part.count == most)
    ends = (parts[0].low, parts[-1].high)
    label = f"Histogram from {ends[0]} to {ends[1]}; most, {peak.count:,}, are {peak.low} to {peak.high}"
    return tag(
        "svg",
        tag("title", label),
        tag("path", d="".join(path), class_="bar"),
        tag("path", d=f"M0 {number(height)}H{number(width)}", class_="axis"),
        tag("text", ends[0], x=0, y=height + 11, class_="left"),
        tag("text", 0, x=width / 2, y=height + 11),
        tag("text", ends[1], x=width, y=height + 11, class_="right"),
        class_="chart",
        viewBox=f"0 0 {number(width)} {number(height + 14)}",
        width=width,
        height=height + 14,
        role="img",
        aria_label=label,
    )


def range_bar(proven: Interval, observed: Interval) -> Markup:
    """What was observed, inside what is proven; a thin line at 0."""
    width, height = RANGE
    low, high = min(proven.low, 0), max(proven.high, 0)

    def x(value: int) -> float:
        return width * (value - low) / max(high - low, 1)

    label = f"observed {observed.low} to {observed.high} of the proven {proven.low} to {proven.high}"
    return tag(
        "svg",
        tag("title", label),
        tag("rect", x=x(proven.low), y=0, width=x(proven.high) - x(proven.low), height=height, class_="track"),
        tag(
            "rect",
            x=x(observed.low),
            y=3,
            width=max(x(observed.high) - x(observed.low), 1.5),
            height=height - 6,
            class_="bar",
        ),
        tag("path", d=f"M{number(x(0))} 0V{number(height)}", class_="axis"),
        class_="chart",
        viewBox=f"-1 0 {number(width + 2)} {number(height)}",
        width=width + 2,
        height=height,
        role="img",
        aria_label=label,
    )


def accuracy_bar(measured: Measured, least: float) -> Markup:
    """An accuracy as a dot on its interval, on an axis from `least` to 1."""
    width, height = ACCURACY

    def x(value: float) -> float:
        return 4 + (width - 8) * (value - least) / (1 - least)

    label = f"{measured.value:.1%}, between {measured.low:.1%} and {measured.high:.1%}, on an axis from {least:.0%}"
    middle = number(height / 2)
    return tag(
        "svg",
        tag("title", label),
        tag("path", d=f"M4 {middle}H{number(width - 4)}", class_="rail"),
        tag("path", d=f"M{number(x(measured.low))} {middle}H{number(x(measured.high))}", class_="span"),
        tag("circle", cx=x(measured.value), cy=height / 2, r=5, class_="bar"),
        class_="chart",
        viewBox=f"0 0 {number(width)} {number(height)}",
        width=width,
        height=height,
        role="img",
        aria_label=label,
    )


def share_bar(share: float, label: str) -> Markup:
    """A share of 1 as a bar."""
    width, height = SHARE
    return tag(
        "svg",
        tag("rect", x=0, y=0, width=width, height=height, class_="track"),
        tag("rect", x=0, y=0, width=width * min(max(share, 0.0), 1.0), height=height, class_="bar"),
        class_="chart",
        viewBox=f"0 0 {number(width)} {number(height)}",
        width=width,
        height=height,
        role="img",
        aria_label=label,
    )


def axis_start(accuracies: Sequence[Measured]) -> float:
    """Where an axis of accuracies begins: a tenth at or below all intervals, 0.9 at most."""
    return min(max(0, int(min(measured.low for measured in accuracies) * 10)), 9) / 10
