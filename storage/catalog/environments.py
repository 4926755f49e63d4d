"""What the catalog keeps of environments: package versions and code with which episodes were played.

A row of another table without an environment was made before this was kept. What an environment is made of is found out
by those who make one.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, NamedTuple

from ..content_hash import canonical_json
from .connection import Connection, insert_rows

ENVIRONMENTS = """
CREATE TABLE environments (
    environment_sha256 VARCHAR PRIMARY KEY,
    env_id VARCHAR NOT NULL,
    env_kwargs JSON NOT NULL,
    versions JSON NOT NULL,
    code JSON NOT NULL,
    created_at TIMESTAMPTZ NOT NULL DEFAULT now()
);
ALTER TABLE evaluations ADD COLUMN environment_sha256 VARCHAR;
ALTER TABLE comparisons ADD COLUMN environment_sha256 VARCHAR;
ALTER TABLE label_replays ADD COLUMN environment_sha256 VARCHAR;
"""


class KnownEnvironment(NamedTuple):
    """An environment as it was when something was played in it."""

    environment_sha256: str
    versions: Mapping[str, str]  # package -> version
    code: Mapping[str, str]  # module or file -> sha256


def insert_environment(con: Connection, known: KnownEnvironment, env_id: str, env_kwargs: Mapping[str, Any]) -> None:
    """Keep an environment; one that is there already stays as it is."""
    insert_rows(con, "environments", [{**known._asdict(), "env_id": env_id, "env_kwargs": dict(env_kwargs)}])


def list_environments(con: Connection, env_id: str, env_kwargs: Mapping[str, Any]) -> list[KnownEnvironment]:
    """What an environment was when it was played in, the newest first."""
    rows = con.execute(
        """SELECT environment_sha256, versions, code FROM environments WHERE env_id = ? AND env_kwargs::VARCHAR = ?
           ORDER BY created_at DESC, environment_sha256""",
        [env_id, canonical_json(dict(env_kwargs))],
    ).fetchall()
    return [KnownEnvironment(sha256, json.loads(versions), json.loads(code)) for sha256, versions, code in rows]
