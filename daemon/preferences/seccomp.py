"""The system calls that model-written code may not make, as a filter for `bwrap --seccomp`.

Limits on the number of processes do not bind root, so that only a filter keeps code of a daemon run by root from
forking. Calls refused here answer "not permitted"; threads stay possible, within the memory limit.

Source: Linux, `Documentation/userspace-api/seccomp_filter.rst`; call numbers from `asm/unistd_64.h` (x86_64) and
`asm-generic/unistd.h` (aarch64).
"""

from __future__ import annotations

import struct

ALLOW, REFUSE, ABSENT, KILL = 0x7FFF0000, 0x00050001, 0x00050026, 0x80000000
"""Verdicts of the filter: allow; fail with EPERM; fail with ENOSYS; kill the process."""

_LOAD, _EQUAL, _AT_LEAST, _ANY_BIT, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_NUMBER, _ARCHITECTURE, _FIRST_ARGUMENT = 0, 4, 16
"""Offsets into `struct seccomp_data`; the first argument's lower half, as both machines are little-endian."""
_CLONE_THREAD = 0x00010000
_X32 = 0x40000000
_NEWER = 451
"""Calls from here on came after Linux 6.2, the table that this list was made from: absent until looked at."""
_CLONE3 = 435
"""Absent, not refused: its flags are behind a pointer, and the C library falls back on `clone` when it is absent."""

_SAME_EVERYWHERE = {
    **{"pidfd_send_signal": 424, "io_uring_setup": 425, "io_uring_enter": 426, "io_uring_register": 427},
    **{"open_tree": 428, "move_mount": 429, "fsopen": 430, "fsconfig": 431, "fsmount": 432, "fspick": 433},
    **{"pidfd_open": 434, "pidfd_getfd": 438, "mount_setattr": 442, "quotactl_fd": 443, "memfd_secret": 447},
}
_X86_64 = {
    **{"fork": 57, "vfork": 58, "socket": 41, "socketpair": 53, "ptrace": 101, "process_vm_readv": 310},
    **{"process_vm_writev": 311, "kcmp": 312, "mount": 165, "umount2": 166, "pivot_root": 155, "chroot": 161},
    **{"unshare": 272, "setns": 308, "bpf": 321, "perf_event_open": 298, "keyctl": 250, "add_key": 248},
    **{"request_key": 249, "userfaultfd": 323, "init_module": 175, "finit_module": 313, "delete_module": 176},
    **{"kexec_load": 246, "kexec_file_load": 320, "open_by_handle_at": 304, "name_to_handle_at": 303},
    **{"swapon": 167, "swapoff": 168, "reboot": 169, "syslog": 103, "acct": 163, "quotactl": 179},
    **{"settimeofday": 164, "clock_settime": 227, "adjtimex": 159, "clock_adjtime": 305, "iopl": 172},
    **{"ioperm": 173, "modify_ldt": 154, "uselib": 134, "sysfs": 139, "personality": 135, "vhangup": 153},
    **{"move_pages": 279, "mbind": 237, "set_mempolicy": 238, "migrate_pages": 256, "fanotify_init": 300},
    **{"lookup_dcookie": 212, "memfd_create": 319, "shmget": 29, "msgget": 68, "semget": 64, "mq_open": 240},
    **{"io_setup": 206, "timer_create": 222, "sethostname": 170, "setdomainname": 171},
}
_AARCH64 = {
    **{"socket": 198, "socketpair": 199, "ptrace": 117, "process_vm_readv": 270, "process_vm_writev": 271},
    **{"kcmp": 272, "mount": 40, "umount2": 39, "pivot_root": 41, "chroot": 51, "unshare": 97, "setns": 268},
    **{"bpf": 280, "perf_event_open": 241, "keyctl": 219, "add_key": 217, "request_key": 218},
    **{"userfaultfd": 282, "init_module": 105, "finit_module": 273, "delete_module": 106, "kexec_load": 104},
    **{"kexec_file_load": 294, "open_by_handle_at": 265, "name_to_handle_at": 264, "swapon": 224},
    **{"swapoff": 225, "reboot": 142, "syslog": 116, "acct": 89, "quotactl": 60, "settimeofday": 170},
    **{"clock_settime": 112, "adjtimex": 171, "clock_adjtime": 266, "personality": 92, "vhangup": 58},
    **{"move_pages": 239, "mbind": 235, "set_mempolicy": 237, "migrate_pages": 238, "fanotify_init": 262},
    **{"lookup_dcookie": 18, "memfd_create": 279, "shmget": 194, "msgget": 186, "semget": 190, "mq_open": 180},
    **{"io_setup": 0, "timer_create": 107, "sethostname": 161, "setdomainname": 162},
}
MACHINES = {"x86_64": (0xC000003E, 56, _X86_64), "aarch64": (0xC00000B7, 220, _AARCH64)}
"""`uname -m` -> (audit architecture, number of `clone`, refused calls)."""


def filter_program(machine: str) -> bytes | None:
    """The filter as an array of `struct sock_filter`; None for a machine whose calls are not known here."""
    if machine not in MACHINES:
        return None
    architecture, clone, refused = MACHINES[machine]
    code = [
        _step(_LOAD, _ARCHITECTURE),
        _step(_EQUAL, architecture, 1, 0),
        _step(_RETURN, KILL),
        _step(_LOAD, _NUMBER),
        *_verdict_if(_AT_LEAST, _X32, KILL),  # x86_64 calls under other numbers; no other machine has them
        *_verdict_if(_AT_LEAST, _NEWER, ABSENT),
        *_verdict_if(_EQUAL, _CLONE3, ABSENT),
    ]
    for number in sorted({**_SAME_EVERYWHERE, **refused}.values()):
        code += _verdict_if(_EQUAL, number, REFUSE)
    code += [
        _step(_EQUAL, clone, 0, 3),
        _step(_LOAD, _FIRST_ARGUMENT),
        _step(_ANY_BIT, _CLONE_THREAD, 1, 0),
        _step(_RETURN, REFUSE),
        _step(_RETURN, ALLOW),
    ]
    return b"".join(code)


def _verdict_if(comparison: int, value: int, verdict: int) -> list[bytes]:
    return [_step(comparison, value, 0, 1), _step(_RETURN, verdict)]


def _step(code: int, value: int, if_true: int = 0, if_false: int = 0) -> bytes:
    """One instruction; the jumps count instructions to skip."""
    return struct.pack("=HBBI", code, if_true, if_false, value)
