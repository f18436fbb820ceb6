"""Messages between the rooms: names and ids, states, events, error types, inputs and results."""
