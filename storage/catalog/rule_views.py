"""SQL that finds the steps that corrective rules match. It is written from checked conditions, never from their text.

The view `ruled_steps` has one row for each rule and step that it matches, so that rules can be asked like labels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from ..errors import BadInput
from ..predicates import read_predicate
from ..schema import Space
from .opinions import same_action

STEP = "step"
"""What a condition may speak of beside the components: the number of the step."""


class RuledDataset(NamedTuple):
    """What the view needs to know of a dataset and its rules."""

    dataset_id: str
    action_space: Space
    columns: Sequence[str]  # of the observation's components, see `views.component_columns`
    rules: Sequence[tuple[str, str]]  # id and condition of each


def match_steps(dataset_id: str, columns: Sequence[str], rules: Sequence[tuple[str, str]]) -> str:
    """A query for `dataset_id`, `episode_id`, `step` and `rule_id`: each rule beside each step that it matches.

    Args:
        dataset_id: the dataset.
        columns: of its observations' components.
        rules: id and canonical condition of each, at least one.

    Raises:
        BadInput: if a condition is not allowed.
    """
    known = [*columns, STEP]
    cases = [
        f"CASE WHEN {read_predicate(predicate, known, is_canonical=True).sql} THEN {_text(rule_id)} END"
        for rule_id, predicate in rules
    ]
    named = "".join(f", observation[{place}] AS {_identifier(column)}" for place, column in enumerate(columns, 1))
    return f"""SELECT dataset_id, episode_id, "at step" AS step, rule_id FROM (
    SELECT dataset_id, episode_id, "at step", unnest([{", ".join(cases)}]) AS rule_id
    FROM (SELECT dataset_id, episode_id, step AS "at step", step::DOUBLE AS {STEP}{named}
          FROM steps WHERE dataset_id = {_text(dataset_id)} AND action_vector IS NOT NULL)
) WHERE rule_id IS NOT NULL"""


def rule_view(datasets: Sequence[RuledDataset]) -> str:
    """The statement that makes `ruled_steps`; a rule whose condition is not allowed any more matches nothing there.

    `suggested_action` is complete: where a rule leaves a dimension open, it is the logged one. `decides` says whether
    it is the first rule of its list that matches the step, whose action is the label.
    """
    allowed = [(d, [rule for rule in d.rules if is_allowed(rule[1], d.columns)]) for d in datasets]
    matched = [_NO_MATCHES, *(match_steps(d.dataset_id, d.columns, rules) for d, rules in allowed if rules)]
    agreements = "".join(
        f"\n        WHEN {_text(d.dataset_id)} THEN {same_action(d.action_space, 'suggested_action', 'action_vector')}"
        for d in datasets
    )
    agrees = f"CASE dataset_id{agreements} END" if agreements else "NULL::BOOLEAN"
    return f"""CREATE OR REPLACE VIEW ruled_steps AS
WITH matched AS (
{" UNION ALL ".join(matched)}
), taught AS (
    SELECT rules.* EXCLUDE (suggested_action, created_at), matched.episode_id, matched.step,
        list_transform(list_zip(rules.suggested_action, steps.action_vector), lambda pair: coalesce(pair[1], pair[2]))
            AS suggested_action,
        steps.observation, steps.action, steps.action_vector, steps.action_name, steps.reward
    FROM matched JOIN rules USING (dataset_id, rule_id) JOIN steps USING (dataset_id, episode_id, step)
)
SELECT *, {agrees} AS agrees, row_number() OVER (
    PARTITION BY run_id, request_id, dataset_id, episode_id, step ORDER BY position, rule_id
) = 1 AS decides
FROM taught"""


_NO_MATCHES = (
    "SELECT NULL::VARCHAR AS dataset_id, NULL::BIGINT AS episode_id, NULL::INTEGER AS step, NULL::VARCHAR AS rule_id "
    "WHERE false"
)


def is_allowed(predicate: str, columns: Sequence[str]) -> bool:
    """Whether a stored condition keeps every rule."""
    try:
        read_predicate(predicate, [*columns, STEP], is_canonical=True)
    except BadInput:
        return False
    return True


def _text(value: str) -> str:
    return "'" + value.replace("'", "''") + "'"


def _identifier(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'
