"""The environment card of the toy datasets."""

from __future__ import annotations

from annotate.cards.cards import Action, Card, Component

CARD = Card(
    env_id="Toy-v0",
    title="Toy",
    goal="go right",
    termination="after a while",
    reward="pays at random",
    components=tuple(Component(name=name, meaning=f"place along {name}") for name in "xyz"),
    actions=(Action(name="left", meaning="go left"), Action(name="right", meaning="go right")),
)
