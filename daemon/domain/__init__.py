"""The records, states and errors that every stage agrees on; standard library only."""
