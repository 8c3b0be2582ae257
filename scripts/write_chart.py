"""Generates the parts of the Helm chart that repeat other files.

    python -m scripts.write_chart

The schema of the values gets the settings of the server, so that `helm` refuses a wrong name or
value; the alerts are copied, because a chart can only contain files of its folder.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from sagastore_server.config.reference import json_schema
from sagastore_server.config.settings import Settings

ROOT = Path(__file__).parents[1]
CHART = ROOT / "deploy" / "helm" / "sagastore"
SCHEMA = CHART / "values.schema.json"
ALERTS = CHART / "files" / "alerts.yml"
ALERTS_SOURCE = ROOT / "deploy" / "prometheus" / "alerts.yml"

MANAGED = (
    "listen", "allow_insecure", "sqlite", "postgres", "tls_cert", "tls_key", "tls_client_ca",
    "access", "ops_listen", "ops_allow_insecure", "forward", "forward_to", "forward_ca",
    "forward_cert", "forward_key", "advertise",
)  # fmt: skip
"""Settings that the templates set, so that they are no values of the chart."""


def generated() -> dict[Path, str]:
    """Return the content of every generated file."""
    schema: dict[str, Any] = json.loads(SCHEMA.read_text(encoding="utf-8"))
    settings = json_schema(Settings)["properties"]
    schema["properties"]["settings"] = {
        "type": "object",
        "additionalProperties": False,
        # The schema of the file also accepts names with hyphens; one form is enough here.
        "properties": {
            name: settings[name] for name in Settings.model_fields if name not in MANAGED
        },
    }
    return {
        SCHEMA: json.dumps(schema, indent=2, ensure_ascii=False) + "\n",
        ALERTS: ALERTS_SOURCE.read_text(encoding="utf-8"),
    }


def main() -> None:
    """Write the files that have changed."""
    for path, text in generated().items():
        changed = path.read_text(encoding="utf-8") != text
        if changed:
            path.write_text(text, encoding="utf-8")
        sys.stdout.write(f"{path.name} {'updated' if changed else 'is up to date'}\n")


if __name__ == "__main__":
    main()
