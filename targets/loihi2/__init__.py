"""Loihi 2: says whether a graph fits the chip, plans it, and runs it where there is one.

limits     the table of what the chip holds, each number with its source   no Lava needed
rules      what a graph asks for, held against those limits                no Lava needed
target     legality and `loihi2/schedule.json` of a bundle                 no Lava needed
chip_plan  a plan of Lava's, changed where a chip differs from a CPU       no Lava needed
system     whether Lava, Intel's extension and a board are here
network    chip plan -> Lava processes with adapters between host and chip
engine     the engine `loihi2`

Nothing of it was run on a chip: docs/loihi2.md tells what that leaves open.
"""
