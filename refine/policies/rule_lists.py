"""What a list of rules gives in a batch of states, computed by NumPy: for labels, for placebos, and for playing.

The views of the catalog (`storage/catalog/rule_views.py`) say the same of stored steps in SQL.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from storage.annotations import Rule, RuleList
from storage.catalog import component_columns
from storage.disk import UnreadableError, decode_json
from storage.errors import BadInput, DamagedStore
from storage.expressions import PREVIOUS, Expression
from storage.formulas import STEP, FormulaReader, Term
from storage.schema import Array, Manifest, Space, canonical_json

from .mlp import RESTORE, SPEC_FILE, Acts, MlpPolicy, Mode, Past, action_bounds


class States(NamedTuple):
    """N states as rules see them."""

    observations: Array  # (N, n), or (N,) when discrete
    previous: Array  # the observations one step before, of the same shape; anything in step 0
    steps: NDArray[np.integer[Any]]  # (N,) number of the step


class RuleDecisions(NamedTuple):
    """What a list says in N states."""

    rules: NDArray[np.int64]  # (N,) the rule that decides; -1: none
    actions: NDArray[np.float64]  # (N, m); NaN: this dimension stays unchanged
    has_value: NDArray[np.bool_]  # (N,) false where no rule decides, or a formula of the one that does has no value


@dataclass(frozen=True)
class CompiledRules:
    """A list of rules that is ready to be asked.

    Raises:
        BadInput: if an expression is not allowed, or an action is none of the action space.
    """

    listed: RuleList
    component_names: tuple[str, ...]
    action_space: Space
    reads: Mapping[str, tuple[int, float]] | None = None  # for a placebo, what columns read but in conditions

    def __post_init__(self) -> None:
        for rule in self.listed.rules:
            _check_action(rule.suggested_action, rule.formulas, rule.predicate, self.action_space)

    @classmethod
    def of(cls, listed: RuleList, manifest: Manifest) -> CompiledRules:
        """A list, to be asked about the environment of a dataset; raises as the class does."""
        return cls(listed, tuple(manifest.component_names), manifest.action_space)

    def say(self, states: States) -> RuleDecisions:
        """Ask it in some states."""
        values = self.values(states)
        rules = self.decide(values)
        actions, has_value = self.act(rules, values if self.reads is None else self.values(states, self.reads))
        return RuleDecisions(rules, actions, has_value)

    def check(self) -> None:
        """Read every expression.

        Raises:
            BadInput: quoting the first that is not allowed.
        """
        if len(self._columns) < max((place for place, _ in (self.reads or {}).values()), default=0) + 1:
            raise BadInput("A placebo reads a component that does not exist.")
        _ = self._needed

    def values(self, states: States, columns: Mapping[str, tuple[int, float]] | None = None) -> dict[str, Array]:
        """The numbers that its expressions use, (N,) each, terms included.

        Args:
            states: N of them.
            columns: for a placebo, the component that each column reads, and its factor; each its own when None.
        """
        return self._values(states, self._needed, columns)

    def potential(self, states: States) -> NDArray[np.float64]:
        """How good N states are, (N,); NaN or infinite where that has no value, and all NaN without a potential."""
        if self.listed.potential is None:
            return np.full(len(states.steps), np.nan)
        read = self._reader.formula(self.listed.potential, is_canonical=True)
        values = self._values(states, self._reader.needs([read]), self.reads)
        return np.array(np.broadcast_to(read.compute(values), len(states.steps)), np.float64)

    def _values(
        self, states: States, needed: frozenset[str], columns: Mapping[str, tuple[int, float]] | None
    ) -> dict[str, Array]:
        seen = np.asarray(states.observations).reshape(len(states.steps), -1)
        before = np.asarray(states.previous).reshape(seen.shape)
        read = {name: (place, 1.0) for place, name in enumerate(self._columns)} | dict(columns or {})
        values: dict[str, Array] = {STEP: np.asarray(states.steps, np.float64)}
        for name, (place, factor) in read.items():
            if name in needed:
                values[name] = factor * seen[:, place].astype(np.float64)
            if PREVIOUS + name in needed:
                shifted = factor * before[:, place].astype(np.float64)
                values[PREVIOUS + name] = np.where(np.asarray(states.steps) > 0, shifted, np.nan)
        for name, term in self._reader.terms.items():
            if name in needed:
                values[name] = np.broadcast_to(term.compute(values), len(states.steps))
        return values

    def decide(self, values: Mapping[str, Array]) -> NDArray[np.int64]:
        """The first rule whose condition holds, (N,); -1 where there is none."""
        deciding = np.full(len(values[STEP]), -1, np.int64)
        for number in reversed(range(len(self._predicates))):
            deciding[np.broadcast_to(self._predicates[number].compute(values), len(deciding))] = number
        return deciding

    def act(self, rules: NDArray[np.int64], values: Mapping[str, Array]) -> tuple[Array, NDArray[np.bool_]]:
        """The actions of given rules, (N, m), and whether there is one, (N,).

        Args:
            rules: (N,) which rule acts; -1: none.
            values: of the same states.
        """
        actions = np.where((rules >= 0)[:, None], self.constants[rules], np.nan)
        has_value = rules >= 0
        for number, formulas in enumerate(self._formulas):
            rows = np.flatnonzero(rules == number) if any(formulas) else ()
            for place, formula in enumerate(formulas):
                if formula is not None and len(rows):
                    there = {name: values[name][rows] for name in formula.columns}
                    actions[rows, place] = np.broadcast_to(formula.compute(there), len(rows))
                    has_value[rows] &= np.isfinite(actions[rows, place])
        if not self.action_space.is_discrete:
            actions = np.clip(actions, *action_bounds(self.action_space))
        return actions, has_value

    @property
    def needs_past(self) -> bool:
        """Whether it reads the number of the step, or a component one step earlier."""
        return any(name == STEP or name.startswith(PREVIOUS) for name in self._needed)

    @cached_property
    def constants(self) -> NDArray[np.float64]:
        """(R, m), what each rule says in numbers; NaN where it leaves a dimension open or computes it."""
        rows = [[np.nan if x is None else x for x in rule.suggested_action] for rule in self.listed.rules]
        return np.array(rows, np.float64).reshape(len(rows), self.action_space.size)

    @cached_property
    def confidences(self) -> NDArray[np.float64]:
        """(R,); a missing one counts as 1."""
        return np.array([1.0 if rule.confidence is None else rule.confidence for rule in self.listed.rules])

    @cached_property
    def speaks(self) -> NDArray[np.bool_]:
        """(R, m), whether a rule says anything about a dimension."""
        nothing = [None] * self.action_space.size
        computed = [[bool(text) for text in rule.formulas or nothing] for rule in self.listed.rules]
        return np.isfinite(self.constants) | np.array(computed, np.bool_).reshape(self.constants.shape)

    @property
    def content(self) -> dict[str, Any]:
        """Everything that decides what it says, as JSON has it."""
        return {"component_names": self.component_names, "reads": self.reads, **self.listed.content}

    @cached_property
    def _columns(self) -> tuple[str, ...]:
        return tuple(component_columns(self.component_names))

    @cached_property
    def _reader(self) -> FormulaReader:
        return FormulaReader.of(self._columns, self.listed.terms, is_canonical=True)

    @cached_property
    def _predicates(self) -> list[Expression]:
        return [self._reader.predicate(rule.predicate, is_canonical=True) for rule in self.listed.rules]

    @cached_property
    def _formulas(self) -> list[list[Expression | None]]:
        return [
            [self._reader.formula(text, is_canonical=True) if text else None for text in rule.formulas or ()]
            for rule in self.listed.rules
        ]

    @cached_property
    def _needed(self) -> frozenset[str]:
        computed = [formula for formulas in self._formulas for formula in formulas if formula is not None]
        return self._reader.needs([*self._predicates, *computed])

    def __getstate__(self) -> dict[str, Any]:
        return {name: self.__dict__[name] for name in ("listed", "component_names", "action_space", "reads")}


@dataclass(frozen=True)
class RulePolicy:
    """Does what lists of rules say, and elsewhere what a network does.

    Of several lists the first one that says something acts. The network acts where no rule decides, where the formula
    of the rule that decides has no value, and in the dimensions that a rule leaves open. There are no outputs.
    """

    lists: tuple[CompiledRules, ...]  # of the network's spaces
    baseline: MlpPolicy
    spec: str = "rules"  # how it was named
    output_kind: None = None

    @property
    def modes(self) -> tuple[Mode, ...]:
        """Those of the network."""
        return ("greedy", "sampled") if self.baseline.is_stochastic else ("greedy",)

    @cached_property
    def needs_past(self) -> bool:
        """Whether it has to be given what came before."""
        return any(compiled.needs_past for compiled in self.lists)

    @property
    def sha256(self) -> str:
        """Hash of everything that decides an action: terms, rules, names of components, and the network."""
        made_of = [[compiled.content for compiled in self.lists], self.baseline.sha256]
        return hashlib.sha256(canonical_json(made_of).encode()).hexdigest()

    def act(
        self,
        observations: Array,
        *,
        mode: Mode = "greedy",
        rngs: Sequence[np.random.Generator] | None = None,
        past: Past | None = None,
    ) -> Acts:
        """Choose one action per observation.

        Args:
            observations: (N, n), or (N,) when discrete.
            mode: of the network.
            rngs: one generator per row; of the network.
            past: needed if `needs_past` says so.

        Raises:
            BadInput: without the past that it needs.
        """
        if past is None and self.needs_past:
            raise BadInput(
                f"{self.spec} reads the number of the step or the previous observation, which it was not given."
            )
        count = len(observations)
        states = States(observations, *(past or Past(observations, np.zeros(count, np.int64))))
        actions = np.full((count, self.baseline.action_space.size), np.nan)
        for compiled in reversed(self.lists):
            decisions = compiled.say(states)
            actions = np.where(decisions.has_value[:, None], decisions.actions, actions)
        self._fill(actions, observations, mode, rngs)
        is_discrete = self.baseline.action_space.is_discrete
        legal = actions[:, 0].astype(np.int64) if is_discrete else actions.astype(self.baseline.action_space.dtype)
        return Acts(legal, np.empty((count, 0), np.float32))

    def to_files(self) -> dict[str, bytes]:
        """Encode it as `policy.json`, with the lists, and the network's `weights.npz`; equal ones give equal bytes."""
        network = self.baseline.to_files()
        lists = [
            {"listed": asdict(c.listed), "component_names": c.component_names, "reads": c.reads} for c in self.lists
        ]
        spec = {
            "format": RULES_FORMAT,
            "sha256": self.sha256,
            "lists": lists,
            "baseline": json.loads(network[SPEC_FILE]),
        }
        return {**network, SPEC_FILE: (json.dumps(spec, indent=2, sort_keys=True) + "\n").encode()}

    @classmethod
    def from_files(cls, files: Mapping[str, bytes], spec: str = "rules") -> RulePolicy:
        """Decode what `to_files` wrote.

        Raises:
            DamagedStore: when a file is missing, cannot be read, or is no such policy.
        """
        try:
            written = decode_json(files[SPEC_FILE])
            network = MlpPolicy.from_files({**files, SPEC_FILE: json.dumps(written["baseline"]).encode()})
            lists = tuple(_decode_list(entry, network.action_space) for entry in written["lists"])
            made, expected = cls(lists, network, spec), written["sha256"]
            for compiled in lists:
                compiled.check()
        except (UnreadableError, KeyError, TypeError, ValueError, BadInput) as error:
            raise DamagedStore(f"The files of {spec} are not a policy of rules: {error}.", RESTORE) from error
        if made.sha256 != expected:
            raise DamagedStore(f"{spec} hashes to {made.sha256[:16]}; {SPEC_FILE} says {str(expected)[:16]}.", RESTORE)
        return made

    def _fill(
        self, actions: Array, observations: Array, mode: Mode, rngs: Sequence[np.random.Generator] | None
    ) -> None:
        """Put the network's numbers where there are none; each row draws from its own generator only."""
        rows = np.flatnonzero(np.isnan(actions).any(axis=1))
        if len(rows):
            own = None if rngs is None else [rngs[int(row)] for row in rows]
            chosen = self.baseline.act(observations[rows], mode=mode, rngs=own).actions.reshape(len(rows), -1)
            actions[rows] = np.where(np.isnan(actions[rows]), chosen, actions[rows])


RULES_FORMAT = "trajnote-rules-1"


def _decode_list(entry: Mapping[str, Any], space: Space) -> CompiledRules:
    listed = dict(entry["listed"])
    rules = tuple(_decode_rule(rule) for rule in listed.pop("rules"))
    terms = tuple(Term(*term) for term in listed.pop("terms"))
    reads = {name: (int(place), float(factor)) for name, (place, factor) in (entry["reads"] or {}).items()}
    return CompiledRules(
        RuleList(rules=rules, terms=terms, **listed), tuple(entry["component_names"]), space, reads or None
    )


def _decode_rule(entry: Mapping[str, Any]) -> Rule:
    fields = dict(entry)
    fields["suggested_action"] = tuple(fields["suggested_action"])
    fields["formulas"] = None if fields["formulas"] is None else tuple(fields["formulas"])
    return Rule(**fields)


def _check_action(
    action: Sequence[float | None], formulas: Sequence[str | None] | None, predicate: str, space: Space
) -> None:
    given = [x for x in action if x is not None]
    computed = [text for text in formulas or () if text]
    last = space.start + int(space.n or 1) - 1
    broken = space.is_discrete and (
        computed or not all(float(x).is_integer() and space.start <= x <= last for x in given)
    )
    sizes = {len(action), len(action if formulas is None else formulas)}
    if broken or not (given or computed) or sizes != {space.size}:
        raise BadInput(f"The rule `{predicate}` suggests {list(formulas or action)}, which is not an action.")
