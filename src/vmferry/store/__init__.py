"""The agent's durable memory: which guests it owns and how far every hand-over has come."""
