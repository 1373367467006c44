"""Process classes and their ProcessModels, and nothing else.

Lava executes every .py file beside a module that defines a Process when it looks for ProcessModels, so files here
must be free of side effects.
"""
