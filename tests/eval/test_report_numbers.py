"""What stands beside a number on the report: its judge, what was not judged, its axis; and that it fits a phone."""

import re

import pytest

from eval import plots, report
from tests.browser import look
from tests.eval.run_folders import cells, line, run_folder


def test_a_tables_head_is_said_once_over_its_columns(tmp_path):
    """In HTML and LaTeX; on one line where a format has no other."""
    page = report.write([run_folder(tmp_path / "a")], tmp_path / "out").read_text()
    table = page[page.index("id=table-2") : page.index("</thead>")]
    assert table.count("quiz v") == 1 and "<th class=group colspan=4 scope=colgroup>quiz v</th>" in table
    latex = (tmp_path / "out/tables/table-2.tex").read_text()
    assert r"& & \multicolumn{4}{c}{quiz v} \\ \cmidrule(lr){3-6}" in latex
    assert latex.partition("%")[0].count("quiz v") == 1
    assert "| quiz v base |" in (tmp_path / "out/tables/table-2.md").read_text()


def test_the_judge_is_told_in_card_table_and_chart(tmp_path):
    facts = {"judge": "gpt-9", "judge_model": "gpt-9-2026", "judge_temperature": 0.0, "preset": "stable"}
    lines = [line("base", 0.4) | facts, line("epoch-01", 0.5) | facts]
    page = report.write([run_folder(tmp_path / "a", lines=lines)], tmp_path / "out").read_text()
    who = "judged by gpt-9 (answering as gpt-9-2026, temperature 0.0, answers by the preset stable)."
    assert "+10.0 points, judge gpt-9" in page  # the card
    assert f"<figcaption>quiz v<span class=note>{who}</span></figcaption>" in page
    assert f"quiz v: {who}" in (tmp_path / "out/tables/table-2.md").read_text().replace("\\", "")


def test_what_was_not_judged_whole_says_so_where_the_number_stands(tmp_path):
    """2 of 100 queries of one checkpoint, of which there is no gain then; 1 of 100 of another, which is whole."""
    lines = [line("base", 0.4, n_unjudged=0), line("epoch-01", 0.45, n_unjudged=1), line("epoch-02", 0.6, n_unjudged=2)]
    page = report.write([run_folder(tmp_path / "a", lines=lines)], tmp_path / "out").read_text()
    assert cells(tmp_path / "out/tables/table-2.csv")[1][2:] == ["40.00", "5.00 (1 not judged whole)", "5.00", ""]
    (hollow,) = re.findall(r'class="dot c0 hollow"[^>]*><title>([^<]*)</title></circle><text[^>]*>([^<]*)<', page)
    assert hollow == ("dpo on pairs: 60, 2 of 100 not judged", "2") and "how many queries were not judged" in page
    assert "40.0 <span>→</span> 45.0<" in page and "2 of 100 queries of epoch-02" in page  # the note below Table 2


def test_where_no_gain_can_be_said_card_and_cell_say_why(tmp_path):
    """The base lacks 2 of 100 queries, the checkpoint 3; where both lack the same there is a gain, and it is marked."""
    lines = [line("base", 0.4, n_unjudged=2), line("epoch-01", 0.6, n_unjudged=3)]
    page = report.write([run_folder(tmp_path / "a", lines=lines)], tmp_path / "out").read_text()
    row = cells(tmp_path / "out/tables/table-2.csv")[1]
    assert row[2:] == ["40.00 (2 of 100 not judged)", "– (3 of 100 not judged)", "", ""]
    assert "60.0 <small>(3 of 100 not judged)</small>" in page and "no gain: not judged as the base was" in page
    assert '<td class="number" data-head="max Δ">– <small>(3 of 100 not judged)</small></td>' in page
    same = {"n_unjudged": 2, "unjudged_sha256": "ab"}
    lines = [line("base", 0.4, **same), line("epoch-01", 0.6, **same), line("epoch-01", 0.7, "parts", **same)]
    page = report.write([run_folder(tmp_path / "b", lines=lines)], tmp_path / "two").read_text()
    assert cells(tmp_path / "two/tables/table-2.csv")[1][3] == "20.00 (2 of 100 not judged)"
    assert cells(tmp_path / "two/tables/table-4-1.csv")[2][2] == "70.00 (2 of 100 not judged)"
    assert "40.0 <small>(2 of 100 not judged)</small> <span>→</span> 60.0 <small>(2 of" in page


def test_percentages_are_drawn_from_0_and_other_points_where_they_lie(tmp_path):
    """An error bar that reaches below 0 moves no axis."""
    page = report.write(
        [run_folder(tmp_path / "a", lines=[line("base", 0.02), line("epoch-01", 0.03, stderr=0.05)])], tmp_path / "out"
    ).read_text()
    figure = page[page.index("<figcaption>quiz v") : page.index("</figure>")]
    ticks = re.findall(r"text-anchor=end>([^<]*)</text>", figure)
    assert ticks[0] == "0" and "% ± standard error" in figure
    beyond = [line("base", -0.02), line("epoch-01", 0.03)]  # a benchmark with scores of another kind
    page = report.write([run_folder(tmp_path / "b", lines=beyond)], tmp_path / "two").read_text()
    assert float(re.findall(r"text-anchor=end>([^<]*)</text>", page[page.index("<figcaption>quiz v") :])[0]) < 0
    assert "points ± standard error" in page
    high = plots.chart("t", [plots.Series("s", [(1, 99.0), (2, 97.0)], [3.0, 3.0])], x="x", y="%", is_share=True)
    assert re.findall(r"text-anchor=end>([^<]*)</text>", high)[-1] == "100"
    assert min(float(v) for v in re.findall(r'y[12]="([\d.]*)"', high)) >= plots.TOP


def test_differences_are_marked_in_answers_before_and_after(tmp_path):
    """Of the base's answer what is gone, where one other stands beside it; of the others' what is new."""
    folders = [run_folder(tmp_path / name, loss=name) for name in ("dpo", "sft")]
    page = report.write(folders[:1], tmp_path / "out").read_text()
    assert 'said <mark class="less">base</mark>' in page and 'said <mark class="more">epoch-02</mark>' in page
    page = report.write(folders, tmp_path / "two").read_text()
    assert 'class="less"' not in page.partition("id=samples")[2] and page.count('said <mark class="more">') == 2


@pytest.mark.parametrize("width", [1280, 420])
def test_the_page_fits_its_window(tmp_path, width):
    """Also with three benchmarks side by side, long names and long words."""
    lines = [line(c, v, benchmark=b) for b in ("quiz", "test", "b" * 40) for c, v in (("base", 0.4), ("epoch-02", 0.5))]
    folders = [
        run_folder(tmp_path / x, loss=x * 20, data=f"{'d' * 60}.jsonl", lines=lines, words="w" * 300) for x in "ab"
    ]
    path = report.write(folders, tmp_path / "out")
    path.write_text(path.read_text().replace("default-src 'none';", "default-src 'none'; script-src 'none';", 1))
    told = look(path, width=width)
    assert told["wide"] <= width and (width > 640 or told["scrolled"] == 0)  # a wide table scrolls on its own
