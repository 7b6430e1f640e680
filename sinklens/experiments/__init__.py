"""The causal experiment: the same prompts unedited, under each edit and under its controls, and what that shows.

Conditions are composed, run and scored here; edits themselves belong to `interventions`.
"""
