"""Caches of baselines that are cut: what is kept of them, reading on over what is left, and texts that ask for it.

Which protocol cuts them belongs to `experiments`; gates that learn what to keep are in `selection`.
"""
