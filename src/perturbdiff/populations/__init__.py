"""From cells to minibatches of populations: pairing, the order of an epoch, weighted mixtures of sources."""
