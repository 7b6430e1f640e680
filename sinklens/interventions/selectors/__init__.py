"""Who is edited: selectors find the keys of a row, layer and head.

A selector changes nothing; what happens to the keys that it finds is an edit's business.
"""
