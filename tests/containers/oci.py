"""OCI runtimes as tests call them, and the bundles that they start."""

from __future__ import annotations

import json
import subprocess
from dataclasses import dataclass
from pathlib import Path

from tests.containers import cgroups, rootfs

_CAPABILITIES = [
    "CAP_AUDIT_WRITE",
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_KILL",
    "CAP_MKNOD",
    "CAP_NET_ADMIN",
    "CAP_NET_BIND_SERVICE",
    "CAP_NET_RAW",
    "CAP_SETFCAP",
    "CAP_SETGID",
    "CAP_SETPCAP",
    "CAP_SETUID",
    "CAP_SYS_ADMIN",
    "CAP_SYS_CHROOT",
]
SLEEP_FOREVER = ["/bin/sleep", "2000000000"]
USERNS_FIRST_ID = 100000
USERNS_IDS = 65536


@dataclass(frozen=True, kw_only=True)
class Runtime:
    """An OCI runtime: its binary, what has to stand before it, and where it keeps its states."""

    name: str
    before: tuple[str, ...]
    state_directory: Path

    def command(self, *arguments: str) -> list[str]:
        return [*self.before, self.name, *arguments]

    def delete(self, name: str) -> None:
        subprocess.run(self.command("delete", "--force", name), check=True, capture_output=True, text=True, timeout=30)


def _crun_before() -> tuple[str, ...]:
    """Crun takes a hybrid hierarchy for version 2; in a mount namespace without the v2 mount it works."""
    if cgroups.is_v2() or not Path("/sys/fs/cgroup/unified").is_mount():
        return ()
    script = 'umount /sys/fs/cgroup/unified && exec "$@"'
    return ("unshare", "--mount", "--propagation", "private", "sh", "-c", script, "sh")


RUNTIMES = {
    "runc": Runtime(name="runc", before=(), state_directory=Path("/run/runc")),
    "crun": Runtime(name="crun", before=_crun_before(), state_directory=Path("/run/crun")),
}


def make_bundle(
    bundle: Path,
    name: str,
    *,
    userns: bool = False,
    hooks: dict[str, object] | None = None,
    annotations: dict[str, str] | None = None,
    argv: list[str] | None = None,
    read_only: bool = False,
) -> None:
    """A bundle with a busybox root file system of its own."""
    bundle.mkdir(mode=0o755)
    rootfs.build(bundle / "rootfs", owner=USERNS_FIRST_ID if userns else 0)
    config = _config(name, userns=userns, argv=argv or SLEEP_FOREVER, read_only=read_only)
    if hooks:
        config["hooks"] = hooks
    if annotations:
        config["annotations"] = annotations
    (bundle / "config.json").write_text(json.dumps(config, indent=1))


def _config(name: str, *, userns: bool, argv: list[str], read_only: bool) -> dict[str, object]:
    namespaces = ["pid", "network", "ipc", "uts", "mount", *(["user"] if userns else [])]
    linux: dict[str, object] = {
        "cgroupsPath": f"/{name}",
        "namespaces": [{"type": kind} for kind in namespaces],
        "resources": {"devices": [{"allow": False, "access": "rwm"}]},
    }
    if userns:
        mapping = [{"containerID": 0, "hostID": USERNS_FIRST_ID, "size": USERNS_IDS}]
        linux |= {"uidMappings": mapping, "gidMappings": mapping}
    capabilities = dict.fromkeys(("bounding", "effective", "permitted"), _CAPABILITIES)
    return {
        "ociVersion": "1.0.2",
        "hostname": name,
        "root": {"path": "rootfs", "readonly": read_only},
        "process": {
            "user": {"uid": 0, "gid": 0},
            "cwd": "/",
            "args": argv,
            "env": ["PATH=/bin", "HOME=/root"],
            "capabilities": capabilities,
        },
        "mounts": [
            {"destination": "/proc", "type": "proc", "source": "proc"},
            {
                "destination": "/dev",
                "type": "tmpfs",
                "source": "tmpfs",
                "options": ["nosuid", "strictatime", "mode=755", "size=65536k"],
            },
            {
                "destination": "/dev/pts",
                "type": "devpts",
                "source": "devpts",
                "options": ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620"],
            },
            {
                "destination": "/sys",
                "type": "sysfs",
                "source": "sysfs",
                "options": ["nosuid", "noexec", "nodev", "ro"],
            },
        ],
        "linux": linux,
    }
