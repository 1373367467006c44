"""Lava: lowers an integer LIF graph to Lava processes and runs it, bit for bit.

lowering    graph -> plan of processes as plain data                     no Lava needed
limits      the table of what Lava holds, each number with its source    no Lava needed
rules       what a graph asks for, held against those limits             no Lava needed
target      legality and `lava/schedule.json` of a bundle                no Lava needed
processes/  the Process classes and ProcessModels that stock Lava lacks
network     plan -> connected Lava processes
inline      runs the ProcessModels in one Python process
supervisor  runs the real Lava runtime in a supervised child process
engine      the engines `lava` and `lava-inline`

Nothing is imported here, so that a machine without Lava can still export.
"""
