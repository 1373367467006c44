"""The engine `fast`: event-driven, bit for bit the reference, for whole data sets.

plan.py     which nodes run together, decided once for a graph
kernels.py  the compiled loops
wiring.py   those of the nodes that only passes make
engine.py   runs a plan on batches, one share of the samples a thread
"""
