"""Plain networks, without probabilities: encoder pyramid, fusion network, decoders."""
