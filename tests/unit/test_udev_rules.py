"""What a udev rule of scplan says, and what it can't hold."""

from __future__ import annotations

import pytest

from scplan.errors import ScplanError
from scplan.linux.devices import udev


def test_rule_names_the_disk_and_the_command() -> None:
    rule = udev.rule_text(
        "sdb", ["/usr/bin/python3", "-c", "import sys; run()", "--state-dir", "/var/lib/scplan", "web"]
    )
    assert rule.splitlines()[1:] == [
        'ACTION=="add|remove", SUBSYSTEM=="block", ENV{DEVTYPE}=="partition", DEVPATH=="*/sdb/*",'
        " RUN+=\"/usr/bin/python3 -c 'import sys; run()' --state-dir /var/lib/scplan web\""
    ]


def test_substitutions_of_udev_are_escaped() -> None:
    assert "'/srv/100%% $$k'" in udev.rule_text("sdb", ["/srv/100% $k"])


@pytest.mark.parametrize("word", ["it's", 'a "b"', "a\\b", "a\nRUN+=", "a\0", "\udcff"])
def test_word_that_a_rule_can_not_hold_is_refused(word: str) -> None:
    with pytest.raises(ScplanError, match="can't hold"):
        udev.rule_text("sdb", ["/bin/true", word])


@pytest.mark.parametrize("disk", ["", "*", "sd[a]", 'sdb", RUN+="x', "a/b"])
def test_name_that_no_disk_has_is_refused(disk: str) -> None:
    with pytest.raises(ScplanError, match="can't be the name"):
        udev.rule_text(disk, ["/bin/true"])


def test_file_is_the_same_for_the_same_subject_alone() -> None:
    assert udev.rule_path("/s", "runc", "web", "/dev/data") == udev.rule_path("/s", "runc", "web", "/dev/data")
    assert udev.rule_path("/s", "runc", "web", "/dev/data") != udev.rule_path("/s", "runc", "web/dev", "/data")
