"""A prompt becomes steps: the plan, the prepared canvas, samplers and remasking, the loop, the run, likelihoods.

It attaches probes and edits to forwards, and knows neither what they measure nor what they change.
"""
