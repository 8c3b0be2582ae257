"""Runs a command under the restrictions of a systemd unit, without systemd.

Usage: ``python unit_sandbox.py UNIT COMMAND [ARGUMENT...]``.

It applies, in the process that becomes the command, what the kernel does for the options of
`APPLIED`: seccomp filters (by libseccomp, as systemd does), the capability bounding set,
`no_new_privs`, the file limit and the umask. The options of `NEEDS_SYSTEMD` restrict what the
process sees of files, devices and other processes; they need the mounts that systemd makes.
"""

from __future__ import annotations

import ctypes
import errno
import os
import resource
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

GROUPS = Path(__file__).parents[1] / "data/systemd-252-syscall-groups.txt"
LIBRARY = "libseccomp.so.2"

APPLIED = frozenset({
    "CapabilityBoundingSet", "LimitNOFILE", "LockPersonality", "MemoryDenyWriteExecute",
    "NoNewPrivileges", "RestrictAddressFamilies", "RestrictNamespaces", "RestrictRealtime",
    "SystemCallErrorNumber", "SystemCallFilter", "UMask",
})  # fmt: skip

NEEDS_SYSTEMD = frozenset({
    # Mounts, users and namespaces.
    "PrivateDevices", "PrivateNetwork", "PrivateTmp", "PrivateUsers", "ProtectControlGroups",
    "ProtectHome", "ProtectHostname", "ProtectKernelTunables", "ProtectProc", "ProtectSystem",
    "RemoveIPC",
    # System calls that are not in @system-service.
    "ProtectClock", "ProtectKernelLogs", "ProtectKernelModules",
    # Ambient capabilities are empty without it; the filter is for the native architecture only.
    "AmbientCapabilities", "SystemCallArchitectures",
    # Modes of new files, of which the server sets none of these bits.
    "RestrictSUIDSGID",
})  # fmt: skip

_ALLOW = 0x7FFF0000
_ERRNO = 0x00050000
_EQUAL, _GREATER, _NOT_EQUAL, _MASKED_EQUAL = 4, 6, 1, 7
_PR_CAPBSET_DROP, _PR_SET_NO_NEW_PRIVS = 24, 38
_FAMILIES = {"AF_UNIX": 1, "AF_INET": 2, "AF_INET6": 10}
_NAMESPACES = (0x20000000, 0x40000000, 0x8000000, 0x4000000, 0x10000000, 0x20000, 0x2000000, 0x80)
_LAST_FAMILY = 45
_PROT_WRITE, _PROT_EXEC, _SHM_EXEC = 2, 4, 0o100000


class _Comparison(ctypes.Structure):
    """``struct scmp_arg_cmp``."""

    _fields_ = (
        ("arg", ctypes.c_uint),
        ("op", ctypes.c_int),
        ("datum_a", ctypes.c_uint64),
        ("datum_b", ctypes.c_uint64),
    )


class Rule(NamedTuple):
    """A system call, what happens to it, and optionally a condition: argument, operator, data."""

    call: str
    action: int
    condition: tuple[int, ...] = ()


def options_of(unit: Path) -> dict[str, list[str]]:
    """Return the values of each option of the section ``Service``."""
    found: dict[str, list[str]] = {}
    section = ""
    for line in unit.read_text(encoding="utf-8").splitlines():
        if line.startswith("["):
            section = line
        elif section == "[Service]" and "=" in line and not line.startswith("#"):
            name, _, value = line.partition("=")
            found.setdefault(name, []).append(value)
    return found


def allowed_calls(values: Iterable[str]) -> set[str]:
    """Return the system calls that the values of ``SystemCallFilter`` allow.

    The first value decides that the filter lists what is allowed. Later ones add to the list,
    or remove from it if they begin with ``~`` (systemd.exec(5)).
    """
    groups = {}
    for line in GROUPS.read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            name, *members = line.split()
            groups[name] = members

    def flat(name: str) -> set[str]:
        if not name.startswith("@"):
            return {name}
        return {one for member in groups[name] for one in flat(member)}

    allowed: set[str] = set()
    for value in values:
        removes = value.startswith("~")
        named = {one for name in value.removeprefix("~").split() for one in flat(name)}
        allowed = allowed - named if removes else allowed | named
    # Always allowed: a process needs them to begin and to end.
    return allowed | flat("@default")


class Seccomp:
    """The filters of libseccomp."""

    def __init__(self) -> None:
        """Load the library.

        Raises:
            OSError: It is not installed.

        """
        self._library = ctypes.CDLL(LIBRARY, use_errno=True)
        self._library.seccomp_init.restype = ctypes.c_void_p
        self._library.seccomp_init.argtypes = [ctypes.c_uint32]
        self._library.seccomp_rule_add_array.argtypes = [
            *(ctypes.c_void_p, ctypes.c_uint32, ctypes.c_int),
            *(ctypes.c_uint, ctypes.POINTER(_Comparison)),
        ]
        self._library.seccomp_load.argtypes = [ctypes.c_void_p]

    def load(self, default: int, rules: Iterable[Rule]) -> None:
        """Add a filter to this process: ``default`` for all calls that no rule names."""
        context = self._library.seccomp_init(default)
        for rule in rules:
            number = self._library.seccomp_syscall_resolve_name(rule.call.encode())
            # Negative: a call of other architectures, or of a later kernel than the library's.
            if number >= 0:
                compare = (_Comparison * 1)(_Comparison(*rule.condition))
                count = 1 if rule.condition else 0
                self._check(
                    self._library.seccomp_rule_add_array(
                        context, rule.action, number, count, compare
                    )
                )
        self._check(self._library.seccomp_load(context))

    @staticmethod
    def _check(result: int) -> None:
        if result < 0:
            raise OSError(-result, os.strerror(-result))


def denied_arguments(options: dict[str, list[str]]) -> list[Rule]:
    """Return the rules of the options that deny system calls with certain arguments."""
    deny = _ERRNO | errno.EPERM
    rules = []
    if options.get("MemoryDenyWriteExecute") == ["yes"]:
        both = _PROT_WRITE | _PROT_EXEC
        rules += [
            Rule("mmap", deny, (2, _MASKED_EQUAL, both, both)),
            Rule("mprotect", deny, (2, _MASKED_EQUAL, _PROT_EXEC, _PROT_EXEC)),
            Rule("pkey_mprotect", deny, (2, _MASKED_EQUAL, _PROT_EXEC, _PROT_EXEC)),
            Rule("shmat", deny, (2, _MASKED_EQUAL, _SHM_EXEC, _SHM_EXEC)),
        ]
    if "RestrictAddressFamilies" in options:
        allowed = {_FAMILIES[name] for name in options["RestrictAddressFamilies"][0].split()}
        unsupported = _ERRNO | errno.EAFNOSUPPORT
        rules += [
            Rule("socket", unsupported, (0, _EQUAL, family))
            for family in range(_LAST_FAMILY + 1)
            if family not in allowed
        ]
        rules.append(Rule("socket", unsupported, (0, _GREATER, _LAST_FAMILY)))
    if options.get("RestrictNamespaces") == ["yes"]:
        # Filters cannot read the arguments of clone3, so libraries are made to use clone.
        rules += [Rule("clone3", _ERRNO | errno.ENOSYS), Rule("setns", deny), Rule("unshare", deny)]
        rules += [Rule("clone", deny, (0, _MASKED_EQUAL, one, one)) for one in _NAMESPACES]
    if options.get("RestrictRealtime") == ["yes"]:
        rules += [Rule("sched_setscheduler", deny, (1, _EQUAL, policy)) for policy in (1, 2, 6)]
    if options.get("LockPersonality") == ["yes"]:
        rules.append(Rule("personality", deny, (0, _NOT_EQUAL, 0xFFFFFFFF)))
    return rules


def restrict(options: dict[str, list[str]]) -> None:
    """Apply the options to this process, for good."""
    libc = ctypes.CDLL(None, use_errno=True)
    os.umask(int(options["UMask"][-1], 8))
    if "LimitNOFILE" in options:
        most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        limit = min(int(options["LimitNOFILE"][-1]), most)
        resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))
    if os.geteuid() == 0 and options["CapabilityBoundingSet"] == [""]:
        # The command then starts without capabilities, although it is of the user root.
        capability = 0
        while libc.prctl(_PR_CAPBSET_DROP, capability, 0, 0, 0) == 0:
            capability += 1
    if options["NoNewPrivileges"] == ["yes"]:
        libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    seccomp = Seccomp()
    seccomp.load(_ALLOW, denied_arguments(options))
    # Last, because it denies what the lines above need.
    error = getattr(errno, options["SystemCallErrorNumber"][-1])
    calls = allowed_calls(options["SystemCallFilter"])
    seccomp.load(_ERRNO | error, [Rule(call, _ALLOW) for call in sorted(calls)])


if __name__ == "__main__":
    restrict(options_of(Path(sys.argv[1])))
    os.execv(sys.argv[2], sys.argv[2:])  # noqa: S606 - the command under test
