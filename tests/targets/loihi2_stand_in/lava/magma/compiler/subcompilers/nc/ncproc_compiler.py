"""Stands in for the compiler of Intel's extension, for `Loihi2.is_loihi2_available` looks for it."""


class CompilerOptions:
    verbose = False
