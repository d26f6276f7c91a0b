"""Planning: one candidate per layer for a budget of the whole model, chosen exactly."""
