"""Turns an integer LIF graph into something that runs elsewhere; one folder a target."""
