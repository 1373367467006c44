"""From a trained model to an integer LIF graph, and to a bundle on disk."""
