import re

import pytest

from medfinetune.evaluation.dots import Dot, draw_dots

DOTS = [
    Dot("the system", 0.8, (0.7, 0.9), is_main=True),
    Dot("language"),
    Dot("zh", 0.5, (0.25, 0.75), note="12"),
    Dot("few", 0.0),
]


def circles(svg):
    return [float(x) for x in re.findall(r'<circle cx="([\d.]+)"', svg)]


def test_values_stand_where_the_scale_says():
    plot = draw_dots(DOTS, "Finding F1 by condition")
    ticks = {
        float(words): float(x) for x, words in re.findall(r'<text x="([\d.]+)"[^>]*middle[^>]*>([\d.]+)<', plot["svg"])
    }
    assert list(ticks) == [0, 0.25, 0.5, 0.75, 1]
    own, zh, few = circles(plot["svg"])
    assert few == ticks[0]
    assert zh == ticks[0.5]
    assert own == pytest.approx(ticks[0] + 0.8 * (ticks[1] - ticks[0]), abs=0.1)
    # The whiskers of zh end at its limits.
    assert f'<line x1="{ticks[0.25]}" x2="{ticks[0.75]}"' in plot["svg"]
    assert plot["svg"].count("stroke-dasharray") == 1
    assert plot["alt"] == (
        "Finding F1 by condition: the system 0.800 (0.700 to 0.900), zh 0.500 (0.250 to 0.750), few 0.000"
    )
    assert "zh (12)" in plot["svg"]


def test_other_scales_and_what_lies_beyond():
    plot = draw_dots([Dot("a", 50.0), Dot("b", 120.0), Dot("c", -1.0)], "BLEU", 100)
    half, beyond, below = circles(plot["svg"])
    assert below < half < beyond
    assert half - below == pytest.approx(beyond - half)
    assert ">120.0<" in plot["svg"]


def test_labels_are_escaped_and_cut():
    plot = draw_dots([Dot("<b>&", 0.5), Dot("很" * 30, 0.5), Dot("x" * 60, 0.5)], "t")
    assert "&lt;b&gt;&amp;" in plot["svg"]
    cut = re.findall(r">([很x]+)…<", plot["svg"])
    assert [len(label) for label in cut] == [11, 23]
    assert "很" * 30 in plot["alt"]


def test_the_pages_colours_alone_are_used():
    assert not re.search(r"#[0-9a-f]{3}", draw_dots(DOTS, "t")["svg"])
