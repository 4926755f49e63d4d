"""Lists of rules as expressions: terms in their order, conditions, and actions that are numbers or formulas.

A formula or a condition may use the components of the observation, those of the step before (`previous.NAME`, which has
no value in step 0), the number of the step, and the terms of its list; a term may use the terms before it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from .errors import BadInput
from .expressions import PREVIOUS, Expression, read_expression, read_formula, read_predicate

STEP = "step"
"""What an expression may speak of beside the components: the number of the step."""
MAX_TERMS = 60
"""Terms of one list."""
_NAME = re.compile(r"[a-z][a-z0-9_]{0,39}")


class Term(NamedTuple):
    """A named expression of a list of rules."""

    name: str
    expression: str  # canonical
    meaning: str | None = None


@dataclass(frozen=True)
class FormulaReader:
    """Reads the expressions of one list of rules."""

    columns: tuple[str, ...]  # of the components
    terms: Mapping[str, Expression]  # in their order

    @classmethod
    def of(cls, columns: Sequence[str], terms: Iterable[Term], *, is_canonical: bool = False) -> FormulaReader:
        """With the terms of a list.

        Raises:
            BadInput: naming the first term that is not allowed, and why.
        """
        reader = cls(tuple(columns), {})
        for term in terms:
            reader = reader.with_term(term, is_canonical=is_canonical)
        return reader

    @property
    def names(self) -> tuple[str, ...]:
        """All names that an expression may use."""
        return (*self.columns, STEP, *(PREVIOUS + column for column in self.columns), *self.terms)

    @property
    def flags(self) -> frozenset[str]:
        """The terms that are conditions."""
        return frozenset(name for name, term in self.terms.items() if term.is_condition)

    def with_term(self, term: Term, *, is_canonical: bool = False) -> FormulaReader:
        """This reader, which then knows one more term.

        Raises:
            BadInput: if its name is taken or no name, or its expression is not allowed.
        """
        if not _NAME.fullmatch(term.name):
            raise BadInput(
                f"A term is called {term.name[:60]!r}; a name has small letters, digits and _, at most 40 characters."
            )
        if term.name in {name.lower() for name in self.names} or term.name == PREVIOUS.rstrip("."):
            raise BadInput(f"Two things are called {term.name!r}: a term, and a column or an earlier term.")
        if len(self.terms) == MAX_TERMS:
            raise BadInput(f"A list has more than {MAX_TERMS} terms.")
        try:
            read = read_expression(term.expression, self.names, flags=self.flags, is_canonical=is_canonical)
        except BadInput as refused:
            problem = refused.problem.rstrip(".")
            raise BadInput(
                f"The term {term.name}: {problem}.", f"A term uses earlier terms only. {refused.hint}"
            ) from None
        return FormulaReader(self.columns, {**self.terms, term.name: read})

    def predicate(self, text: str, *, is_canonical: bool = False) -> Expression:
        """Read a condition.

        Raises:
            BadInput: quoting what is refused.
        """
        return read_predicate(text, self.names, flags=self.flags, is_canonical=is_canonical)

    def formula(self, text: str, *, is_canonical: bool = False) -> Expression:
        """Read a number.

        Raises:
            BadInput: quoting what is refused.
        """
        return read_formula(text, self.names, flags=self.flags, is_canonical=is_canonical)

    def is_constant(self, expression: Expression) -> bool:
        """Whether an expression is the same in every state: it reads terms at most, none of which reads anything."""
        return not self.needs([expression]) - self.terms.keys()

    def needs(self, expressions: Iterable[Expression]) -> frozenset[str]:
        """The names that expressions read, those of their terms included."""
        needed = frozenset[str]().union(*(expression.columns for expression in expressions))
        for name, term in reversed(list(self.terms.items())):
            if name in needed:
                needed |= term.columns
        return needed
