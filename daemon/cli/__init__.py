"""The `dreamd` command: one module per group of commands. What needs torch is imported inside the command."""
