"""What is done to attention (scores, weights, values, budgets, patterns), to the residual stream, and to features.

An edit does not choose its keys (`selectors`) and knows no other edit (`compose`). One file per place that can be
edited.
"""

from sinklens.interventions.edits.base import AttentionEdit, SinkEdit
from sinklens.interventions.edits.budget import KeepKeys
from sinklens.interventions.edits.by_chance import ChanceSelection
from sinklens.interventions.edits.feature_by_chance import ChanceFeature
from sinklens.interventions.edits.features import AutoencoderEdit, Feature, Splice
from sinklens.interventions.edits.layer import At
from sinklens.interventions.edits.learned import LearnedSelection
from sinklens.interventions.edits.pin import Pin
from sinklens.interventions.edits.scores import BiasSinks, MaskSinks, NullKey
from sinklens.interventions.edits.sink_token import SinkToken
from sinklens.interventions.edits.steer import Steer
from sinklens.interventions.edits.values import MeanValue, NoiseValue, ZeroValue
from sinklens.interventions.edits.weights import NoOp, Redistribute, ScaleSinks, Swap, ZeroSinks

__all__ = [
    "At",
    "AttentionEdit",
    "AutoencoderEdit",
    "BiasSinks",
    "ChanceFeature",
    "ChanceSelection",
    "Feature",
    "KeepKeys",
    "LearnedSelection",
    "MaskSinks",
    "MeanValue",
    "NoOp",
    "NoiseValue",
    "NullKey",
    "Pin",
    "Redistribute",
    "ScaleSinks",
    "SinkEdit",
    "SinkToken",
    "Splice",
    "Steer",
    "Swap",
    "ZeroSinks",
    "ZeroValue",
]
