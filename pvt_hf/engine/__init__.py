"""The training and evaluation engine: settings, processes, loop, checkpoints, reports. Nothing of a task."""
