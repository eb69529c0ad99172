"""The example's sensors."""
