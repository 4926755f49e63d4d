"""Environment cards where the simulator is: drafting one, and trying its claims."""
