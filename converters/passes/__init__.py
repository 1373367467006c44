"""Passes: a graph in, a graph out, the same network. One file each; `rewrite.py` says what they promise.

    prove_ranges               no accumulator can overflow, for any text whatever            (changes nothing)
    remove_unread_nodes        nodes from which no way leads to the readout
    remove_unreachable_tokens  rows of the token table that no text leads to
    remove_dead_neurons        neurons that are silent whatever the text, and their synapses
    merge_query_key_value      one layer in the place of three
    expand_attention           attention made of stock neurons and synapses
    lay_out_bias_lanes         biases become synapses from neurons that mark real tokens
    split_wide_layers          several layers in the place of one that is too wide
    balance_delays             when each value exists on a machine, and what must wait       (gives a schedule)

`catalogue.py` names them in the order in which they run. `run.py` runs them: it verifies the graph before and after
each, and runs the golden inputs through both. `edit.py` has what several of them need.
"""
