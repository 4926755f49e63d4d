"""Conditions on states: parsed, checked and rebuilt as SQL."""
