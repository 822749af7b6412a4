"""One engine for many clients: fairness, tickets, the engine's thread."""
