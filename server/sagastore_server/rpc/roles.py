"""Which role each method asks for."""

from __future__ import annotations

from google.protobuf.descriptor import MethodDescriptor

from sagastore_server.interfaces.access import Role

_STORAGE = "sagastore.v1.StorageService"
_ROLES = {
    **{f"{_STORAGE}.{name}": Role.READER for name in ("Get", "BatchGet", "List", "Search")},
    f"{_STORAGE}.Export": Role.READER,
    **{f"{_STORAGE}.{name}": Role.WRITER for name in ("Save", "BulkSave", "Delete")},
}


def role_for(method: MethodDescriptor) -> Role:
    """Return the least role that may call ``method``: ADMIN for what nobody thought of."""
    return _ROLES.get(method.full_name, Role.ADMIN)
