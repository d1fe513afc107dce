"""Fuzzes what scplan reads for longer: `python -m tests.fuzz [SECONDS [TARGET]…]`, so many seconds for each target.

With atheris each new branch of scplan that an input reaches makes that input a seed; without it inputs are mutated
blindly. Ends with 1 when a target raised what it must not; the input is kept in fuzz-crashes/ below state/run/.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

_CRASHES = Path(__file__).parents[2] / "state/run/fuzz-crashes"
_SECONDS = 30.0


def main(arguments: list[str]) -> int:
    if arguments[:1] == ["--guided"]:
        return _guided(arguments[1], float(arguments[2]))
    from tests.fuzz.targets import TARGETS

    seconds = float(arguments[0]) if arguments else _SECONDS
    names = arguments[1:] or list(TARGETS)
    _CRASHES.mkdir(parents=True, exist_ok=True)
    with_atheris = importlib.util.find_spec("atheris") is not None
    failed = []
    for name in names:
        if not (_run_guided(name, seconds) if with_atheris else _blind(name, seconds)):
            failed.append(name)
    print(f"failed: {', '.join(failed)}" if failed else "nothing found")
    return 1 if failed else 0


# guided by coverage


def _run_guided(name: str, seconds: float) -> bool:
    """In a process of its own: libFuzzer never returns."""
    command = [sys.executable, "-m", "tests.fuzz", "--guided", name, str(seconds)]
    # It ends without cleaning up: what it makes goes with this directory.
    with tempfile.TemporaryDirectory() as scratch:
        environment = {**os.environ, "TMPDIR": scratch}
        ended = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment)
    lines = ended.stdout.splitlines()
    done = next((line for line in reversed(lines) if line.startswith("Done ")), "")
    print(f"{name}: {done.lower() or 'failed'}, guided by coverage", flush=True)
    if ended.returncode:
        print("\n".join(lines[-40:]), flush=True)
    return ended.returncode == 0


def _guided(name: str, seconds: float) -> int:
    import atheris

    with atheris.instrument_imports(include=["scplan"]):
        from tests.fuzz.targets import TARGETS
    target = TARGETS[name]
    with tempfile.TemporaryDirectory() as scratch, tempfile.TemporaryDirectory() as corpus:
        for seed in target.seeds:
            Path(corpus, hashlib.sha256(seed).hexdigest()).write_bytes(seed)
        options = [f"-max_total_time={seconds:.0f}", "-max_len=20000", "-timeout=10", "-rss_limit_mb=2048"]
        atheris.Setup(
            [name, *options, f"-artifact_prefix={_CRASHES}/", corpus], lambda data: target.run(data, Path(scratch))
        )
        atheris.Fuzz()
    return 0


# without


def _blind(name: str, seconds: float) -> bool:
    from tests.fuzz.mutation import mutated
    from tests.fuzz.targets import TARGETS

    target, chance, cases = TARGETS[name], random.Random(), 0
    deadline = time.monotonic() + seconds
    with tempfile.TemporaryDirectory() as scratch:
        while time.monotonic() < deadline:
            data = mutated(chance.choice(target.seeds), chance)
            try:
                target.run(data, Path(scratch))
            except Exception as error:
                file = _CRASHES / f"{name.replace(' ', '-')}-{hashlib.sha256(data).hexdigest()[:12]}"
                file.write_bytes(data)
                print(f"{name}: {type(error).__name__}: {error}; the input is in {file}", flush=True)
                return False
            cases += 1
    print(f"{name}: done {cases} runs", flush=True)
    return True


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
