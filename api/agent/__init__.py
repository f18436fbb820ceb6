"""Agent tasks: begin, watch, steer, decide, cancel, retry."""
