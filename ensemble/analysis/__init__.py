"""Analyze predictions: scores, the report page, disagreements between members, class-activation maps."""
