"""What is done to attention: edits of scores, weights, values, budgets, and of whole runs.

An edit does not choose its keys (`selectors`) and knows no other edit (`compose`).
"""
