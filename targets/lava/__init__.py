"""Lava: lowers an integer LIF graph to Lava processes and runs it, bit for bit.

lowering    graph -> plan of processes as plain data                     no Lava needed
limits      the table of what Lava holds, each number with its source    no Lava needed
rules       what a graph asks for, held against those limits             no Lava needed
target      legality and `lava/schedule.json` of a bundle                no Lava needed
grouping    which processes of a plan run as one                         no Lava needed

processes/  the Process classes and ProcessModels that stock Lava lacks
stock       one process of a plan -> the stock Lava process
parts       what each process computes in a step: the arithmetic of our ProcessModels
network     plan -> connected Lava processes
process     a graph as one process, for a Lava program of your own

program     takes batch after batch: feeds a network, reads it
stepfile    memory shared between the host and Lava's processes
records     spikes in, values out, and whether the network is silent when it should be
inline      runs the ProcessModels in one Python process
engine      the engines `lava` and `lava-inline`

supervisor  keeps the real Lava runtime in processes of its own, with deadlines
keeper      the process that ends all others, whoever dies
child       the process that holds the runtime
channel_memory, resources, cgroups    what the runtime takes from the machine

Nothing is imported here, so that a machine without Lava can still export.
"""
