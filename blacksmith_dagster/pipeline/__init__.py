"""What a user declares: sources, destinations, their events, and the flows between them. Pure."""
