"""Several populations of one condition: how they are judged, and what they say together."""
