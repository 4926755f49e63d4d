"""What was played, as rows: returns of policies, and the package versions and code of the environment of each.

A row of another table without an environment was made before this was kept. What an environment is made of is found out
by those who make one.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, NamedTuple

from ..catalog import Connection, insert_rows
from ..content_hash import canonical_json


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


def load_returns(con: Connection, environment_sha256: str, policies: Mapping[str, str]) -> dict[str, list[float]]:
    """Evaluation -> returns of its episodes, of all evaluations of some policies in an environment.

    Args:
        con: a connection to the catalog.
        environment_sha256: the environment as it is now.
        policies: id -> hash; a policy that had another role under an earlier name has the hash in its id.
    """
    rows = con.execute(
        """SELECT evaluation_id, returns FROM evaluations
           WHERE environment_sha256 = $1
             AND (policy_id IN (SELECT unnest($2)) OR right(policy_id, 12) IN (SELECT unnest($3)))""",
        [environment_sha256, list(policies), [sha256[:12] for sha256 in policies.values()]],
    ).fetchall()
    return dict(rows)
