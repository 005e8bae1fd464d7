"""From a checkpoint and control cells to predicted populations."""
