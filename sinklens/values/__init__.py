"""What a value is: frozen dataclasses whose content is their identity, as plain data and as a hash.

Rules, scopes, probes, edits, plans and tasks are such values. What any of them means belongs to its own room.
"""

from sinklens.values.content import Named, Value, build, digest, named, plain, rebuilt, record_digest

__all__ = ["Named", "Value", "build", "digest", "named", "plain", "rebuilt", "record_digest"]
