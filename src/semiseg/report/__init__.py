"""Makes tables and pictures from run directories. It uses no tensors and no networks."""
