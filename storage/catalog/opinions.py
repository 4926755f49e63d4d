"""Views of several opinions about the same step: every pair of them, and what most of them say.

Nothing is overwritten by a majority: annotations stay rows of their own, and these are questions about them. A reply
that two runs share is one opinion, though each of them has its rows.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from ..schema import Space

AGREEMENT_SHARE = 0.05
"""A suggested number agrees with another one within this share of its range."""

_OPINION = "coalesce({0}.request_id, {0}.annotation_id)"
_PAIR_TYPES = (
    "dataset_id VARCHAR, episode_id BIGINT, step INTEGER, annotation_id VARCHAR, run_id VARCHAR, model VARCHAR, "
    "confidence DOUBLE, opinion VARCHAR, other_id VARCHAR, other_run_id VARCHAR, other_model VARCHAR, "
    "other_opinion VARCHAR, agree BOOLEAN"
)
_STEP_TYPES = "dataset_id VARCHAR, episode_id BIGINT, step INTEGER, majority_action DOUBLE[], majority_label VARCHAR"
_TALLY_TYPES = f"{_STEP_TYPES}, opinions BIGINT, majority_share DOUBLE, agreement DOUBLE"

_MAJORITIES = """
CREATE OR REPLACE VIEW majorities AS
SELECT dataset_id, episode_id, step, majority_action, majority_label FROM tallies
"""
_LABEL_AGREEMENT = """
CREATE OR REPLACE VIEW label_agreement AS
WITH counted AS (
    SELECT dataset_id, episode_id, step, count(DISTINCT run_id) AS runs, count(DISTINCT model) AS models,
        avg(confidence) AS confidence, avg(agrees::DOUBLE) AS confirmation_share
    FROM annotated_steps WHERE suggested_action IS NOT NULL GROUP BY ALL
)
SELECT dataset_id, episode_id, step, opinions, runs, models, agreement, majority_label, majority_action,
    majority_share, confirmation_share, confidence
FROM counted LEFT JOIN tallies USING (dataset_id, episode_id, step)
"""


def opinion_views(spaces: Sequence[tuple[str, Space]]) -> list[str]:
    """Statements that make the views of opinions, in an order in which each finds what it needs.

    - `opinion_pairs`: each two suggestions for one step, in both orders, and whether they agree.
    - `tallies`: per step how many opinions there are, the suggestion of most (ties: higher summed confidence) or the
      median of each number, the share of opinions that agree with it, and the share of pairs that agree, which is null
      for a single opinion.
    - `majorities`: that suggestion alone.
    - `majority_votes`: per suggestion whether it agrees with that.
    - `label_agreement`: one row per annotated step, which is what people query.

    Args:
        spaces: id and action space of every dataset.
    """
    pairs = [_no_rows(_PAIR_TYPES), *(_pairs(name, space) for name, space in spaces)]
    tallies = [_no_rows(_TALLY_TYPES), *((_count if s.is_discrete else _measure)(name, s) for name, s in spaces)]
    votes = [_no_rows("annotation_id VARCHAR, opinion VARCHAR, " + _STEP_TYPES + ", with_majority BOOLEAN")]
    votes += [_votes(name, space) for name, space in spaces]
    return [
        _view("opinion_pairs", pairs),
        _view("tallies", tallies),
        _MAJORITIES,
        _view("majority_votes", votes),
        _LABEL_AGREEMENT,
    ]


def same_action(space: Space, left: str, right: str) -> str:
    """SQL that says whether two actions, each a DOUBLE[], agree.

    Args:
        space: of the actions.
        left: SQL of the first.
        right: SQL of the second; where a number has no bounds, its size sets the tolerance.
    """
    if space.is_discrete:
        return f"{left}[1] = {right}[1]"
    return " AND ".join(
        f"abs({left}[{place}] - {right}[{place}]) <= {_tolerance(space, place, right)}"
        for place in range(1, space.size + 1)
    )


def _pairs(dataset_id: str, space: Space) -> str:
    agree = same_action(space, "one.suggested_action", "other.suggested_action")
    return f"""SELECT dataset_id, episode_id, step, one.annotation_id, one.run_id, one.model, one.confidence,
    {_OPINION.format("one")} AS opinion, other.annotation_id AS other_id, other.run_id AS other_run_id,
    other.model AS other_model, {_OPINION.format("other")} AS other_opinion, {agree} AS agree
FROM annotations AS one JOIN annotations AS other USING (dataset_id, episode_id, step)
WHERE dataset_id = {_text(dataset_id)} AND {_OPINION.format("one")} <> {_OPINION.format("other")}
    AND one.suggested_action IS NOT NULL AND other.suggested_action IS NOT NULL"""


def _count(dataset_id: str, space: Space) -> str:
    """Tallies of discrete actions: votes are counted, so no opinion is compared with another one."""
    return f"""SELECT {_text(dataset_id)} AS dataset_id, episode_id, step, [best.said] AS majority_action,
    best.label AS majority_label, opinions::BIGINT AS opinions, most / opinions AS majority_share,
    pairs / nullif(opinions * (opinions - 1), 0) AS agreement
FROM (
    SELECT episode_id, step, sum(votes) AS opinions, max(votes) AS most, sum(votes * (votes - 1)) AS pairs,
        arg_max({{said: said, label: label}}, (votes, confidence, -said)) AS best
    FROM (
        SELECT episode_id, step, said, any_value(label) AS label, count(*) AS votes, sum(confidence) AS confidence
        FROM (
            SELECT episode_id, step, suggested_action[1] AS said, hash({_OPINION.format("annotations")}) AS opinion,
                any_value(suggested_label) AS label, any_value(coalesce(confidence, 1)) AS confidence
            FROM annotations WHERE dataset_id = {_text(dataset_id)} AND suggested_action IS NOT NULL
            GROUP BY episode_id, step, suggested_action[1], opinion
        ) GROUP BY episode_id, step, said
    ) GROUP BY episode_id, step
)"""


def _measure(dataset_id: str, space: Space) -> str:
    """Tallies of continuous actions: medians, and what lies within the tolerance of the median or of each other."""
    opinion, own = _OPINION.format("annotations"), f"WHERE dataset_id = {_text(dataset_id)}"
    medians = ", ".join(f"median(suggested_action[{place}])" for place in range(1, space.size + 1))
    agree = same_action(space, "suggested_action", "majority_action")
    return f"""SELECT {_text(dataset_id)} AS dataset_id, episode_id, step, majority_action,
    NULL::VARCHAR AS majority_label, opinions, majority_share, agreement
FROM (
    SELECT episode_id, step, any_value(majority_action) AS majority_action, count(*) AS opinions,
        avg(({agree})::DOUBLE) AS majority_share
    FROM (SELECT DISTINCT ON (episode_id, step, {opinion}) * FROM annotations
          {own} AND suggested_action IS NOT NULL) AS suggested
    JOIN (SELECT episode_id, step, [{medians}] AS majority_action
          FROM (SELECT DISTINCT ON (episode_id, step, {opinion}) * FROM annotations
                {own} AND suggested_action IS NOT NULL)
          GROUP BY episode_id, step) AS middle USING (episode_id, step)
    GROUP BY episode_id, step
) LEFT JOIN (
    SELECT episode_id, step, avg(agree::DOUBLE) AS agreement
    FROM (SELECT DISTINCT episode_id, step, opinion, other_opinion, agree FROM opinion_pairs {own})
    GROUP BY episode_id, step
) USING (episode_id, step)"""


def _votes(dataset_id: str, space: Space) -> str:
    agree = same_action(space, "annotations.suggested_action", "majorities.majority_action")
    opinion = _OPINION.format("annotations")
    return f"""SELECT annotations.annotation_id, {opinion} AS opinion, dataset_id, episode_id, step, majority_action,
    majority_label, {agree} AS with_majority
FROM annotations JOIN majorities USING (dataset_id, episode_id, step)
WHERE dataset_id = {_text(dataset_id)} AND suggested_action IS NOT NULL"""


def _tolerance(space: Space, place: int, reference: str) -> str:
    low, high = (bounds[place - 1] if bounds else math.inf for bounds in (space.low, space.high))
    if math.isfinite(low) and math.isfinite(high):
        return repr(AGREEMENT_SHARE * (high - low))
    return f"{AGREEMENT_SHARE} * greatest(1, abs({reference}[{place}]))"


def _no_rows(columns: str) -> str:
    typed = (column.rsplit(" ", 1) for column in columns.split(", "))
    return "SELECT " + ", ".join(f"NULL::{kind} AS {name}" for name, kind in typed) + " WHERE false"


def _view(name: str, selects: Sequence[str]) -> str:
    return f"CREATE OR REPLACE VIEW {name} AS\n" + "\nUNION ALL BY NAME\n".join(selects)


def _text(value: str) -> str:
    return "'" + value.replace("'", "''") + "'"
