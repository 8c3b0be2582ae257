"""What an operator does, by the client library."""

from __future__ import annotations

from sagastore import AsyncClient, Migration, Phase

ACCEPTED = {"QUARANTINE_NOT_ACCEPTED"}
WRONG = {"VERIFICATION_MISMATCH", "SHADOW_READS_DIFFER", "INDEXES_NOT_VALID", "NOT_THE_HOLDER"}
"""What no waiting helps against."""


async def change(client: AsyncClient, phase: Phase) -> Migration:
    """Change the phase, accepting what is in quarantine."""
    return await client.migration.change_phase(phase, accept_quarantine=True)


async def until_ready(client: AsyncClient) -> Migration:
    """Wait until nothing but the operator's consent stands before the next phase."""
    async for migration in client.migration.watch():
        reasons = {blocker.reason for blocker in migration.blockers_to_next}
        if reasons & WRONG:
            raise AssertionError(f"the stores are not equal: {migration.blockers_to_next}")
        if reasons <= ACCEPTED:
            return migration
    raise AssertionError("the watch has ended")


async def go_to(client: AsyncClient, phase: Phase) -> None:
    """Go forward, or back, to ``phase``, waiting for what each step needs."""
    while (now := (await client.migration.get()).phase) is not phase:
        if phase > now:
            await until_ready(client)
        await change(client, Phase(now + 1 if phase > now else now - 1))
