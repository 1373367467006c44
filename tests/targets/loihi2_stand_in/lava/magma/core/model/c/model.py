"""Stands in for a base class of Intel's extension, for `Loihi2HwCfg` names it."""


class CLoihiProcessModel:
    pass
