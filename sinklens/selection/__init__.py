"""Which tokens are enough: caches that are cut, and gates that learn what to keep.

Here stands who decides what is kept. How a budget is spent in an experiment belongs to `experiments`.
"""
