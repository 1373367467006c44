"""NIR, the Neuromorphic Intermediate Representation (Pedersen et al. 2024): writes what it can express, exactly.

membranes  what the integer neuron becomes, where that is exact     no nir needed
limits     the table of what NIR holds, each with its source        no nir needed
rules      what a graph asks for, held against those limits         no nir needed
network    graph -> `nir.NIRGraph`
files      writes a file, reads it back and compares
target     legality and `nir/network.nir` of a bundle               nir is looked for when the target is made

Nothing is imported here. docs/nir.md tells the conventions, and how they were checked in programs that read NIR.
"""
