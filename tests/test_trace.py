"""What one worker records, and when it looks away."""

from __future__ import annotations

from firesteel.trace import Clock, Trace


def test_seconds_spent_paused_do_not_count():
    seconds = [5.0]
    trace = Trace(3, Clock(lambda: seconds[0]))
    for kind in ("all_reduce", "send", "recv"):
        seconds[0] += 1.0
        trace.verb(kind, 100, 0.25)
        with trace.paused():
            seconds[0] += 10.0
            trace.verb("all_reduce", 1000, 9.0)
            trace.step(1, 7, 7.0, 0.5)
            trace.mark("publish", 1)
            assert trace.clock.now() == len(trace.table())
    assert trace.table()["seconds"].to_pylist() == [1.0, 2.0, 3.0]
    assert trace.table()["kind"].to_pylist() == ["all_reduce", "send", "recv"]
    assert (trace.bytes_sent, trace.rounds, trace.waited_seconds) == (300, 1, 0.75)
    assert (trace.samples, trace.weight_sum, trace.current_step, trace.first_step_at) == (0, 0.0, 0, None)


def test_a_clock_goes_on_after_an_error():
    seconds = [0.0]
    trace = Trace(0, Clock(lambda: seconds[0]))
    try:
        with trace.paused():
            seconds[0] = 4.0
            raise KeyError
    except KeyError:
        seconds[0] = 6.0
    trace.verb("pull", 8, 0.0)
    assert trace.table()["seconds"].to_pylist() == [2.0] and trace.bytes_sent == 8
