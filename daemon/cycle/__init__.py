"""The dream cycle: the state machine, its repair at start, and the rollback."""
