"""Which system calls of x86-64 can change nothing that outlives a process; every other one is a point to die at.

Sources: syscalls(2), arch/x86/entry/syscalls/syscall_64.tbl. A call that nobody thought of is not in the list,
and so is tried: none can be missed.
"""

from __future__ import annotations

import os
import struct

# Of the process itself, or only reading.
HARMLESS = {
    "read": 0, "close": 3, "stat": 4, "fstat": 5, "lstat": 6, "poll": 7, "lseek": 8, "mmap": 9, "mprotect": 10,
    "munmap": 11, "brk": 12, "rt_sigaction": 13, "rt_sigprocmask": 14, "rt_sigreturn": 15, "pread64": 17, "readv": 19,
    "access": 21, "select": 23, "sched_yield": 24, "mremap": 25, "madvise": 28, "dup": 32, "dup2": 33, "nanosleep": 35,
    "getpid": 39, "socket": 41, "recvfrom": 45, "recvmsg": 47, "bind": 49, "getsockname": 51, "getpeername": 52,
    "socketpair": 53, "setsockopt": 54, "getsockopt": 55, "clone": 56, "fork": 57, "vfork": 58, "exit": 60, "wait4": 61,
    "uname": 63, "fcntl": 72, "flock": 73, "getdents": 78, "getcwd": 79, "chdir": 80, "fchdir": 81, "readlink": 89,
    "umask": 95, "gettimeofday": 96, "getrlimit": 97, "getrusage": 98, "sysinfo": 99, "getuid": 102, "getgid": 104,
    "geteuid": 107, "getegid": 108, "getppid": 110, "getpgrp": 111, "getresuid": 118, "getresgid": 120,
    "sigaltstack": 131, "statfs": 137, "fstatfs": 138, "arch_prctl": 158, "gettid": 186, "time": 201, "futex": 202,
    "sched_getaffinity": 204, "getdents64": 217, "set_tid_address": 218, "clock_gettime": 228, "clock_getres": 229,
    "clock_nanosleep": 230, "exit_group": 231, "waitid": 247, "newfstatat": 262, "readlinkat": 267, "faccessat": 269,
    "pselect6": 270, "ppoll": 271, "set_robust_list": 273, "dup3": 292, "pipe2": 293, "preadv": 295, "prlimit64": 302,
    "getcpu": 309, "getrandom": 318, "memfd_create": 319, "statx": 332, "rseq": 334, "pidfd_open": 434, "clone3": 435,
    "close_range": 436, "faccessat2": 439, "statmount": 457, "listmount": 458,
}  # fmt: skip
# To name the points by. These are looked at more closely in `only_reads`, or count always.
_OTHERS = {
    "write": 1, "open": 2, "ioctl": 16, "pwrite64": 18, "writev": 20, "connect": 42, "sendto": 44, "sendmsg": 46,
    "execve": 59, "kill": 62, "fsync": 74, "fdatasync": 75, "truncate": 76, "ftruncate": 77, "rename": 82, "mkdir": 83,
    "rmdir": 84, "creat": 85, "link": 86, "unlink": 87, "symlink": 88, "chmod": 90, "fchmod": 91, "chown": 92,
    "fchown": 93, "lchown": 94, "setuid": 105, "setgid": 106, "setgroups": 116, "setresuid": 117, "setresgid": 119,
    "setfsuid": 122, "setfsgid": 123, "capset": 126, "mknod": 133, "prctl": 157, "chroot": 161, "mount": 165,
    "umount2": 166, "openat": 257, "mkdirat": 258, "mknodat": 259, "fchownat": 260, "unlinkat": 263, "renameat": 264,
    "linkat": 265, "symlinkat": 266, "fchmodat": 268, "unshare": 272, "utimensat": 280, "fallocate": 285, "setns": 308,
    "renameat2": 316, "bpf": 321, "open_tree": 428, "move_mount": 429, "fsopen": 430, "fsconfig": 431, "fsmount": 432,
    "openat2": 437, "pidfd_getfd": 438, "mount_setattr": 442,
}  # fmt: skip
_NAMES = {number: name for table in (HARMLESS, _OTHERS) for name, number in table.items()}

_LD_W_ABS, _JEQ_K, _JSET_K, _RET_K = 0x20, 0x15, 0x45, 0x06
_ALLOW, _TRACE = 0x7FFF0000, 0x7FF00000
_OFFSET_NUMBER, _OFFSET_THIRD_ARGUMENT = 0, 32
_TERMINAL_QUESTIONS = (0x5401, 0x802C542A, 0x5413)  # TCGETS, TCGETS2, TIOCGWINSZ
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC


def name_of(number: int) -> str:
    return _NAMES.get(number, f"call-{number}")


def filter_program() -> list[bytes]:
    """A seccomp filter: harmless calls go on, and openat(2) that opens for reading; the tracer sees all others."""
    lines = [_line(_LD_W_ABS, 0, 0, _OFFSET_NUMBER)]
    for number in HARMLESS.values():
        lines += [_line(_JEQ_K, 0, 1, number), _line(_RET_K, 0, 0, _ALLOW)]
    lines += [
        _line(_JEQ_K, 0, 3, _OTHERS["openat"]),
        _line(_LD_W_ABS, 0, 0, _OFFSET_THIRD_ARGUMENT),
        _line(_JSET_K, 1, 0, _WRITING),
        _line(_RET_K, 0, 0, _ALLOW),
        _line(_RET_K, 0, 0, _TRACE),
    ]
    return lines


def only_reads(name: str, arguments: tuple[int, ...], pid: int) -> bool:
    """Whether a call of a kind that can change something does not, by its arguments: a request to read over netlink."""
    match name:
        case "write" | "writev":
            return arguments[0] in (1, 2)  # what it tells the user
        case "openat2":
            (flags,) = struct.unpack("Q", _memory(pid, arguments[2], 8))
            return not flags & _WRITING
        case "sendto":
            length, kind = struct.unpack("IH", _memory(pid, arguments[1], 6))
            # RTM_GET… are 2 modulo 4: rtnetlink(7).
            return bool(length == arguments[2] and kind % 4 == 2)
        case "ioctl":
            return arguments[1] in _TERMINAL_QUESTIONS
    return False


def _memory(pid: int, address: int, count: int) -> bytes:
    fd = os.open(f"/proc/{pid}/mem", os.O_RDONLY)
    try:
        return os.pread(fd, count, address)
    finally:
        os.close(fd)


def _line(code: int, jump_true: int, jump_false: int, value: int) -> bytes:
    return struct.pack("HBBI", code, jump_true, jump_false, value)
