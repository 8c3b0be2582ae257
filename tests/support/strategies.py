"""Hypothesis strategies; importing this module, as ``tests/conftest.py`` does, selects the profile.

``SAGASTORE_TEST_PROFILE=thorough`` runs many more examples.
"""

from __future__ import annotations

import os

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

# No check of time: on a slow and busy machine one example can take many seconds.
_COMMON = {
    "deadline": None,
    "suppress_health_check": [HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
}

settings.register_profile("quick", settings(max_examples=40, **_COMMON))  # type: ignore[arg-type]
settings.register_profile("thorough", settings(max_examples=2000, **_COMMON))  # type: ignore[arg-type]
_PROFILE = os.environ.get("SAGASTORE_TEST_PROFILE", "quick")
settings.load_profile(_PROFILE)

QUICK = _PROFILE == "quick"

storable_text = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\x00"))
"""Text that both stores can hold."""
