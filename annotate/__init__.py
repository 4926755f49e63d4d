"""What a language model says about a trajectory: cards, prompts, requests, replies and what they cost.

It steps no environment and trains nothing.
"""
