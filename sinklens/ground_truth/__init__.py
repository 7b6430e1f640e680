"""Records and models whose sinks, and whose answers under every edit, are known.

For calibrating metrics, rules, probes and edits; nothing else in sinklens depends on it.
"""
