"""Training and evaluation: devices, processes, checkpoints, logs, and the loop over the steps."""
