"""The example's sources, destinations and pandas assets."""
