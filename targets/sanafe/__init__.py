"""SANA-FE, an independent simulator of energy and time: plays the recorded spikes of a mapped network on Loihi 1.

machine    Loihi 1 as SANA-FE is calibrated for it, and its description for SANA-FE    no sanafe needed
layout     which neurons are played, on which core each is, and what is too large       no sanafe needed
spikes     the spikes of a run, as they leave each neuron of the chip                   no sanafe needed
expected   every count that a simulation must come to, from spikes and layout alone     no sanafe needed
simulate   SANA-FE's own network, and its run
run        what that run says                                                           no sanafe needed
report     its totals beside ours
command    `python -m targets.sanafe`
target     legality and `sanafe/` of a bundle

Nothing is imported here. docs/sanafe.md tells the model, what it leaves out, and a real result.
"""
