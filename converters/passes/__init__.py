"""Passes: a graph in, a graph out, the same network. One file each; `rewrite.py` says what they promise.

    prove_ranges          no accumulator can overflow, for any text whatever          (changes nothing)
    remove_unread_nodes   nodes from which no way leads to the readout
    remove_dead_neurons   neurons that are silent whatever the text, and their synapses

`run.py` runs them: it verifies the graph before and after each, and runs the golden inputs through both.
"""
