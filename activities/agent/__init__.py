"""What the activities of a task are made of: the conversation, one model call, one tool call, and their bounds."""
