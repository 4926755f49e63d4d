"""When and where things run: environments, rollouts, the gate's episodes, Prefect flows and the command line."""
