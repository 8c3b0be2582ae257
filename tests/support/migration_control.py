"""Operator actions through the client library."""

from __future__ import annotations

from sagastore import AsyncClient, Migration, Phase

ACCEPTED = {"QUARANTINE_NOT_ACCEPTED"}
WRONG = {"VERIFICATION_MISMATCH", "SHADOW_READS_DIFFER", "INDEXES_NOT_VALID", "NOT_THE_HOLDER"}
"""Blockers that do not resolve by waiting."""


async def change(client: AsyncClient, phase: Phase) -> Migration:
    """Change the phase and accept the quarantine."""
    return await client.migration.change_phase(phase, accept_quarantine=True)


async def until_ready(client: AsyncClient) -> Migration:
    """Wait until only the operator's consent is missing for the next phase."""
    async for migration in client.migration.watch():
        reasons = {blocker.reason for blocker in migration.blockers_to_next}
        if reasons & WRONG:
            raise AssertionError(f"the stores are not equal: {migration.blockers_to_next}")
        if reasons <= ACCEPTED:
            return migration
    raise AssertionError("the migration status stream ended")


async def go_to(client: AsyncClient, phase: Phase) -> None:
    """Advance or step back to ``phase``, waiting for the preconditions of each step."""
    while (now := (await client.migration.get()).phase) is not phase:
        if phase > now:
            await until_ready(client)
        await change(client, Phase(now + 1 if phase > now else now - 1))
