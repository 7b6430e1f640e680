"""What records say: pure functions of a record, about rates, movement, norms and overlap of sinks.

Nothing here runs a model or draws a figure.
"""
