"""Tables and headlines from results whose numbers are known."""

from __future__ import annotations

import dataclasses

import pytest
from made_runs import external, run, seeds

from firesteel.bench import tables, texts
from firesteel.bench.configurations import configurations
from firesteel.errors import UsageError


def texts_of(table):
    return [[cell.text for cell in row] for row in table.rows]


def column(table, name):
    return [row[table.columns.index(name)] for row in table.rows]


COMPARED = [
    *seeds("Slow", [4.0, 4.4, 4.8]),
    *seeds("Never", [None, None, 9.0]),
    *seeds("Fast", [2.0, 2.2, 2.4]),
    run("Broken", status="failed", error={"type": "ClusterError", "message": "A worker was lost.\nTraceback"}),
    external("Paper", 0.95, 3.0),
    external("Blog", 0.97),
    external("Rumour", None),
]

# ---- numbers ---------------------------------------------------------------------------------------------------------


def test_numbers_have_three_digits():
    assert [texts.digits(x) for x in (0.0, 0.012345, 1.0, 99.96, 999.6, 12345.0, -2.345)] == [
        *("0", "0.0123", "1", "100", "1,000", "12,300", "-2.35"),
    ]
    assert [texts.digits(x) for x in (None, float("nan"), float("inf"))] == ["-"] * 3
    assert [texts.score(x) for x in (0.9996, 0.98, 11.23456)] == ["0.9996", "0.98", "11.23"]
    assert [texts.count(x) for x in (None, 0, 1875, 999_999.0, 999_999.9, 12_345_678)] == [
        *("-", "0", "1,875", "999,999", "1 million", "12.3 million"),
    ]
    assert [texts.size(x) for x in (None, 0, 999, 1000, 999_700, 1.5e9, 2e18)] == [
        *("-", "0 B", "999 B", "1 kB", "1 MB", "1.5 GB", "2,000 PB"),
    ]
    assert texts.items({}) == "-"


# ---- one workload ----------------------------------------------------------------------------------------------------


def test_ranking():
    table = tables.ranking(configurations(COMPARED))
    assert table.title == "Ranking, wall seconds"
    assert table.columns == (
        *("configuration", "workers", "wall seconds to target", "reached", "best validation accuracy"),
        *("samples", "sent", "wall seconds"),
    )
    assert texts_of(table) == [
        ["Fast", "2", "2.2 (2.1 to 2.3)", "3 of 3", "0.95", "220", "2.2 MB", "2.2"],
        ["Paper (external)", "-", "3", "1 of 1", "0.95", "-", "-", "3"],
        ["Slow", "2", "4.4 (4.2 to 4.6)", "3 of 3", "0.95", "440", "4.4 MB", "4.4"],
        ["Blog (external)", "-", "-", "1 of 1", "0.97", "-", "-", "-"],
        ["Never", "2", "> 10", "1 of 3", "0.8", "1,000", "10 MB", "10"],
        ["Broken", "2", "not reached", "0 of 1", "-", "-", "-", "-"],
        ["Rumour (external)", "-", "-", "-", "-", "-", "-", "-"],
    ]
    assert [cell.value for cell in table.rows[0]] == [None, 2, 2.2, 1.0, 0.95, pytest.approx(220), pytest.approx(2.2e6), 2.2]
    assert [cell.value for cell in column(table, "wall seconds to target")] == [2.2, 3.0, 4.4, None, None, None, None]
    assert [row[0].external for row in table.rows] == [False, True, False, True, False, False, True]
    assert all(cell.external == row[0].external for row in table.rows for cell in row)
    assert "0.9 validation accuracy" in table.about


def test_ranking_by_metric_alone_where_less_is_better_and_no_target_is_set():
    workload = {"metric": "validation_loss", "target": None}
    table = tables.ranking(configurations([run(m, [(1.0, y)], workload=workload) for m, y in (("A", 0.3), ("B", 0.2))]))
    assert [cells[:5] for cells in texts_of(table)] == [["B", "2", "-", "-", "0.2"], ["A", "2", "-", "-", "0.3"]]
    assert table.about.startswith("By best validation loss; no target was set.")


def test_a_seed_without_a_figure_is_said():
    table = tables.ranking(configurations([*seeds("A", [2.0, 4.0]), run("A", seed=2, status="diverged")]))
    (row,) = texts_of(table)
    assert row[2:5] == ["4 (3 to > 4)", "2 of 3", "0.95 (2 of 3 seeds)"]
    assert row[5:] == ["300 (2 of 3 seeds)", "3 MB (2 of 3 seeds)", "3 (2 of 3 seeds)"]


def test_cost_to_the_target():
    table = tables.to_target(configurations(COMPARED))
    assert table.columns == ("configuration", "steps of each worker", "samples", "sent", "reached")
    assert texts_of(table) == [
        ["Fast", "22 (21 to 23)", "220 (210 to 230)", "2.2 MB (2.1 MB to 2.3 MB)", "3 of 3"],
        ["Paper (external)", "-", "-", "-", "1 of 1"],
        ["Slow", "44 (42 to 46)", "440 (420 to 460)", "4.4 MB (4.2 MB to 4.6 MB)", "3 of 3"],
        ["Blog (external)", "-", "-", "-", "1 of 1"],
        ["Never", "> 100", "> 1,000", "> 10 MB", "1 of 3"],
        ["Broken", "not reached", "not reached", "not reached", "0 of 1"],
        ["Rumour (external)", "-", "-", "-", "-"],
    ]
    assert tables.to_target(configurations([run("A", [(1.0, 0.5)], workload={"target": None})])) is None


def test_speed_up():
    found = [
        each for n, at in ((4, [3.0, 3.0, 3.0]), (1, [6.0, 6.0, 6.0]), (2, [None] * 3)) for each in seeds("A", at, workers=n)
    ]
    table = tables.speed_up(configurations([*found, run("B", workers=4), external("C", 0.9, 3.0, workers=8)]))
    assert table.columns[:6] == ("configuration", "workers", "against", "wall seconds to target", "speed-up", "efficiency")
    assert texts_of(table) == [
        ["A", "1", "1 worker", "6 (6 to 6)", "1", "1", "2", "1", "600 (600 to 600)", "1"],
        ["A", "2", "1 worker", "> 10", "0 (0 to 0)", "0", "2", "0.5", "> 1,000", "0"],
        ["A", "4", "1 worker", "3 (3 to 3)", "2 (2 to 2)", "0.5", "2", "0.25", "300 (300 to 300)", "2"],
    ]
    assert [cell.value for cell in column(table, "speed-up")] == [1.0, 0.0, 2.0]


def test_speed_up_against_the_fewest_there_are_without_seeds_for_an_interval():
    table = tables.speed_up(configurations([run("A", [(8.0 / n, 0.95)], workers=n) for n in (2, 8)]))
    assert [cells[2:6] for cells in texts_of(table)] == [["2 workers", "4", "1", "1"], ["2 workers", "1", "4", "1"]]


def test_temporal_efficiency():
    flat = [("A", 0, 0.8), ("A", 1, 0.4), ("B", 0, 0.4), ("B", 1, 0.4)]
    runs = [run(m, [(0.0, y), (2.0, y)], seed) for m, seed, y in flat]
    for smoothed in (False, True):
        table = tables.efficiency(configurations([*runs, external("C", 0.9, 3.0)]), smoothed)
        assert table.columns == ("configuration", "A", "B", "C (external)")
        assert texts_of(table) == [
            ["A", "1", "1.5 (1 to 2)", "-"],
            ["B", "0.75 (0.5 to 1)", "1", "-"],
            ["C (external)", "-", "-", "-"],
        ]
        assert [cell.external for cell in table.rows[0]] == [False, False, False, True]
        assert ("spline" in table.about, "smoothed" in table.title) == (smoothed, smoothed)
        assert "validation accuracy" in table.about
    assert tables.efficiency(configurations([external("C", 0.9, 3.0)])) is None


def test_robustness():
    def cell(window, n, best):
        return run(f"AGN(window={window})", [(1.0, best)], settings={"window": window}, workers=n)

    found = [cell(5, 2, 0.9), cell(5, 4, 0.8), cell(12, 2, 0.7), run("SyncSGD", [(1.0, 0.9)]), external("AGN", 0.9)]
    table = tables.robustness(configurations(found))
    assert table.columns == ("configuration", "window", "2 workers", "4 workers")
    assert texts_of(table) == [["AGN(window=5)", "5", "0.9", "0.8"], ["AGN(window=12)", "12", "0.7", "-"]]
    assert tables.robustness(configurations(found[:2])) is None


def test_staleness():
    told = {"steps": {"0": 1, "1": 2, "5": 1}, "distance": [0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6]}
    table = tables.staleness(configurations([run("A", staleness=told), run("A", seed=1, staleness=told), run("B")]))
    assert table.columns[2:] == (
        *("pushes", "mean", "median", "95 %", "largest", "median distance", "95 % distance", "largest distance"),
    )
    assert texts_of(table) == [["A", "2", "8", "1.75", "1", "5", "5", "0.3", "0.5", "0.6"]]
    (row,) = texts_of(tables.staleness(configurations([run("A", staleness={"steps": {"3": 2}, "distance": None})])))
    assert row[2:] == ["2", "3", "3", "3", "3", "-", "-", "-"]
    assert tables.staleness(configurations([run("A", staleness={"steps": {}, "distance": None})])) is None


def test_settings():
    environment = {
        "firesteel": "0.1",
        "python": "3.12",
        "torch": "2.13",
        "git": "abc",
        "cpu": "Xeon",
        "cores": 2,
        "memory_bytes": 8e9,
    }
    one = run("AGN(window=12)", settings={"window": 12}, heuristic={"name": "vector-free", "on": True}, environment=environment)
    two = run(
        "AGN(window=12)",
        seed=1,
        **{k: one.header[k] for k in ("settings", "heuristic")},
        environment={**environment, "git": "def"},
    )
    table = tables.settings(configurations([one, two, external("Paper", 0.9)]))
    assert dict(zip(table.columns, texts_of(table)[0], strict=True)) == {
        "configuration": "AGN(window=12)",
        "strategy": "AGN",
        "settings": "window=12",
        "optimizer": "SGD(lr=0.1)",
        "heuristic": "vector-free on",
        "batch of a worker": "32",
        "world": "Local",
        "workers": "2",
        "seeds": "0, 1",
        "limits": "-",
        "versions": "firesteel 0.1, python 3.12, torch 2.13",
        "commit": "abc; def",
        "hardware": "Xeon, 2 cores, 8 GB",
        "source": "-",
    }
    assert texts_of(table)[1] == ["Paper (external)", "Paper", *["-"] * 11, "a paper"]


# ---- all workloads ---------------------------------------------------------------------------------------------------


def test_profiles():
    other = {"name": "letters"}
    found = [run("A", [(1.0, 0.95)]), run("A", [(3.0, 0.95)], workers=4), run("B", [(3.0, 0.95)]), external("C", 0.95)]
    found += [run("A", [(4.0, 0.95)], workload=other), run("B", [(2.0, 0.95)], workload=other)]
    table = tables.profiles(configurations(found))
    assert table.columns == ("method", "fastest", "within 1.5 times", "within 2 times", "within 4 times", "reached at all")
    assert texts_of(table) == [
        ["A", "0.5", "0.5", "1", "1", "1"],
        ["B", "0.5", "0.5", "0.5", "1", "1"],
        ["C (external)", *"-----"],
    ]
    assert [row[1].external for row in table.rows] == [False, False, True]
    methods, targets, costs = tables.costs_by_method(configurations(found))
    assert (methods, targets, costs[:2]) == (["A", "B", "C (external)"], ["digits", "letters"], [[1.0, 4.0], [3.0, 2.0]])
    assert tables.profiles(configurations(found[:3])) is None


def test_failures():
    table = tables.failures([*COMPARED, run("Wild", status="diverged")])
    assert texts_of(table) == [
        ["Broken-0", "digits", "Broken", "failed", "ClusterError", "A worker was lost."],
        ["Wild-0", "digits", "Wild", "diverged", "-", "-"],
    ]
    assert tables.failures(seeds("A", [1.0])) is None


def test_nothing_makes_no_table():
    for make in (
        *(tables.ranking, tables.to_target, tables.speed_up, tables.efficiency, tables.robustness, tables.staleness),
        *(tables.profiles, tables.settings, tables.failures),
    ):
        assert make([]) is None
    assert tables.headline([]) == []


def test_two_kinds_of_seconds_have_no_common_table():
    found = configurations([run("A", [(1.0, 0.5), (2.0, 0.9)]), run("A", [(1.0, 0.5), (2.0, 0.9)], virtual=True)])
    for make in (tables.ranking, tables.efficiency):
        with pytest.raises(UsageError, match="wall seconds and virtual seconds have no common table"):
            make(found)
        assert "virtual seconds" in make(found[1:]).title


def test_rows_are_as_wide_as_their_tables_and_can_only_be_read():
    found = configurations(COMPARED)
    for make in (tables.ranking, tables.to_target, tables.efficiency, tables.settings):
        table = make(found)
        assert {len(row) for row in table.rows} == {len(table.columns)}
        with pytest.raises(dataclasses.FrozenInstanceError):
            table.title = ""


# ---- headlines -------------------------------------------------------------------------------------------------------

FAST, SLOW = seeds("Fast", [2.0, 2.2, 2.4]), seeds("Slow", [4.0, 4.4, 4.8])
BEGIN = "Fast reached 0.9 validation accuracy"


@pytest.mark.parametrize(
    ("results", "said"),
    [
        (
            SLOW + FAST,
            [f"{BEGIN} first: 2.2 wall seconds (median of 3 seeds), 2 times as fast as Slow (95 % interval 1.67 to 2.4)."],
        ),
        (
            FAST + seeds("Like", [2.1, 2.3, 2.5]),
            [f"{BEGIN} first: 2.2 wall seconds (median of 3 seeds).", "No difference shown between Fast and Like."],
        ),
        (FAST, [f"{BEGIN}: 2.2 wall seconds (median of 3 seeds)."]),
        (FAST + seeds("Never", [None] * 3), [f"{BEGIN} first: 2.2 wall seconds (median of 3 seeds); no other reached it."]),
        (
            FAST + seeds("Seldom", [1.0, None, None]),
            [f"{BEGIN} first: 2.2 wall seconds (median of 3 seeds); no other reached it with most of its seeds."],
        ),
        (
            SLOW[:1] + FAST[:1],
            [f"{BEGIN} first: 2 wall seconds (one seed); Slow came next with 4 (one seed: no statement on the difference)."],
        ),
        (
            [*FAST, external("Paper", 0.95, 1.0), external("Late", 0.95, 9.0), external("Blog", 0.95)],
            [
                f"{BEGIN}: 2.2 wall seconds (median of 3 seeds).",
                "Paper (external), measured elsewhere, reached it in 1 wall seconds.",
            ],
        ),
        (
            [*seeds("A", [None] * 3), run("B", [(1.0, 0.84)])],
            ["No method reached 0.9 validation accuracy within its budget; the best, B, came to 0.84."],
        ),
        (
            seeds("A", [None, None, 3.0]),
            ["No method reached 0.9 validation accuracy within its budget with most of its seeds; the best, A, came to 0.8."],
        ),
        ([run("A", status="failed")], ["No run has a validation accuracy."]),
        ([external("Blog", 0.95)], ["The best validation accuracy is 0.95, of Blog (external) (one seed)."]),
        (
            [run(m, [(1.0, y)], workload={"metric": "validation_loss", "target": None}) for m, y in (("A", 0.3), ("B", 0.2))],
            ["The best validation loss is 0.2, of B (one seed)."],
        ),
    ],
)
def test_headline(results, said):
    assert tables.headline(configurations(results)) == said


def test_headlines_keep_seconds_and_workloads_apart():
    virtual = [dataclasses.replace(r, header={**r.header, "virtual": True}) for r in SLOW]
    other = seeds("Fast", [1.0, 1.0, 1.0], workload={"name": "letters"})
    assert tables.headline(configurations([*FAST, *virtual, *other])) == [
        f"digits: {BEGIN}: 2.2 wall seconds (median of 3 seeds).",
        "digits: Slow reached 0.9 validation accuracy: 4.4 virtual seconds (median of 3 seeds).",
        f"letters: {BEGIN}: 1 wall seconds (median of 3 seeds).",
    ]
