"""From a model to the places that can be adapted, by dataflow alone. Knows no method."""
