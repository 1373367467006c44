"""Which core and which chip of Loihi 2 each neuron of a network gets. docs/mapping.md tells the model and its sources.

core_model what a core holds, and what is assumed of it
network    a lowered graph as populations of neurons and the connections between them
boxes      a box of a population, and what it takes of a core
tiling     each population is cut into boxes that fit
packing    small boxes share cores
traffic    messages between boxes, at measured or assumed rates
chips      cores are dealt out to chips; boards
place      all of that in order: a `Mapping`
timing     an estimate of the time of a step and of a sentence
remedies   what would make a network fit that does not
check      a mapping held against the limits, counted in another way than it was made
report     a mapping as text and as JSON
command    `python -m targets.loihi2.mapping`
"""
