"""When and where things run: environments, rollouts, the gate's episodes, Prefect flows and the command line.

In the order of the work: simulation, policies, datasets, labelling, refinement, reporting, deployment, commands.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
