"""The board: labels, placebos and other methods in many environments, from the same baseline.

`python -m benchmarks.board run CartPole-v1` plays an environment's rows, `python -m benchmarks.board table` writes the
table of `docs/results/board.md` from them.
"""
