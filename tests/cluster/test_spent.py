"""Where a run's time went: every second of every place is counted once."""

import pytest

from mi_ray.cluster import session
from mi_ray.cluster.spent import Span, Spent, spans_of


def test_a_stage_is_starts_passes_store_waiting_and_tails_and_nothing_else() -> None:
    spent = Spent()
    first = [Span("a", 2.0, 5.0, 0.5), Span("a", 6.0, 9.0, 0.25)]
    spent.stage([*reversed(first), Span("b", 3.0, 7.0, 0.0)], 0.0, 10.0, 3)
    assert spent.seconds == pytest.approx(
        {"starts": 2 + 3, "waiting": 1.0, "store": 0.75, "passes": 2.5 + 2.75 + 4, "tails": 1 + 3 + 10}
    )
    assert sum(spent.seconds.values()) == pytest.approx(3 * 10)


def test_workers_that_follow_one_another_share_a_place() -> None:
    spent = Spent()
    spans = [Span("a", 2.0, 4.0, 0.0), Span("b", 3.0, 9.0, 0.0), Span("c", 6.0, 8.0, 0.0), Span("c", 8.5, 9.0, 0.0)]
    spent.stage(spans, 0.0, 10.0, 2)  # c came after a
    assert spent.seconds == pytest.approx(
        {"starts": 2 + 2 + 3, "waiting": 0.5, "store": 0, "passes": 10.5, "tails": 1 + 1}
    )
    assert sum(spent.seconds.values()) == pytest.approx(2 * 10)


def test_workers_that_take_turns_on_fewer_places_count_no_second_twice() -> None:
    """Three processes on two places: c works while a waits, and a again while c does."""
    spent = Spent()
    spans = [Span("a", 1.0, 3.0, 0.0), Span("b", 1.0, 8.0, 0.0), Span("c", 4.0, 6.0, 0.0), Span("a", 6.5, 9.0, 0.0)]
    spent.stage(spans, 0.0, 10.0, 2)
    assert spent.seconds == pytest.approx(
        {"starts": 1 + 1 + 1, "waiting": 0.5, "store": 0, "passes": 13.5, "tails": 1 + 2}
    )
    assert sum(spent.seconds.values()) == pytest.approx(2 * 10)


def test_a_worker_that_starts_late_takes_no_place_whose_worker_only_waits_for_its_next_block() -> None:
    spent = Spent()
    spans = [Span("a", 1.0, 2.0, 0.0), Span("b", 2.25, 4.0, 0.0), Span("a", 2.5, 5.0, 0.0)]
    spent.stage(spans, 0.0, 6.0, 2)
    assert spent.seconds == pytest.approx(
        {"starts": 1 + 2.25, "waiting": 0.5, "store": 0, "passes": 5.25, "tails": 1 + 2}
    )


def test_a_worker_of_an_earlier_stage_starts_once() -> None:
    spent = Spent()
    for began in (0.0, 10.0):
        spent.stage([Span("a", began + 4, began + 10, 0.0)], began, began + 10, 1)
    assert spent.seconds == pytest.approx({"starts": 4, "waiting": 4, "store": 0, "passes": 12, "tails": 0})


def test_a_worker_that_ran_blocks_beside_a_stage_starts_in_no_later_one() -> None:
    spent = Spent()
    spent.beside([Span("a", 1.0, 3.0, 0.0)])
    spent.stage([Span("a", 11.0, 14.0, 0.0)], 10.0, 14.0, 1)
    assert spent.seconds == pytest.approx({"waiting": 1, "store": 0, "passes": 5, "tails": 0})


def test_clocks_that_differ_between_nodes_open_no_place_that_there_is_not() -> None:
    spent = Spent()
    spent.stage([Span("a", 1.0, 5.0, 0.0), Span("b", 4.9, 9.0, 0.0)], 0.0, 10.0, 1)
    assert sum(spent.seconds.values()) == pytest.approx(10.1)


def test_the_line_says_shares_of_all_places_and_leaves_what_no_stage_took_to_the_driver() -> None:
    spent = Spent()
    spent.add("training", 6.0)
    spent.stage([Span("a", 4.0, 10.0, 0.0)], 4.0, 10.0, 1)
    told = spent.line(10.0, 2)
    assert told == "10.0 s on 2 places: 40 % the driver alone, 30 % passes, 30 % training with its starts"
    assert Spent().line(1.0, 1) == "1.0 s on 1 place: 100 % the driver alone"


def test_a_worker_tells_when_it_began_and_one_that_computed_nothing_tells_no_span() -> None:
    facts = {"began": 1.0, "ended": 2.5, "store": 0.25, "node": "n", "pid": 7, "forward": 3}
    assert spans_of(facts) == [Span(("n", 7), 1.0, 2.5, 0.25)]
    assert spans_of({"forward": 0}) == []


def test_the_time_of_a_stage_inside_another_one_is_not_counted_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    ticks = iter([0.0, 2.0, 5.0, 6.0, 6.5, 9.0])
    monkeypatch.setattr(session.time, "perf_counter", lambda: next(ticks))
    outcome = session.Outcome()
    with outcome.timed("checks"):
        with outcome.timed("records"):
            pass
        with outcome.timed("figures"):
            pass
    assert outcome.seconds == {"records": 3.0, "figures": 0.5, "checks": 9 - 3.5}
