from fisherkernels import timing


def test_the_shortest_but_for_the_first(monkeypatch):
    """The first call takes 1 s, the others 5, 3 and 4; each is waited for."""
    clock, calls = iter([0, 1, 10, 15, 20, 23, 30, 34]), []
    monkeypatch.setattr(timing.time, "perf_counter", lambda: next(clock))
    assert timing.shortest_time(lambda: calls.append("call"), 3, lambda: calls.append("wait")) == 3
    assert calls == ["call", "wait"] * 4
