"""Sparse autoencoders of other people: their files, what they compute, and where in a model they sit.

Reading needs neither SAELens nor dictionary_learning; whatever is not exactly known is refused. Splicing one in, or
editing its features, is an edit (`interventions`); recording features is a probe; training one belongs to an example.
"""

from sinklens.autoencoders.autoencoder import Autoencoder
from sinklens.autoencoders.formulas import Formula

__all__ = ["Autoencoder", "Formula"]
