"""Runs an integer LIF graph here: the reference interpreter, activity, verification, `spikebert-run`."""
