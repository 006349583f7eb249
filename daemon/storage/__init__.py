"""The run database: tables, the ledger's transactions, and what the command line reads."""
