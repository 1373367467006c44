"""The target `netx`: chains of spiking layers as a network file of lava-dl. See docs/netx.md."""
