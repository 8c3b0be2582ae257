"""The command that an operator should run next."""

from __future__ import annotations

from typing import NamedTuple

from sagastore import BackfillState, Migration, Phase

__all__ = ["NextStep", "next_step"]

_WAIT = "watch --until-ready"

# The command for each blocker; the first one present decides. Problems outside the
# service come first, because other commands do not help before they are solved.
_COMMANDS = {
    "NOT_THE_HOLDER": "",
    "POSTGRES_NOT_USABLE": "",
    "TARGET_NOT_EMPTY": "",
    "OTHER_MIGRATION": "",
    "SOURCE_IS_OLD": "",
    "POSTGRES_UNAVAILABLE": _WAIT,
    "POSTGRES_BEHIND": _WAIT,
    "JOURNAL_NOT_APPLIED": _WAIT,
    "BACKFILL_NOT_DONE": "watch --until-backfill-done",
    "SEARCH_INDEX_NOT_READY": _WAIT,
    "INDEXES_NOT_VALID": "to dual-write",
    "VERIFICATION_MISMATCH": "verify --repair",
    "NOT_VERIFIED": "verify",
    "SHADOW_READS_DIFFER": "verify",
    "JOURNAL_LAG": _WAIT,
    "QUARANTINE_NOT_ACCEPTED": "quarantine",
}


class NextStep(NamedTuple):
    """Commands and a remark."""

    command: str
    """The arguments of `sagastore migrate`; empty if no command helps."""
    remark: str = ""
    """Text to print after the command."""
    then: str = ""
    """The arguments of the command after it; empty if there is none."""


def next_step(state: Migration) -> NextStep:
    """Return the next step of the migration."""
    if state.phase is Phase.UNKNOWN:
        return NextStep("", "update sagastore")
    if state.phase is Phase.POSTGRES_ONLY:
        return NextStep("", "nothing: the migration is complete")
    following = Phase(state.phase + 1).label
    reasons = {blocker.reason for blocker in state.blockers_to_next}
    if not reasons:
        last = Phase(state.phase + 1) is Phase.POSTGRES_ONLY
        return NextStep(f"to {following}", "cannot be reversed" if last else "")
    return _for_blockers(state, reasons, following)


def _for_blockers(state: Migration, reasons: set[str], following: str) -> NextStep:
    reason = next((known for known in _COMMANDS if known in reasons), "")
    command = _COMMANDS.get(reason, "")
    if reason == "BACKFILL_NOT_DONE":
        if state.backfill.state is BackfillState.PAUSED:
            command = "resume"
        elif state.phase is not Phase.BACKFILL:
            command = "to backfill"
    elif reason in {"NOT_VERIFIED", "VERIFICATION_MISMATCH", "SHADOW_READS_DIFFER"}:
        command = _WAIT if state.verifying is not None else command
    elif reason == "QUARANTINE_NOT_ACCEPTED":
        return NextStep(command, then=f"to {following} --accept-quarantine")
    if command:
        return NextStep(command)
    return NextStep(f"to {following} --dry-run", "when the problem is solved")
