"""Plan x model to compiled model. Knows wirings, no method."""
