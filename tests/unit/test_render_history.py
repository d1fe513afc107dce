"""What people and programs read about probes, confirmations and the history."""

from __future__ import annotations

import time

import pytest

from scplan.model.change import Action
from scplan.model.probe import Probe, parse_duration, probe
from scplan.model.report import Ended, Outcome, Past, Probed, Step
from scplan.render import machine
from scplan.render.documents import awaiting_lines, event_line, history_lines
from scplan.render.lines import plain
from scplan.render.words import duration_words

PING = Probed(step=Step.STARTED, probe=Probe("ping \x1b[2J"), number=2, total=10)
PAST = Past(
    apply_id="20261123T154114.2-3",
    outcome=Ended.COMMITTED,
    begun=1_795_448_471.0,
    ended=1_795_448_472.0,
    user="operator",
    uid=1000,
    command=("scplan", "apply", "-f", "we\x1bb.yaml"),
    counts={Action.CREATE: 2, Action.DELETE: 1},
)


@pytest.mark.parametrize(
    ("event", "text"),
    [
        (PING, "   2/10 ? ping \\x1b[2J  …\n"),
        (PING._replace(step=Step.DONE, seconds=0.25), "   2/10 ? ping \\x1b[2J  passed in 0.25 s\n"),
        (
            PING._replace(step=Step.FAILED, error="exit status 1\x07"),
            "   2/10 ? ping \\x1b[2J  failed: exit status 1\\x07\n",
        ),
    ],
)
def test_probe_reads(event: Probed, text: str) -> None:
    assert plain([event_line(event)]) == text


def test_probe_document() -> None:
    assert machine.event_document(PING._replace(step=Step.FAILED, seconds=1, error="exit status 1", output="no")) == {
        "type": "probe",
        "step": "failed",
        "number": 2,
        "total": 10,
        "command": "ping \x1b[2J",
        "seconds": 1,
        "error": "exit status 1",
        "output": "no",
    }


def test_apply_that_awaits_nothing_says_nothing() -> None:
    outcome = Outcome(apply_id="1", summary={}, seconds=0)
    assert awaiting_lines(outcome) == []
    assert "15 min" in plain(awaiting_lines(outcome._replace(confirm_within_s=900.0)))


@pytest.mark.parametrize(
    ("seconds", "words"), [(60, "60 s"), (120, "2 min"), (90, "90 s"), (7200, "2 h"), (1.5, "1.5 s")]
)
def test_durations_read(seconds: float, words: str) -> None:
    assert duration_words(seconds) == words


@pytest.mark.parametrize(
    ("past", "words"),
    [
        (PAST, "operator (uid 1000)  committed  2 create, 1 delete  scplan apply -f we\\x1bb.yaml"),
        (PAST._replace(uid=0, outcome=Ended.UNDONE), "operator  undone   "),
        (
            PAST._replace(outcome=Ended.ROLLED_BACK, reason="not confirmed in time"),
            "rolled back: not confirmed in time",
        ),
        (PAST._replace(outcome=Ended.AWAITING, left_s=41.7), "awaiting confirmation (42 s left)"),
        (Past(apply_id="1", outcome=Ended.UNREADABLE, problem="1:1 is damaged"), "unreadable: 1:1 is damaged"),
    ],
)
def test_history_reads(monkeypatch: pytest.MonkeyPatch, past: Past, words: str) -> None:
    monkeypatch.setenv("TZ", "UTC")
    time.tzset()
    head, row = plain(history_lines([past])).splitlines()
    assert head.startswith("APPLY")
    assert row.startswith(past.apply_id)
    assert words in row
    assert ("2026-11-23 15:41:11" in row) == bool(past.begun)


def test_history_document_has_every_key() -> None:
    document = machine.history_document([PAST._replace(outcome=Ended.AWAITING, left_s=1.23456)])
    (apply,) = document["applies"]
    assert (apply["outcome"], apply["seconds_left"]) == ("awaiting_confirmation", 1.235)
    assert (apply["operations"], apply["command"][-1]) == ({"create": 2, "delete": 1}, "we\x1bb.yaml")
    assert document["diagnostics"] == []


# probes and durations as users write them


@pytest.mark.parametrize(("text", "seconds"), [("500ms", 0.5), ("1s", 1), ("1.5m", 90), ("2h", 7200)])
def test_duration_is_read(text: str, seconds: float) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["", "5", "s", "-1s", "1 s", "1d", "٣s", "1e3s"])
def test_what_is_no_duration_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="not a duration"):
        parse_duration(text)


def test_words_of_a_probe_are_those_of_a_shell() -> None:
    assert probe("sh -c 'a b; c' \"d e\" f\\ g").words == ["sh", "-c", "a b; c", "d e", "f g"]


@pytest.mark.parametrize(
    ("command", "timeout_s"),
    [("", 1), ("  ", 1), ("'a", 1), ("a\0b", 1), ("a" * 5000, 1), ("a", 0), ("a", 1e9), ("a", float("nan"))],
)
def test_what_is_no_probe_is_refused(command: str, timeout_s: float) -> None:
    with pytest.raises(ValueError, match=r"."):
        probe(command, timeout_s)
