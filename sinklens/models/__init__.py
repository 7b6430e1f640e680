"""A checkpoint becomes a hookable model: loading, families, the attention function, calibration.

What a forward computes is decided here and nowhere else. How forwards follow each other belongs to `decoding`.
"""
